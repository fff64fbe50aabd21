"""Where a call waits: in the queue of a pool whose replicas are all busy, or for the first replica of a cold model."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from api.gateway import refusals
from api.gateway.call import Call
from api.gateway.cold import ColdHold
from api.gateway.destination import Destination
from api.gateway.pool import Refused
from api.gateway.refusals import Refusal
from api.gateway.request import Send
from api.gateway.table import KnownDeployment
from api.gateway.upstream import Upstream
from fleet.policy.outlier import Fate, Outcome

T = TypeVar("T")

_UNUSED = Outcome(Fate.UNUSED)


class WaitingRoom:
    def __init__(
        self,
        look_again: Callable[[], Awaitable[None]],
        cold: ColdHold,
        known: Callable[[str], KnownDeployment | None],
    ) -> None:
        """``look_again`` takes over what has changed in the database since the last look."""
        self._loop = asyncio.get_running_loop()
        self._look_again = look_again
        self._cold = cold
        self._known = known

    async def replica(self, call: Call, destination: Destination, tried: list[Upstream], send: Send) -> Upstream:
        """The one that frees first, or comes up first; booked. Raises ``Refusal``."""
        pool = destination.pool
        if not pool.others(tried):
            await self._look_again()
        if not pool.others(tried):
            await self._first_one(call, destination, send)
        began = self._loop.time()
        if call.trace is not None:
            call.trace.queued()
        waiting: asyncio.Future[Upstream] = self._loop.create_future()
        ticket = pool.enqueue(
            call.ask,
            lambda upstream: _settle(waiting, upstream),
            lambda why: _settle(waiting, _refusal_for(call, pool.waiting, why)),
            began,
            tuple(tried),
        )
        try:
            return await waiting
        except BaseException:  # the client left, or it is refused: what it may have got already goes back
            if not pool.cancel(ticket) and ticket.upstream is not None:
                pool.give_back(ticket.upstream, call.ask, _UNUSED, self._loop.time())
            raise
        finally:
            call.queued_s += self._loop.time() - began

    async def _first_one(self, call: Call, destination: Destination, send: Send) -> None:
        """Until a deployment without replicas has one. Raises ``Refusal`` when there is nothing to wait for."""
        name = destination.target.deployment
        deployment = self._known(name) if name is not None else None
        if deployment is None:
            raise refusals.not_there(call.model, f"its target '{destination.label}' does not exist")
        waiting: asyncio.Future[None] = self._loop.create_future()
        waiter = self._cold.wait(
            deployment,
            self._loop.time(),
            lambda: _settle(waiting, None),
            lambda why: _settle(waiting, why),
            self._commenter(call, send) if call.stream else None,
        )
        try:
            await waiting
        finally:
            waiter.cancel()
            if call.commenting is not None:
                await asyncio.wait({call.commenting})  # nothing else may come between comments that were begun

    def _commenter(self, call: Call, send: Send) -> Callable[[bytes], None]:
        """Sends signs of life, one after the other, to a client that waits for a stream."""

        async def tell(comment: bytes, before: "asyncio.Task[None] | None") -> None:
            if before is not None:
                await before
            await call.open(send, 200, [(b"content-type", b"text/event-stream")])
            await send({"type": "http.response.body", "body": comment, "more_body": True})

        def comment(text: bytes) -> None:
            call.commenting = self._loop.create_task(tell(text, call.commenting))

        return comment


def _settle(waiting: "asyncio.Future[T]", result: T | Refusal) -> None:
    if waiting.done():
        return
    if isinstance(result, Refusal):
        waiting.set_exception(result)
    else:
        waiting.set_result(result)


def _refusal_for(call: Call, waiting: int, why: Refused) -> Refusal:
    if why.reason == "too_long":
        return refusals.waited_too_long(call.model, call.route.spec.queue.max_wait_s, after=why.retry_after_s)
    return refusals.too_many_waiting(call.model, waiting, after=why.retry_after_s)
