"""Looking at an engine that serves, once a second and cheaply: does it still answer, does it get on?"""

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from fleet.engines.adapter import Probe
from fleet.engines.spec import EngineSpec
from fleet.policy.hang import Level, Look, Patience, Reading, begin, judge
from worker_host.engine_load import LastLook
from worker_host.probes import EngineProbe

LOOK_EVERY_S = 1.0
_LOOK_S = 1.2
"""A health check that takes longer counts as unanswered. Two of them are over in time to be out of routing in 5 s."""
METRICS_EVERY_S = 5.0
_METRICS_S = 10.0
"""Some engines answer between two batches only."""
_ONE_TOKEN_S = 30.0

T = TypeVar("T")


class Hung(Exception):
    """The engine lives but does not work; says how one can tell."""


class EngineWatch:
    """``on_level`` hears how the engine is (OK or SUSPECT) and why: as soon as that can be told, then each change."""

    def __init__(
        self,
        probe: EngineProbe,
        one_token: Probe,
        spec: EngineSpec,
        on_level: Callable[[Level, str], None],
        last_look: LastLook,
    ) -> None:
        """``last_look`` is told how full the engine is, whenever its metrics are read."""
        self._probe = probe
        self._one_token = one_token
        self._patience = Patience(spec.unresponsive_timeout_s, spec.stall_timeout_s, spec.idle_probe_s)
        self._on_level = on_level
        self._last_look = last_look
        self._reading: asyncio.Task[Reading] | None = None
        self._read_next = 0.0
        self._proof: asyncio.Task[bool] | None = None

    async def run(self, *, suspect: bool) -> NoReturn:
        """Until cancelled. Raises Hung. ``suspect``: what was thought of it before."""
        watch, told = begin(time.monotonic(), suspect=suspect), None
        try:
            while True:
                began = time.monotonic()
                look = await self._look()
                watch, verdict = judge(watch, look, self._patience)
                if verdict.level is Level.HUNG:
                    raise Hung(verdict.reason)
                if verdict.level is not told and (look.answered or verdict.level is Level.SUSPECT):
                    told = verdict.level
                    self._on_level(told, verdict.reason)
                self._ask_on(send_probe=verdict.send_probe)
                await asyncio.sleep(began + LOOK_EVERY_S - time.monotonic())
        finally:
            for task in (self._reading, self._proof):
                if task is not None:
                    task.cancel()

    async def _look(self) -> Look:
        answered = await self._probe.healthy(_LOOK_S)
        reading, self._reading = _result_of(self._reading)
        proof, self._proof = _result_of(self._proof)
        return Look(time.monotonic(), answered, reading, proof)

    def _ask_on(self, *, send_probe: bool) -> None:
        """Start what the next looks will find answered: an engine may take its time for it. One thing after another."""
        if self._reading is not None or self._proof is not None:
            return
        if send_probe:
            self._proof = asyncio.create_task(self._probe.answers(self._one_token, _ONE_TOKEN_S))
        elif (self._patience.stall_s or self._patience.idle_probe_s) and time.monotonic() >= self._read_next:
            self._read_next = time.monotonic() + METRICS_EVERY_S
            self._reading = asyncio.create_task(self._read())

    async def _read(self) -> Reading:
        text = await self._probe.metrics(_METRICS_S)
        if text is None:
            return Reading(None, None)
        self._last_look.note(self._probe.adapter.queue(text), time.monotonic())
        progress = self._probe.adapter.progress(text)
        if progress is None:
            return Reading(self._probe.adapter.busy(text), None)
        return Reading(self._probe.adapter.busy(text), progress.value, exact=progress.exact)


def _result_of(task: asyncio.Task[T] | None) -> tuple[T | None, asyncio.Task[T] | None]:
    """Its result, once it has one, and what is left to wait for."""
    return (task.result(), None) if task is not None and task.done() else (None, task)
