"""One open line to the relay, on which each thing said is answered."""

import asyncio

import grpc

from worker_host.link import CALL_S, Line, Link


class StatusLine:
    """For one message at a time. A line that broke is opened anew with the next message."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._line: Line | None = None

    async def say(self, body: bytes) -> bytes:
        """The answer. Raises AioRpcError, after which the message may have been heard or not."""
        if self._line is not None and self._line.done():
            self._line = None  # it ended while nobody spoke
        asked = self._link.clock.now()
        try:
            return await self._say(body)
        except grpc.aio.AioRpcError as error:
            if not self._link.corrects_clock(error, asked):
                raise
        return await self._say(body)

    async def _say(self, body: bytes) -> bytes:
        line, self._line = self._line or self._link.statuses(), None
        try:
            async with asyncio.timeout(CALL_S):
                await line.write(body)
                answer = await line.read()
            if isinstance(answer, bytes):
                self._line = line  # good for the next one
                return answer
            raise _broken("the relay ended the line")
        except TimeoutError:
            raise _broken("the relay does not answer") from None
        except asyncio.InvalidStateError:
            raise _broken(await line.details() or "the line broke") from None
        finally:
            if self._line is None:
                line.cancel()


def _broken(why: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=why)
