"""What affinity to prefixes is worth: three real llama.cpp replicas, asked by the balancers themselves over HTTP.

``python -m tests.bench.routing`` prints one JSON object a line. Conversations go on turn by turn, each with a beginning
of its own, as agents and chats do; there are more of them than one engine remembers, and not more than all do. Then
prompts that have nothing in common, where affinity can only cost. All policies get the same traffic on the same
engines, with other words. Takes about a minute on two cores.
"""

import asyncio
import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from api.gateway.standing import Standing
from fleet.policy.ask import Ask
from fleet.policy.balancing import Balancer, make_balancer
from fleet.policy.prefix import hashes
from fleet.policy.replica import EngineLoad
from fleet.routes import Balancing, PolicyName
from tests.engine_fixtures import find_llama_server, find_small_model
from tests.unit.gateway.process import free_port

REPLICAS = 3
SLOTS = 3
"""Conversations that an engine works on at a time, and that it remembers."""
CLIENTS = 3
"""Requests at a time."""
CONVERSATIONS, TURNS = 6, 5
"""Each is taken up in every round, in an order that differs: nobody meets a replica again by keeping time."""
WORDS, MORE_WORDS = 80, 12
"""Of the beginning of a conversation, and of each turn."""
UNIQUE, UNIQUE_ROUNDS = 6, 4
ANSWER_TOKENS = 8
READY_S = 60
_NOUNS = ("river", "stone", "garden", "letter", "window", "engine", "harbour", "meadow", "candle", "bridge", "market")
_VERBS = ("holds", "follows", "meets", "carries", "hides", "finds", "leaves")


@dataclass(eq=False)
class Engine:
    """A replica, as a balancer sees it."""

    instance_id: str
    base: str
    capacity: int = SLOTS
    in_flight: int = 0
    tokens: int = 0
    speed: float = 1.0
    load: EngineLoad | None = None
    standing: Standing = field(default_factory=Standing)

    @property
    def prefill_rate(self) -> float:
        return self.standing.prefill_rate.value


