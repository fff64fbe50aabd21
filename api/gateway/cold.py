"""Requests for deployments that have no replica yet: they wake it, and wait for the first one.

Callback-shaped: whoever waits is told once, ``on_ready`` or ``on_refused``, unless he cancels before.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from api.gateway import refusals
from api.gateway.refusals import Refusal
from api.gateway.table import KnownDeployment
from fleet.errors import HoldfastError
from fleet.states import DeploymentPhase

_log = logging.getLogger(__name__)

Wake = Callable[[str, int], Awaitable[None]]
"""``wake(deployment, replicas)``: start so many if it is to have none. Raises HoldfastError; may be repeated."""

_HOPELESS = frozenset({DeploymentPhase.FAILED, DeploymentPhase.DELETING})
_RETRY_FULL_S = 5


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Seconds."""

    first: float = 1.0
    """Between the first two attempts to wake a deployment that is still to have no replicas; then twice as long…"""
    longest: float = 15.0
    """…up to this."""
    comment: float = 5.0
    """Between two comments to a client that waits for a stream."""


class Waiter:
    """One request that waits. Its timeouts begin when ``on_ready`` is called."""

    __slots__ = ("_held", "deadline", "on_comment", "on_ready", "on_refused", "since")

    def __init__(
        self,
        held: "_Held",
        since: float,
        on_ready: Callable[[], None],
        on_refused: Callable[[Refusal], None],
        on_comment: Callable[[bytes], None] | None,
    ) -> None:
        self._held: _Held | None = held
        self.since = since
        self.deadline = since + held.deployment.autoscaling.hold_for_s
        self.on_ready = on_ready
        self.on_refused = on_refused
        self.on_comment = on_comment

    def cancel(self) -> None:
        """Its client left: nothing is called any more. Does nothing after the answer."""
        held, self._held = self._held, None
        if held is not None:
            held.leave(self)

    def comment(self, now: float) -> bytes:
        """A server-sent comment that says how long it has waited: clients skip it, and connections stay open."""
        name = self._held.deployment.name if self._held is not None else ""
        return b": holding %b, %d s: its first replica is being started\n\n" % (
            name.encode(),
            max(0.0, now - self.since),
        )

    def release(self) -> None:
        self._held = None
        self.on_ready()

    def refuse(self, refusal: Refusal) -> None:
        self._held = None
        self.on_refused(refusal)


def may_hold(deployment: KnownDeployment) -> bool:
    """Whether a request for a deployment without a usable replica waits for one, instead of being refused."""
    if deployment.stopped or deployment.phase in _HOPELESS:
        return False
    return deployment.autoscaling.wake_on_request


class ColdHold:
    """All that wait, by deployment. Used inside one event loop; costs nothing while nobody waits."""

    def __init__(self, wake: Wake | None, rhythm: Rhythm | None = None) -> None:
        """``wake`` None: nothing can be woken from here; requests wait for what others have woken."""
        self._wake = wake
        self._rhythm = rhythm or Rhythm()
        self._held: dict[str, _Held] = {}

    def wait(
        self,
        deployment: KnownDeployment,
        now: float,
        on_ready: Callable[[], None],
        on_refused: Callable[[Refusal], None],
        on_comment: Callable[[bytes], None] | None = None,
    ) -> Waiter:
        """Wait for its first usable replica. ``now``: by the loop's clock. ``on_comment`` is called every few seconds.

        Raises ``Refusal`` when it must not be woken, has failed, or too many wait already.
        """
        if not may_hold(deployment) or (self._wake is None and deployment.desired_replicas == 0):
            raise _refusal(deployment)
        held = self._held.get(deployment.name)
        if held is None:
            held = self._held[deployment.name] = _Held(deployment, self._wake, self._rhythm, self._held)
        if len(held.waiters) >= deployment.autoscaling.hold_at_most:
            raise _full(deployment)
        return held.join(Waiter(held, now, on_ready, on_refused, on_comment))

    def waiting(self, name: str) -> int:
        """How many wait for it."""
        held = self._held.get(name)
        return len(held.waiters) if held is not None else 0

    def ready(self, name: str) -> None:
        """It has a usable replica: all go, in the order in which they came."""
        held = self._held.get(name)
        if held is not None:
            held.release()

    def adopt(self, deployments: Mapping[str, KnownDeployment]) -> None:
        """A new table. Those that wait for what failed, was stopped or is gone are refused."""
        for name, held in list(self._held.items()):
            deployment = deployments.get(name)
            if deployment is None:
                held.refuse(refusals.unknown_model(name))
            elif not may_hold(deployment):
                held.refuse(_refusal(deployment))
            else:
                held.deployment = deployment

    def close(self) -> None:
        """Refuse all that wait; the gateway ends."""
        for held in list(self._held.values()):
            held.refuse(refusals.unavailable("This gateway is being stopped. Try again.", after=1))


