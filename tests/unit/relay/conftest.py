from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.db.migrate import upgrade
from fleet.db.session import Database
from tests.unit.relay.world import World, new_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    url = f"sqlite:///{tmp_path / 'holdfast.db'}"
    upgrade(url)
    database = Database(url)
    async with new_world(tmp_path, database) as made:
        yield made
    database.close()
