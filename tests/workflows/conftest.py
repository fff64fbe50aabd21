"""A Temporal server for the session, a world for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from temporalio.testing import WorkflowEnvironment

from tests.workflows.server import SHORT_HISTORIES, temporal_server
from tests.workflows.world import World


@pytest.fixture(scope="session")
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    async with temporal_server() as environment:
        yield environment


@pytest.fixture(scope="session")
async def hasty_temporal() -> AsyncIterator[WorkflowEnvironment]:
    async with temporal_server(SHORT_HISTORIES) as environment:
        yield environment


@pytest.fixture
async def world(temporal: WorkflowEnvironment) -> AsyncIterator[World]:
    async with World(temporal) as world:
        yield world


@pytest.fixture
async def short_world(hasty_temporal: WorkflowEnvironment) -> AsyncIterator[World]:
    """On a server that soon suggests to continue as new."""
    async with World(hasty_temporal) as world:
        yield world


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They need a Temporal server."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
