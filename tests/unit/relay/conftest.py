import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.db.session import Database
from tests.unit.relay.world import World, new_world


@pytest.fixture
async def world(migrated_sqlite: Path, tmp_path: Path) -> AsyncIterator[World]:
    shutil.copy(migrated_sqlite, tmp_path / "holdfast.db")
    database = Database(f"sqlite:///{tmp_path / 'holdfast.db'}")
    async with new_world(tmp_path, database) as made:
        yield made
    database.close()
