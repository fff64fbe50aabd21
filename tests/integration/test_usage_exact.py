"""What the gateway meters against llama.cpp's own counters, with a real model and clients that leave.

llama.cpp counts in ``/metrics`` what it wrote for requests that it finished, and the prompt of every request of which
it wrote something. Of those that were cancelled, only their slot knows how much was written.
"""

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import httpx
import pytest

from tests.metered import Answered, Client, counters, total, without_numbers
from tests.unit.gateway.process import free_port

pytestmark = [pytest.mark.slow]

SLOTS = 4
EACH = 15
WRITTEN, READ = "llamacpp:tokens_predicted_total", "llamacpp:prompt_tokens_total"


@pytest.fixture(scope="module")
def port(llama_server_binary: Path, small_model: Path) -> Iterator[int]:
    port = free_port()
    command = [llama_server_binary, "-m", small_model, "--host", "127.0.0.1", "--port", str(port), "--metrics"]
    command += ["-c", "8192", "-np", str(SLOTS), "-t", "1", "--no-webui"]
    engine = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until_healthy(port)
        yield port
    finally:
        engine.terminate()
        engine.wait()


def _until_healthy(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "llama-server does not get ready"
        time.sleep(0.05)


async def written_in(port: int, slot: int) -> int:
    """Tokens of the last request in it, once that is over."""
    deadline = time.monotonic() + 30
    async with httpx.AsyncClient(trust_env=False) as client:
        while time.monotonic() < deadline:
            state = (await client.get(f"http://127.0.0.1:{port}/slots")).json()[slot]
            if not state["is_processing"]:
                return int(state["next_token"][0]["n_decoded"])
            await asyncio.sleep(0.01)
    raise AssertionError("the engine goes on writing for a client that left")


async def test_totals_equal_the_engines_counters_while_clients_leave(port: int) -> None:
    before = await counters(port, WRITTEN, READ)

    async def ask_all(slot: int) -> list[tuple[Answered, int]]:
        client = Client(port, "llama_cpp", Random(slot), leaving=0.3)
        return [(await client.ask(id_slot=slot), await written_in(port, slot)) for _ in range(EACH)]

    answered = [pair for pairs in await asyncio.gather(*map(ask_all, range(SLOTS))) for pair in pairs]
    after = await counters(port, WRITTEN, READ)
    answers = [answer for answer, _ in answered]
    stayed, left = [a for a in answers if not a.left], [a for a in answers if a.left]
    assert len(left) >= 0.2 * len(answers)
    assert total(stayed).completion_tokens == after[WRITTEN] - before[WRITTEN]
    assert total(answers).prompt_tokens - total(answers).cached_tokens == after[READ] - before[READ]
    assert not any(answer.usage.estimated for answer in answers)
    late = [written - answer.usage.completion_tokens for answer, written in answered]
    print(f"{len(left)} of {len(answers)} left; tokens written for them that they never saw: {sum(late)}")
    assert [n for (answer, _), n in zip(answered, late, strict=True) if not answer.left] == [0] * len(stayed)
    assert all(0 <= n <= 3 for n in late), late  # what was being written when the engine noticed


async def test_clients_see_what_they_would_have_seen_without_a_meter(port: int) -> None:
    through = await Client(port, "llama_cpp", Random(7), leaving=0).ask_for(12, None)
    plainly = await Client(port, "llama_cpp", Random(7), leaving=0).ask_for(12, None, injecting=False)
    assert [without_numbers(e) for e in _events(through.seen)] == [without_numbers(e) for e in _events(plainly.seen)]
    assert plainly.seen.count(b'"timings"') == 1
    assert through.usage.completion_tokens == 12


def _events(seen: bytes) -> list[bytes]:
    return [event for event in seen.split(b"\n\n") if event and b"[DONE]" not in event]
