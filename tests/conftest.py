"""Fixtures for all tests."""

import gc

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.database_fixtures import (
    database,
    database_url,
    migrated_postgres,
    migrated_sqlite,
    new_postgres_database,
    postgres_url,
)
from tests.docker_fixtures import (
    actor,
    actor_image,
    cramped_docker_engine,
    docker_engine,
    llama_image,
    locked_registry,
    other_docker_engine,
    own_docker_engine,
    registry,
    registry_binary,
)
from tests.engine_fixtures import llama_server_binary, small_model
from tests.stack_fixtures import ask, engines_folder, module_postgres_database, new_stack, shared_stack, stack

__all__ = [
    "actor",
    "actor_image",
    "ask",
    "cramped_docker_engine",
    "database",
    "database_url",
    "docker_engine",
    "engines_folder",
    "llama_image",
    "llama_server_binary",
    "locked_registry",
    "migrated_postgres",
    "migrated_sqlite",
    "module_postgres_database",
    "new_postgres_database",
    "new_stack",
    "other_docker_engine",
    "own_docker_engine",
    "postgres_url",
    "registry",
    "registry_binary",
    "shared_stack",
    "small_model",
    "stack",
]

# Machines are small and shared: how long one example takes says nothing.
settings.register_profile("holdfast", deadline=None)
settings.load_profile("holdfast")


_MEASURING = ("hung_engine", "killed_processes", "lost_host", "outages", "partition", "soak", "under_load")


class ByServers(LoadScopeScheduling):
    """Who runs beside whom (``pytest -n``): files stay together, because their tests share servers, and all faults that
    are measured in seconds stay with one worker."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "measuring" if file.endswith(tuple(f"/faults/test_{name}.py" for name in _MEASURING)) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByServers:
    return ByServers(config, log)


def pytest_collection_finish() -> None:
    """All modules and tests are there to stay: no collection need look at them."""
    gc.collect()
    gc.freeze()
