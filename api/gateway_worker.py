"""One worker of ``holdfast gateway``: serves the inference routes on sockets that its parent holds.

It speaks with its parent over one socket, in lines. It says ``ready`` once it accepts connections, and is told
``retire`` (others go on: let everybody finish), ``stop`` (nobody does) or ``end`` (now). A parent that is gone says
``stop`` by that.
"""

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Sequence

import uvloop

from api.gateway.app import Gateway
from api.gateway.quick import quick_http
from api.gateway.standalone import standalone
from api.gateway.tracing import tracing_for
from api.gateway.usage_log import UsageLog
from api.openai_files import FilesAndBatches
from api.waking import waker
from fleet.access.keys import master_sealer_of
from fleet.db.authority import ensure
from fleet.db.session import Database
from fleet.logs import configure_logging
from fleet.serving import Farewell, serving
from fleet.settings import Settings

log = logging.getLogger("holdfast.gateway")

KEEP_IDLE_S = 75
"""How long a client's connection waits for its next request: longer than most clients keep theirs, so that it is they
who close it."""
_STOP_IDLE_S = 1.0
"""The same once the whole gateway ends."""
_TABLE_POLL_S = 0.02


class Orders:
    """What the parent wants."""

    def __init__(self, drain_s: float) -> None:
        self.leave = asyncio.Event()
        self.farewell = Farewell(drain_s, float(KEEP_IDLE_S))

    async def listen(self, parent: asyncio.StreamReader) -> None:
        """Until the parent is gone."""
        with contextlib.suppress(ConnectionError):  # it died with something of ours unread
            while line := await parent.readline():
                self.take(line.strip())
        self.take(b"stop")

    def take(self, order: bytes) -> None:
        if order != b"retire":
            self.farewell.idle_s = _STOP_IDLE_S
        if order == b"end":
            self.farewell.at_once.set()
        self.leave.set()

    def on_signal(self) -> None:
        self.take(b"end" if self.leave.is_set() else b"stop")


async def run(settings: Settings, control: socket.socket, listening: Sequence[socket.socket], *, wait: bool) -> None:
    """``wait``: accept nothing before there is a table of models; others serve meanwhile."""
    reader, writer = await asyncio.open_connection(sock=control)
    orders = Orders(settings.drain_s)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, orders.on_signal)
    hearing = asyncio.create_task(orders.listen(reader))
    database = Database(settings.effective_database_url)
    master = master_sealer_of(settings)
    gateway = Gateway(
        database,
        keys=lambda: ensure(database, master),
        wake=waker(settings),
        open_sealed=master.open,
        usage=UsageLog(database, settings.home / "usage-spool", prunes=False),  # the API does
        tracing=tracing_for(settings.otlp_endpoint, settings.otlp_ratio),
        kept=FilesAndBatches(database, _later, _later),
    )
    await gateway.start()
    try:
        while wait and not gateway.ready and not orders.leave.is_set():
            await asyncio.sleep(_TABLE_POLL_S)
        if not orders.leave.is_set():
            await _serve(gateway, listening, orders, writer)
    finally:
        hearing.cancel()
        await gateway.stop()
        database.close()


async def _later(_batch: str) -> None:
    """The API processes, which speak with Temporal, look for batches that were not begun or cancelled yet."""


async def _serve(
    gateway: Gateway, listening: Sequence[socket.socket], orders: Orders, parent: asyncio.StreamWriter
) -> None:
    async with serving(
        standalone(gateway),
        *listening,
        farewell=orders.farewell,
        lifespan="off",
        loop="uvloop",
        http=quick_http(gateway),
        timeout_keep_alive=KEEP_IDLE_S,
    ):
        parent.write(b"ready\n")
        await orders.leave.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="One worker of `holdfast gateway`, which starts it.")
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--wait", action="store_true")
    parser.add_argument("listening", type=int, nargs="+")
    given = parser.parse_args()
    configure_logging()
    control, *listening = (socket.socket(fileno=number) for number in (given.control, *given.listening))
    for one in (control, *listening):
        one.setblocking(False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(Settings(), control, listening, wait=given.wait))


if __name__ == "__main__":
    main()