class _Held:
    """Those that wait for one deployment: one task wakes it, one timer looks at deadlines and comments."""

    __slots__ = ("_all", "_loop", "_rhythm", "_tick", "_wake", "_waking", "deployment", "waiters")

    def __init__(
        self, deployment: KnownDeployment, wake: Wake | None, rhythm: Rhythm, of_all: "dict[str, _Held]"
    ) -> None:
        self.deployment = deployment
        self.waiters: dict[Waiter, None] = {}
        """In the order in which they came."""
        self._all = of_all
        self._loop = asyncio.get_running_loop()
        self._rhythm = rhythm
        self._wake = wake
        self._waking: asyncio.Task[None] | None = None
        self._tick: asyncio.TimerHandle | None = None

    def join(self, waiter: Waiter) -> Waiter:
        self.waiters[waiter] = None
        if self._waking is None and self._wake is not None:
            self._waking = self._loop.create_task(self._keep_waking(self._wake))
        if self._tick is None:
            self._tick = self._loop.call_later(self._pause(), self._look)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        self.waiters.pop(waiter, None)
        if not self.waiters:
            self._end()

    def release(self) -> None:
        for waiter in self._empty():
            waiter.release()

    def refuse(self, refusal: Refusal) -> None:
        for waiter in self._empty():
            waiter.refuse(refusal)

    def _empty(self) -> list[Waiter]:
        waiters = list(self.waiters)
        self.waiters.clear()
        self._end()  # first: who is told may ask again, and waits anew
        return waiters

    def _end(self) -> None:
        self._all.pop(self.deployment.name, None)
        if self._tick is not None:
            self._tick.cancel()
        if self._waking is not None:
            self._waking.cancel()

    async def _keep_waking(self, wake: Wake) -> None:
        """As long as somebody waits and it is to have no replicas: what was lost on the way is said again."""
        pause = self._rhythm.first
        while True:
            if self.deployment.desired_replicas == 0:
                try:
                    await wake(self.deployment.name, self.deployment.autoscaling.wake_replicas)
                except HoldfastError as error:
                    _log.warning("%s could not be woken: %s", self.deployment.name, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._rhythm.longest)

    def _pause(self) -> float:
        return min(self._rhythm.comment, self.deployment.autoscaling.hold_for_s)

    def _look(self) -> None:
        now = self._loop.time()
        late = [waiter for waiter in self.waiters if waiter.deadline <= now]
        for waiter in late:
            del self.waiters[waiter]
        if self.waiters:
            nearest = min(waiter.deadline for waiter in self.waiters)
            self._tick = self._loop.call_at(min(nearest, now + self._rhythm.comment), self._look)
        else:
            self._end()
        for waiter in list(self.waiters):
            if waiter.on_comment is not None and waiter in self.waiters:  # another's comment may have made it leave
                waiter.on_comment(waiter.comment(now))
        for waiter in late:
            waiter.refuse(_too_long(self.deployment))


def _refusal(deployment: KnownDeployment) -> Refusal:
    if deployment.phase == DeploymentPhase.FAILED:
        why = f" ({deployment.message})" if deployment.message else ""
        text = f"The model '{deployment.name}' failed to start{why}. `holdfast instances` says more."
        return refusals.unavailable(text, after=30)
    return refusals.not_ready(deployment.name, deployment.phase, deployment.desired_replicas)


def _full(deployment: KnownDeployment) -> Refusal:
    return refusals.unavailable(
        f"The model '{deployment.name}' is being started, and {deployment.autoscaling.hold_at_most} requests wait for "
        "it already (spec.autoscaling.hold_at_most). Try again shortly.",
        after=_RETRY_FULL_S,
    )


def _too_long(deployment: KnownDeployment) -> Refusal:
    return refusals.unavailable(
        f"The model '{deployment.name}' had no ready replica within {deployment.autoscaling.hold_for_s:g} s; its "
        f"deployment is {deployment.phase}. `holdfast deployments` says what it is waiting for.",
        after=10,
    )