class Driver:
    """As much of a gateway as it takes to balance."""

    def __init__(self, engines: Sequence[Engine], balancer: Balancer, client: httpx.AsyncClient) -> None:
        self._engines = tuple(engines)
        self._balancer = balancer
        self._client = client
        self.first_token_s: list[float] = []
        self.prompt_tokens = self.cached_tokens = 0

    async def say(self, messages: list[dict[str, str]]) -> str:
        """The answer."""
        body = {
            "messages": messages,
            "stream": True,
            "temperature": 0,
            "max_tokens": ANSWER_TOKENS,
            "stream_options": {"include_usage": True},
        }
        prompt = sum(len(message["content"]) for message in messages) // 4
        ask = Ask(prompt_tokens=prompt, new_tokens=ANSWER_TOKENS, prefix=hashes(body, "chat.completions"))
        engine = self._balancer.choose(self._engines, ask, time.monotonic())
        engine.in_flight += 1
        engine.tokens += ask.tokens
        try:
            return await self._stream(engine, body, ask)
        finally:
            engine.in_flight -= 1
            engine.tokens -= ask.tokens

    async def _stream(self, engine: Engine, body: dict[str, Any], ask: Ask) -> str:
        began, parts = time.monotonic(), list[str]()
        async with self._client.stream("POST", f"{engine.base}/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                for choice in event["choices"]:
                    if text := choice["delta"].get("content"):
                        if not parts:
                            self._note(engine, ask, time.monotonic() - began)
                        parts.append(text)
                self._count(event.get("usage"))
        return "".join(parts)

    def _note(self, engine: Engine, ask: Ask, seconds: float) -> None:
        self.first_token_s.append(seconds)
        engine.standing.prefill_rate.note(ask.prompt_tokens, seconds)

    def _count(self, usage: dict[str, Any] | None) -> None:
        if usage:
            self.prompt_tokens += usage["prompt_tokens"]
            self.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        bases = [stack.enter_context(_llama(folder, number)) for number in range(REPLICAS)]
        asyncio.run(_measure([Engine(f"m/{number}", base) for number, base in enumerate(bases)]))


async def _measure(engines: list[Engine]) -> None:
    # Each request has a connection of its own: the engine drops idle ones, at times while a request is on its way.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=120, trust_env=False, limits=limits) as client:
        await asyncio.gather(*(_until_ready(client, engine) for engine in engines))
        await _compare_conversations(engines, client)
        await _compare_unique(engines, client)


async def _compare_conversations(engines: list[Engine], client: httpx.AsyncClient) -> None:
    means: dict[str, float] = {}
    policies: tuple[PolicyName, ...] = ("round_robin", "least_load", "prefix_affinity")
    for policy in policies:
        driver = Driver(engines, make_balancer(Balancing(policy=policy)), client)
        await _converse(driver, policy)
        means[policy] = statistics.mean(driver.first_token_s)
        against = {f"of_{other}": means[policy] / mean for other, mean in means.items() if other != policy}
        cached = driver.cached_tokens / driver.prompt_tokens
        _print(f"mean_ttft_turns_{policy}", means[policy], "s", cached=cached, **against)


async def _compare_unique(engines: list[Engine], client: httpx.AsyncClient) -> None:
    """In turn, so that what else the machine does meets both."""
    policies: tuple[PolicyName, ...] = ("least_load", "prefix_affinity")
    drivers = {policy: Driver(engines, make_balancer(Balancing(policy=policy)), client) for policy in policies}
    for round_ in range(UNIQUE_ROUNDS):
        for policy, driver in drivers.items():
            names = iter([f"{number} {policy} {round_}" for number in range(UNIQUE)])
            await asyncio.gather(*(_ask_each(driver, names) for _ in range(CLIENTS)))
    means = {policy: statistics.mean(driver.first_token_s) for policy, driver in drivers.items()}
    _print(
        "mean_ttft_unique_prefix_affinity",
        means["prefix_affinity"],
        "s",
        least_load=means["least_load"],
        of_least_load=means["prefix_affinity"] / means["least_load"],
    )


async def _converse(driver: Driver, policy: str) -> None:
    names = [f"{number} {policy}" for number in range(CONVERSATIONS)]
    talks = [_Talk(name, [{"role": "system", "content": _text(name, WORDS)}]) for name in names]
    order, rng = list[_Talk](), random.Random(5)
    for _ in range(TURNS):
        order += rng.sample(talks, len(talks))
    next_ = iter(order)
    await asyncio.gather(*(_go_on(driver, next_) for _ in range(CLIENTS)))


@dataclass(eq=False)
class _Talk:
    name: str
    messages: list[dict[str, str]]
    one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)


async def _go_on(driver: Driver, talks: Iterator[_Talk]) -> None:
    for talk in talks:
        async with talk.one_at_a_time:
            text = _text(f"{len(talk.messages)} {talk.name}", MORE_WORDS)
            talk.messages.append({"role": "user", "content": text})
            talk.messages.append({"role": "assistant", "content": await driver.say(talk.messages)})


async def _ask_each(driver: Driver, names: Iterator[str]) -> None:
    for name in names:
        await driver.say([{"role": "user", "content": _text(name, WORDS)}])


def _text(name: str, words: int) -> str:
    """The same for the same name, and of another name from the first words on."""
    seed = sum(ord(letter) * 31**place for place, letter in enumerate(name))
    said = [name]
    for place in range(words // 2):
        seed = (seed * 1103515245 + 12345) % 2**31
        said.append(
            f"{_NOUNS[(seed >> 8) % len(_NOUNS)]} {_VERBS[(seed >> 16) % len(_VERBS)]}" + "." * (place % 9 == 8)
        )
    return " ".join(said)


@contextmanager
def _llama(folder: Path, number: int) -> Iterator[str]:
    port = free_port()
    command = [
        str(find_llama_server()), "-m", str(find_small_model()), "--host", "127.0.0.1", "--port", str(port),
        "-t", "1", "-np", str(SLOTS), "-c", str(2048 * SLOTS), "--cache-ram", "0",
    ]  # fmt: skip
    with (
        (folder / f"{number}.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


async def _until_ready(client: httpx.AsyncClient, engine: Engine) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            try:
                if (await client.get(f"{engine.base}/health")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


def _print(metric: str, value: float, unit: str, **vs: float) -> None:
    rounded = {name: round(against, 3) for name, against in vs.items()}
    line = {"bench": "routing", "metric": metric, "value": round(value, 4), "unit": unit, "vs": rounded}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
