"""Working off one window of a batch: each line is asked until it has an answer that counts."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from activities.gateway_client import MOST_ANSWER_BYTES, Answer, AnswerLost, AnswerTooLarge, NotReached
from activities.turns import Turns
from fleet.batch_lines import Request, answer_line, code_of, error_line
from fleet.db.batches import Result
from fleet.model import Record
from fleet.policy.batch_answers import MOST_ATTEMPTS, Verdict, pause, verdict

Ask = Callable[[bytes], Awaitable[Answer]]
Write = Callable[[Result], Awaitable[bool]]
"""False: no answer is taken any more."""


class WindowBeat(Record):
    """Told to Temporal with each heartbeat: for people, and for whoever takes the window up."""

    answered: int = 0
    of: int = 0
    in_flight: int = 0
    at_most: int = 0
    """At once, of the model that was asked last: what spare capacity allows."""
    last_error: str = ""
    faults: dict[int, int] = {}
    """Line → how often it has failed, of lines without an answer."""


class WindowRun:
    """One window, once. ``run`` may be cancelled at any time; what was answered until then is written."""

    def __init__(
        self,
        batch_id: str,
        requests: Sequence[Request],
        ask: Ask,
        write: Write,
        turns: Turns,
        *,
        faults: Mapping[int, int],
    ) -> None:
        self._batch_id = batch_id
        self._requests = requests
        self._ask = ask
        self._write = write
        self._turns = turns
        self._faults = dict(faults)
        self._in_flight: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._answered = 0
        self._model = requests[0].model if requests else ""
        self.sealed = False
        """Nobody takes the answers any more."""
        self.last_error = ""

    def beat(self) -> WindowBeat:
        return WindowBeat(
            answered=self._answered,
            of=len(self._requests),
            in_flight=len(self._in_flight),
            at_most=self._turns.limit(self._model),
            last_error=self.last_error,
            faults=self._faults,
        )

    async def run(self, stop: asyncio.Event, call_back_s: float) -> None:
        """Until every line has its answer; or until ``stop``, and then what is in flight gets so many seconds."""
        self._tasks = [asyncio.create_task(self._line(r)) for r in self._requests]
        stopping = asyncio.create_task(stop.wait())
        every = asyncio.gather(*self._tasks, return_exceptions=True)
        either: list[asyncio.Future[Any]] = [every, stopping]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not every.done():
                await self._come_back(call_back_s)
        finally:
            stopping.cancel()
            await self._give_up()
        for task in self._tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _come_back(self, seconds: float) -> None:
        for task in self._tasks:
            if task not in self._in_flight:
                task.cancel()
        if self._in_flight:
            await asyncio.wait(set(self._in_flight), timeout=seconds)

    async def _give_up(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _line(self, request: Request) -> None:
        while not self.sealed:
            async with self._turns.turn(request.model):
                if await self._try(request):
                    return
            if faults := self._faults.get(request.line, 0):
                await asyncio.sleep(pause(faults))

    async def _try(self, request: Request) -> bool:
        """Whether it is done with."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (lines are tasks)
        self._in_flight.add(task)
        self._model = request.model
        try:
            result = await self._result(request)
            return result is not None and await self._keep(result)
        finally:
            self._in_flight.discard(task)

    async def _keep(self, result: Result) -> bool:
        if not await self._write(result):
            self.sealed = True
        self._answered += 1
        self._faults.pop(result.line, None)
        return True

    async def _result(self, request: Request) -> Result | None:
        """None: it is to be asked again."""
        try:
            answer = await self._ask(request.body)
        except NotReached:
            self._busy(request, "no gateway can be reached", None)
            return None
        except AnswerLost as error:
            return self._fault(request, None, f"the answer was lost: {error}")
        except AnswerTooLarge:
            text = f"the answer has more than {MOST_ANSWER_BYTES} bytes"
            line = error_line(self._batch_id, request.line, request.custom_id, "answer_too_large", text)
            return Result(request.line, False, line)
        said = verdict(answer.status)
        if said is not Verdict.GOOD:
            self.last_error = f"{answer.status} {code_of(answer.body)}".strip()
        if said is Verdict.BUSY:
            self._busy(request, self.last_error, answer.retry_after)
            return None
        if said is Verdict.FAULT:
            return self._fault(request, answer, self.last_error)
        self._turns.answered(request.model)
        return self._answer(request, answer, ok=said is Verdict.GOOD)

    def _busy(self, request: Request, error: str, retry_after: float | None) -> None:
        self.last_error = error
        self._turns.refused(request.model, retry_after)

    def _fault(self, request: Request, answer: Answer | None, error: str) -> Result | None:
        self.last_error = error
        faults = self._faults[request.line] = self._faults.get(request.line, 0) + 1
        if faults < MOST_ATTEMPTS:
            return None
        if answer is not None:
            return self._answer(request, answer, ok=False)
        text = f"it was sent {faults} times; {error}"
        return Result(
            request.line, False, error_line(self._batch_id, request.line, request.custom_id, "no_answer", text)
        )

    def _answer(self, request: Request, answer: Answer, *, ok: bool) -> Result:
        text = answer_line(
            self._batch_id,
            request.line,
            request.custom_id,
            status=answer.status,
            request_id=answer.request_id,
            body=answer.body,
        )
        return Result(request.line, ok, text)
