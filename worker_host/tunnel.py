"""Lets gateways reach this host where it cannot be dialled: it holds a line open to the relay, and is told there when
somebody wants to come in."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, cast

import grpc
from pydantic import ValidationError

from fleet.join import Dial
from worker_host.complaints import Complaints
from worker_host.link import Carry, Link
from worker_host.pauses import Pauses

log = logging.getLogger("holdfast.host")

MOST_CARRIES = 1024
CHUNK = 64 << 10
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 2.0
_SETTLED_S = 10.0
_CONNECT_S = 5.0


class Tunnel:
    def __init__(self, link: Link, door: Callable[[], tuple[str, int]]) -> None:
        """``door``: address and port of this host's own server."""
        self._link = link
        self._door = door
        self._carries: set[asyncio.Task[None]] = set()
        self._complaints = Complaints(log, logging.INFO)

    async def run(self) -> None:
        """Until cancelled, which ends what is being carried, too."""
        pauses = Pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        try:
            while True:
                began = time.monotonic()
                reason = await self._hold()
                if time.monotonic() - began > _SETTLED_S:
                    pauses.begin_anew()
                self._complaints.say(f"the tunnel is cut: {reason}")
                await pauses.wait()
        finally:
            for carry in self._carries:
                carry.cancel()
            await asyncio.gather(*self._carries, return_exceptions=True)

    async def _hold(self) -> str:
        """Answers why it ended. What is being carried by then goes on if it can."""
        call = self._link.dials()
        try:
            async for message in call:
                self._begin(Dial.model_validate_json(message).id)
        except grpc.aio.AioRpcError as error:
            return error.details() or error.code().name
        except ValidationError as error:
            return f"the relay asks for something unknown: {error}"
        finally:
            call.cancel()
        return "the relay ended it"

    def _begin(self, dial_id: str) -> None:
        begin = self._carry if len(self._carries) < MOST_CARRIES else self._refuse
        task = asyncio.create_task(begin(dial_id), name=f"carry {dial_id}")
        self._carries.add(task)
        task.add_done_callback(self._carries.discard)

    async def _refuse(self, dial_id: str) -> None:
        log.warning("%d connections come through the tunnel: one more is refused", len(self._carries))
        call = self._link.carry(dial_id)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.done_writing()  # so that the relay hears of it at once
        call.cancel()

    async def _carry(self, dial_id: str) -> None:
        call = self._link.carry(dial_id)
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await asyncio.open_connection(*self._door())
        except OSError as error:  # TimeoutError is one
            log.warning("cannot reach our own server: %s", error or repr(error))
            call.cancel()
            return
        try:
            await _both(_outwards(reader, call), _inwards(call, writer))
            await call.done_writing()
            await call.code()  # until the relay has had it all: ending the call here would lose what is on its way
        except (OSError, grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            log.debug("carry %s ended: %r", dial_id, error)
            writer.transport.abort()
        finally:
            call.cancel()
            writer.close()


async def _outwards(reader: asyncio.StreamReader, call: Carry) -> None:
    while chunk := await reader.read(CHUNK):
        await call.write(chunk)
    await call.write(b"")


async def _inwards(call: Carry, writer: asyncio.StreamWriter) -> None:
    while (message := await call.read()) is not grpc.aio.EOF:
        if not message:
            writer.write_eof()
            return
        writer.write(cast(bytes, message))
        await writer.drain()
    raise ConnectionResetError("the relay ended it in the middle")


async def _both(one: Coroutine[Any, Any, None], other: Coroutine[Any, Any, None]) -> None:
    """Until both are done; the first error ends the other."""
    tasks = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                _raise_error_of(task)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _raise_error_of(task: "asyncio.Future[None]") -> None:
    if task.cancelled():  # so gRPC ends a read or write of a call that was cancelled
        raise ConnectionResetError("the call was cancelled")
    task.result()
