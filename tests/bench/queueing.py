"""When the first token comes, with late binding and with the least loaded replica at arrival, in simulation.

``python -m tests.bench.queueing`` prints one JSON object a line. The real ``Pool`` hands out the requests, on a virtual
clock; only engines and clients are simulated: three engines that read prompts one after another and write answers in
batches (the more at a time, the slower each), and clients that come in bursts, and whose answers are not as long as
anybody expected. Without late binding the same pool may give an engine any number of requests at once, and those that
find no place there wait in it, in the order in which they came.
"""

import heapq
import json
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil

from api.gateway.pool import Pool, Refused
from api.gateway.standing import Standing
from fleet.policy.ask import Ask
from fleet.policy.outlier import Fate, Outcome
from fleet.policy.replica import EngineLoad
from fleet.routes import QueueSpec

REPLICAS = 3
PREFILL_TOKENS_S = 6000.0
STEP_S, STEP_EACH_S = 0.02, 0.0006
"""Of one token for each answer that is being written, and what each of them adds."""
PROMPT_TOKENS, ANSWER_TOKENS, SPREAD = 600, 150, 1.0
"""Medians, and the standard deviation of their logarithms: as conversations are."""
BURST, CALM = 2.5, 0.5
"""Of the average rate, for a quarter and three quarters of the time."""
BURST_S = 20.0
LOADS = (0.6, 0.8, 0.9, 1.0)
SEEDS = range(10)
REQUESTS = 1500
_ANSWERED = Outcome(Fate.ANSWERED)


@dataclass(frozen=True)
class Setting:
    name: str
    places: int
    """Requests that an engine works on at a time."""
    says: int
    """What the gateway knows of that; 0: nothing, the limit is learned."""


SETTINGS = (
    Setting("8_places", 8, 8),
    Setting("32_places", 32, 32),
    Setting("32_places_learned", 32, 0),
    Setting("12_places_learned", 12, 0),
)


@dataclass(eq=False, slots=True)
class Job:
    at: float
    ask: Ask
    """With what is known and expected of it."""
    tokens: int
    """That the answer will have."""
    sent_at: float = 0.0
    first_token_s: float = -1.0


