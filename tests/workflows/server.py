"""Real Temporal servers with a clock per workflow that tests can move."""

import contextlib
from collections.abc import AsyncIterator, Mapping

from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from fleet.temporal_server import DYNAMIC_CONFIG, SEARCH_ATTRIBUTES, find_binary

IDENTITY = "tests"
"""Histories are kept in the repository: they must not name a machine."""

SHORT_HISTORIES = {"limit.historyCount.suggestContinueAsNew": "60"}
"""A server that suggests to continue as new after as many events as an ordinary test makes."""


@contextlib.asynccontextmanager
async def temporal_server(more: Mapping[str, str] | None = None) -> AsyncIterator[WorkflowEnvironment]:
    """A server in memory on a free port. ``more``: dynamic configuration, values as JSON."""
    configuration = {**DYNAMIC_CONFIG, "frontend.WorkflowTimeSkippingEnabled": "true", **(more or {})}
    flags = [arg for k, v in configuration.items() for arg in ("--dynamic-config-value", f"{k}={v}")]
    flags += [arg for k, v in SEARCH_ATTRIBUTES.items() for arg in ("--search-attribute", f"{k}={v}")]
    environment = await WorkflowEnvironment.start_time_skipping_v2(
        dev_server_existing_path=str(find_binary()),
        dev_server_extra_args=flags,
        dev_server_log_level="error",
        data_converter=pydantic_data_converter,
        identity=IDENTITY,
    )
    async with environment:
        yield environment
