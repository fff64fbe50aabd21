import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from api.management import deployments
from fleet.db.session import Database
from tests.unit.api.world import ADMIN, World


@pytest.fixture
def world(migrated_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """With one admin key and no host."""
    monkeypatch.setattr(deployments, "_PROJECTED_WITHIN_S", 0.2)
    shutil.copy(migrated_sqlite, tmp_path / "holdfast.db")
    database = Database(f"sqlite:///{tmp_path / 'holdfast.db'}")
    made = World(database, tmp_path)
    made.add_key(ADMIN)
    yield made
    database.close()


@pytest.fixture
async def api(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """For an administrator."""
    async with world.client() as client:
        yield client
    await world.hosts.aclose()