class Clock:
    """What happens when; nobody waits for real."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._turn = 0

    def at(self, when: float, happens: Callable[[], None]) -> None:
        self._turn += 1
        heapq.heappush(self._events, (when, self._turn, happens))

    def run(self, ended: Callable[[], bool]) -> None:
        while not ended():
            self.now, _, happens = heapq.heappop(self._events)
            happens()


@dataclass(eq=False)
class Replica:
    """As the pool sees it."""

    instance_id: str
    capacity: int
    in_flight: int = 0
    tokens: int = 0
    speed: float = 1.0
    prefill_rate: float = 0.0
    load: EngineLoad | None = None
    avoided_until: float = 0.0
    launch: int = 0
    suspect: bool = False
    standing: Standing = field(default_factory=Standing)

    def note_trial(self) -> None:
        """It can always be reached."""


class Engine:
    """Reads a prompt while there is one and a place for it, else writes a token for each answer."""

    def __init__(self, clock: Clock, places: int, began: Callable[[Job], None], ended: Callable[[Job], None]) -> None:
        self._clock = clock
        self._places = places
        self._began = began
        self._ended = ended
        self._waiting: deque[Job] = deque()
        self._writing: dict[Job, int] = {}
        """And the tokens that are left of each."""
        self._piece = 0
        """Number of the piece of work that is being done; others are not any more."""
        self._since = self._step = 0.0
        self._steps = 0
        """Of that piece, while it is one of writing."""
        self._idle = True

    def add(self, job: Job) -> None:
        self._waiting.append(job)
        if self._idle:
            self._go_on()
        elif self._steps and len(self._writing) < self._places:
            done = max(1, ceil((self._clock.now - self._since) / self._step))
            if done < self._steps:  # it is read after the token that is being written
                self._write(done)

    def _go_on(self) -> None:
        self._idle, self._steps = False, 0
        if self._waiting and len(self._writing) < self._places:
            self._piece += 1
            self._clock.at(self._clock.now + self._waiting[0].ask.prompt_tokens / PREFILL_TOKENS_S, self._has_read)
        elif self._writing:
            self._since, self._step = self._clock.now, STEP_S + STEP_EACH_S * len(self._writing)
            self._write(min(self._writing.values()))
        else:
            self._idle = True

    def _write(self, steps: int) -> None:
        self._piece += 1
        piece, self._steps = self._piece, steps
        self._clock.at(self._since + steps * self._step, lambda: self._has_written(piece))

    def _has_read(self) -> None:
        job = self._waiting.popleft()
        self._writing[job] = job.tokens
        self._began(job)
        self._go_on()

    def _has_written(self, piece: int) -> None:
        if piece != self._piece:
            return
        left = {job: tokens - self._steps for job, tokens in self._writing.items()}
        self._writing = {job: tokens for job, tokens in left.items() if tokens > 0}
        self._idle, self._steps = False, 0  # what comes with the next calls waits for the piece after
        for job in left.keys() - self._writing.keys():
            self._ended(job)
        self._go_on()


class Fleet:
    """Runs one load to its end."""

    def __init__(self, setting: Setting, queue: QueueSpec) -> None:
        self._clock = Clock()
        self._replicas = [Replica(f"m/{number}", setting.says) for number in range(REPLICAS)]
        self._engines = {r.instance_id: self._engine(r, setting.places) for r in self._replicas}
        self._pool: Pool[Replica] = Pool(random.Random(0).random)
        self._pool.update(self._replicas, 0.0, queue=queue)
        self._left = 0

    def run(self, jobs: list[Job]) -> list[float]:
        """Seconds to the first token of each."""
        self._left = len(jobs)
        for job in jobs:
            self._clock.at(job.at, lambda job=job: self._arrive(job))  # type: ignore[misc]
        self._clock.at(1.0, self._sweep)
        self._clock.run(lambda: not self._left)
        return [job.first_token_s for job in jobs]

    def _engine(self, replica: Replica, places: int) -> Engine:
        return Engine(self._clock, places, lambda job: self._began(replica, job), lambda job: self._ended(replica, job))

    def _sweep(self) -> None:
        self._pool.sweep(self._clock.now)
        self._clock.at(self._clock.now + 1.0, self._sweep)

    def _arrive(self, job: Job) -> None:
        replica = self._pool.take(job.ask, (), self._clock.now)
        if replica is not None:
            self._send(replica, job)
        else:
            self._pool.enqueue(job.ask, lambda replica: self._send(replica, job), _refused, self._clock.now)

    def _send(self, replica: Replica, job: Job) -> None:
        job.sent_at = self._clock.now
        self._engines[replica.instance_id].add(job)

    def _began(self, replica: Replica, job: Job) -> None:
        now = self._clock.now
        job.first_token_s = now - job.at
        self._pool.first_byte(replica, job.ask, now - job.sent_at, now)

    def _ended(self, replica: Replica, job: Job) -> None:
        self._left -= 1
        self._pool.give_back(replica, job.ask, _ANSWERED, self._clock.now)


def _refused(refused: Refused) -> None:
    raise AssertionError(f"nobody is to be refused here: {refused}")


def _jobs(setting: Setting, load: float, seed: int) -> list[Job]:
    """The same for both ways. ``load``: of what the fleet can do when all its places are taken."""
    rng = random.Random(seed)
    mean = 2.718281828 ** (SPREAD**2 / 2)
    step = STEP_S + STEP_EACH_S * setting.places
    seconds = mean * (PROMPT_TOKENS / PREFILL_TOKENS_S + ANSWER_TOKENS * step / setting.places)
    jobs = []
    for at, _ in zip(_arrivals(rng, load * REPLICAS / seconds), range(REQUESTS), strict=False):
        prompt = max(1, int(PROMPT_TOKENS * rng.lognormvariate(0, SPREAD)))
        answer = max(1, int(ANSWER_TOKENS * rng.lognormvariate(0, SPREAD)))
        jobs.append(Job(at, Ask(prompt_tokens=prompt, new_tokens=int(ANSWER_TOKENS * mean)), answer))
    return jobs


def _arrivals(rng: random.Random, rate: float) -> Iterator[float]:
    now = 0.0
    while True:
        bursts = now % (4 * BURST_S) < BURST_S
        now += rng.expovariate(rate * (BURST if bursts else CALM))
        yield now


def main() -> None:
    # Nobody is refused, so that both ways answer the same requests.
    late = QueueSpec(max_waiting=REQUESTS, max_wait_s=3600)
    for setting in SETTINGS:
        for load in LOADS:
            _report(setting, load, late)


def _report(setting: Setting, load: float, late: QueueSpec) -> None:
    waits: dict[str, list[float]] = {"late": [], "arrival": []}
    ratios = []
    for seed in SEEDS:
        both = {
            "late": Fleet(setting, late).run(_jobs(setting, load, seed)),
            "arrival": Fleet(setting, QueueSpec(in_flight=100_000)).run(_jobs(setting, load, seed)),
        }
        ratios.append(_p95(both["late"]) / _p95(both["arrival"]))
        for way, seconds in both.items():
            waits[way] += seconds
    _print(
        f"p95_ttft_{setting.name}_load_{load}",
        _p95(waits["late"]),
        least_load_at_arrival=_p95(waits["arrival"]),
        ratio=statistics.mean(ratios),
        worst_ratio=max(ratios),
        mean_ratio=statistics.mean(waits["late"]) / statistics.mean(waits["arrival"]),
    )


def _p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1]


def _print(metric: str, value: float, **vs: float) -> None:
    rounded = {name: round(against, 3) for name, against in vs.items()}
    print(
        json.dumps({"bench": "queueing", "metric": metric, "value": round(value, 4), "unit": "s", "vs": rounded}),
        flush=True,
    )


if __name__ == "__main__":
    main()
