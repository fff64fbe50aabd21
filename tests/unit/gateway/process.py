"""The gateway as a process of its own, as in production: uvloop, httptools, no access log.

``python -m tests.unit.gateway.process DATABASE_URL`` prints its port, and runs until its input ends.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
import uvloop
from sqlmodel import SQLModel

from api.gateway.app import Gateway
from api.gateway.quick import quick_http
from api.gateway.standalone import standalone
from api.gateway.usage_log import UsageLog
from fleet.db.session import Database
from fleet.db.tables import RegistryRow


@contextmanager
def gateway_process(database_url: str) -> Iterator[tuple[str, int]]:
    """(base URL, pid) of a gateway on this database."""
    command = [sys.executable, "-m", "tests.unit.gateway.process", database_url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}", process.pid
        finally:
            process.stdin.close()
            process.wait(20)


def new_database(url: str) -> Database:
    """All tables, empty."""
    database = Database(url)
    SQLModel.metadata.create_all(database.engine)
    database.write(lambda session: session.add(RegistryRow(id=1)))
    return database


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def stop_when_input_ends() -> None:
    """So that nothing outlives the process that started this one, however that one ends."""

    def wait() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def _main() -> None:
    database = Database(sys.argv[1])
    gateway = Gateway(database, usage=UsageLog(database, Path(tempfile.mkdtemp(prefix="holdfast-usage-"))))
    config = uvicorn.Config(
        standalone(gateway),
        http=quick_http(gateway),
        access_log=False,
        proxy_headers=False,
        server_header=False,
        log_level="warning",
        backlog=4096,
        timeout_graceful_shutdown=1,
    )
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listening.getsockname()[1], flush=True)
    stop_when_input_ends()
    with (
        contextlib.suppress(KeyboardInterrupt),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(uvicorn.Server(config).serve(sockets=[listening]))


if __name__ == "__main__":
    _main()
