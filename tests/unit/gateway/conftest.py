from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from sqlmodel import SQLModel

from api.gateway.app import Gateway
from api.gateway.options import Options
from fleet.db.session import Database
from fleet.db.tables import RegistryRow
from tests.doors import authority
from tests.unit.gateway.client import Client
from tests.unit.gateway.world import KEY, World

FAST = Options(poll_interval=0.02, sweep_interval=0.02, connect_timeout=1.0, return_patience=0.0, return_interval=0.02)


@pytest.fixture
def gateway_database(tmp_path: Path) -> Iterator[Database]:
    """An empty SQLite database with all tables."""
    database = Database(f"sqlite:///{tmp_path / 'gateway.db'}")
    SQLModel.metadata.create_all(database.engine)
    database.write(lambda session: session.add(RegistryRow(id=1)))
    yield database
    database.close()


@pytest.fixture
def world(gateway_database: Database) -> World:
    """The database, with one inference key, as the control plane would fill it."""
    world = World(gateway_database)
    world.add_key(KEY, scope="inference")
    return world


GatewayFactory = Callable[[Options], Awaitable[Gateway]]


@pytest.fixture
async def start_gateway(world: World) -> AsyncIterator[GatewayFactory]:
    started: list[Gateway] = []

    async def start(options: Options = FAST) -> Gateway:
        gateway = Gateway(world.database, keys=authority, options=options)
        await gateway.start()
        started.append(gateway)
        return gateway

    yield start
    for gateway in started:
        await gateway.stop()


@pytest.fixture
async def gateway(start_gateway: Callable[[], Awaitable[Gateway]]) -> Gateway:
    return await start_gateway()


@pytest.fixture
def client(gateway: Gateway) -> Client:
    return Client(gateway, KEY)
