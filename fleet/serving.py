"""Serving an ASGI app inside a process that has other things to do, and its own idea of signals."""

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn

_PART_EVERY_S = 0.1
_LAST_GRACE_S = 1.0
"""What is left after a farewell is broken off, and gets so long for its last words."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the process decides what a signal means, not the web server


class CannotListen(Exception):
    """The address is taken or not ours."""


@dataclass
class Farewell:
    """How a server ends; may be changed as long as it has not."""

    grace_s: float
    """Requests get so long to finish."""
    idle_s: float
    """Connections without one are left so long for another, whose answer is their last: nobody who has just sent a
    request finds his connection closed."""
    at_once: asyncio.Event = field(default_factory=asyncio.Event)
    """Set: enough waited."""


def listen(address: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises CannotListen.

    ``shared``: further ones may listen there, and the system divides the connections among them.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # With its protocol named: asyncio sends small writes at once only on sockets that it knows for TCP.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((address, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise CannotListen(f"cannot listen on {address} port {port}: {error.strerror}") from error
    listening.setblocking(False)
    return listening


@contextlib.asynccontextmanager
async def serving(
    app: Any,
    *listening: socket.socket,
    grace_s: float = 5.0,
    farewell: Farewell | None = None,
    tls: ssl.SSLContext | None = None,
    **options: Any,
) -> AsyncIterator[None]:
    """Serve ``app`` on ``listening`` inside the block; open requests get ``grace_s`` to finish at its end.

    ``farewell``: instead of ``grace_s``. ``tls``: a certificate that is loaded into it later is shown from then on.
    """
    if farewell is not None:
        grace_s = _LAST_GRACE_S
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=max(1, int(grace_s)),
        ssl_context_factory=(lambda _config, _default: tls) if tls is not None else None,
        **options,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=list(listening)))
    try:
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        if task.done():
            task.result()
            raise CannotListen("the web server ended at once")
        yield
    finally:
        if farewell is not None and not task.done():
            await _part(server, listening, farewell)
        server.should_exit = True
        await task
        for one in listening:
            one.close()


async def _part(server: uvicorn.Server, listening: Sequence[socket.socket], farewell: Farewell) -> None:
    """Accept nothing more, and wait for every connection to come to its end by itself."""
    loop = asyncio.get_running_loop()
    for accepting in server.servers:
        accepting.close()
    for one in listening:
        one.close()  # who shares it gets what has not been accepted
    connections = server.server_state.connections
    for connection in list(connections):
        if (retire := getattr(connection, "retire", None)) is not None:
            retire()
    began = loop.time()
    while connections and not farewell.at_once.is_set() and loop.time() - began < farewell.grace_s:
        if loop.time() - began >= farewell.idle_s:
            for connection in list(connections):
                if getattr(connection, "retire", None) is not None:
                    connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PART_EVERY_S):
                await farewell.at_once.wait()


def run_until_told(
    serve: Callable[[asyncio.Event], Coroutine[Any, Any, None]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Run ``serve`` until it returns; SIGTERM and SIGINT set the event that it gets."""

    async def until_told() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(stop)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(until_told())


async def until_done_or(stop: asyncio.Event, work: Any) -> Any:
    """The result of ``work``, or None when ``stop`` is set first (``work`` is then cancelled)."""
    stopping = asyncio.create_task(stop.wait())
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({stopping, working}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        stopping.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})
