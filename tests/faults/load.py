"""Steady load through the gateway: short requests, streamed and not, and what became of each."""

import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.stack import Stack

_TOKENS, _TOKENS_STREAMED = 4, 24
_ENOUGH = 20
"""Answers that say that requests go on."""
_PATIENCE_S = 60.0
_ON_ITS_WAY_S = 0.1
"""What an engine said before it was killed, and we heard after it."""


@dataclass(frozen=True)
class Outcome:
    """One request. Times are those of ``time.monotonic``."""

    model: str
    streamed: bool
    started: float
    ended: float
    problem: str = ""
    """Empty: answered to its end."""
    begun_at: float | None = None
    """When an answer to a streamed request was there, if only its first line: it cannot be asked for again."""

    @property
    def ok(self) -> bool:
        return not self.problem


@dataclass
class Load:
    """What is being asked, and the outcomes so far. Appending to a list needs no lock."""

    outcomes: list[Outcome] = field(default_factory=list)

    def answered(self) -> int:
        return sum(o.ok for o in self.outcomes)

    def failures(self, since: float = 0.0, until: float = float("inf")) -> list[Outcome]:
        """Everything not answered to its end, of what was started in that time."""
        return [o for o in self.outcomes if not o.ok and since <= o.started < until]

    def longest_pause(self, since: float = 0.0) -> float:
        """Seconds in which no answer came to its end."""
        times = sorted(o.ended for o in self.outcomes if o.ok and o.ended >= since)
        return max((b - a for a, b in itertools.pairwise(times)), default=float("inf"))

    def assert_unharmed(self, at_least: int = _ENOUGH) -> None:
        """Nothing failed, and enough was asked for that to mean something."""
        assert not (failed := self.failures()), _list(failed)
        assert self.answered() >= at_least, f"only {self.answered()} requests were answered"

    def assert_only_begun_streams_were_cut(
        self, kills: Sequence[float] = (), *, at_most: int, since: float = 0.0, at_least: int = _ENOUGH
    ) -> None:
        """No request failed that the gateway could have sent again; ``kills``: when engines were killed.

        A stream may only be cut when it had begun before one of the kills and was not through; ``at_most``: how many
        streams those engines could work on in all.
        """
        failed = self.failures(since)
        beyond_help = [
            o for o in failed if o.begun_at and any(o.begun_at - _ON_ITS_WAY_S <= k <= o.ended for k in kills)
        ]
        avoidable = [o for o in failed if o not in beyond_help]
        assert not avoidable, f"kills at {[round(k, 2) for k in kills]}\n{_list(avoidable)}"
        assert len(beyond_help) <= at_most, _list(beyond_help)
        assert self.answered() >= at_least, f"only {self.answered()} requests were answered"


def _list(outcomes: Sequence[Outcome]) -> str:
    return "\n".join(map(str, outcomes))


@contextmanager
def steady_load(
    stack: Stack, *models: str, clients: int = 2, streaming: int = 1, pause: float = 0.02
) -> Iterator[Load]:
    """``clients`` that ask one thing after the other, and ``streaming`` more that want streams; for every model."""
    load = Load()
    stop = threading.Event()
    threads = [
        threading.Thread(target=_ask_on, args=(stack, model, streamed, load, stop, pause), daemon=True)
        for model in models
        for streamed in [False] * clients + [True] * streaming
    ]
    for thread in threads:
        thread.start()
    try:
        yield load
        _until_it_means_something(load)
    finally:
        stop.set()
        for thread in threads:
            thread.join(_PATIENCE_S)


def _until_it_means_something(load: Load) -> None:
    """What was to be seen may be over before a busy machine has answered much."""
    deadline = time.monotonic() + _PATIENCE_S
    while load.answered() < _ENOUGH and not load.failures() and time.monotonic() < deadline:
        time.sleep(0.05)


def _ask_on(stack: Stack, model: str, streamed: bool, load: Load, stop: threading.Event, pause: float) -> None:
    headers = {"authorization": f"Bearer {stack.key}"}
    with httpx.Client(base_url=f"{stack.url}/v1", headers=headers, timeout=_PATIENCE_S, trust_env=False) as http:
        while not stop.is_set():
            load.outcomes.append(_ask_streamed(http, model) if streamed else _ask(http, model))
            stop.wait(pause)


def _body(model: str, *, stream: bool) -> dict[str, Any]:
    tokens = _TOKENS_STREAMED if stream else _TOKENS
    return {"model": model, "prompt": "One, two,", "max_tokens": tokens, "temperature": 0, "stream": stream}


def _ask(http: httpx.Client, model: str) -> Outcome:
    started, problem = time.monotonic(), ""
    try:
        answer = http.post("/completions", json=_body(model, stream=False))
        if answer.status_code != 200:
            problem = f"{answer.status_code} {answer.text[:300]}"
    except httpx.HTTPError as error:
        problem = repr(error)
    return Outcome(model, False, started, time.monotonic(), problem)


def _ask_streamed(http: httpx.Client, model: str) -> Outcome:
    started, begun_at, problem = time.monotonic(), None, "ended before its end"
    try:
        with http.stream("POST", "/completions", json=_body(model, stream=True)) as answer:
            if answer.status_code == 200:
                begun_at = time.monotonic()
            else:
                problem = f"{answer.status_code} {answer.read().decode()[:300]}"
            for line in answer.iter_lines() if begun_at else ():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    problem = ""
                elif line.startswith("data: ") and "error" in json.loads(data):
                    problem = data[:300]
                    break
    except httpx.HTTPError as error:
        problem = repr(error)
    return Outcome(model, True, started, time.monotonic(), problem, begun_at)
