"""What the gateway meters against vLLM's own counters, with clients that leave: vLLM counts for these, too."""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import httpx
import pytest

from tests.metered import Answered, Client, counters, total
from tests.unit.gateway.process import free_port

pytestmark = [pytest.mark.engines, pytest.mark.slow, pytest.mark.timeout(600)]

WRITTEN, READ = "vllm:generation_tokens_total", "vllm:prompt_tokens_total"
CLIENTS, EACH = 4, 10
LATE = 2
"""Tokens for one who left that were written, but not sent any more."""


@pytest.fixture(scope="module")
def port(vllm_binary: Path, safetensors_model: Path) -> Iterator[int]:
    port = free_port()
    command = [vllm_binary, "serve", safetensors_model, "--served-model-name", "m", "--port", str(port)]
    command += ["--max-model-len", "1024", "--max-num-seqs", str(CLIENTS), "--enforce-eager"]
    offline = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    engine = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **offline}
    )
    try:
        _until_healthy(port, engine)
        yield port
    finally:
        engine.terminate()
        engine.wait()


def _until_healthy(port: int, engine: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 300
    while engine.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError("vLLM does not get ready")


async def settled(port: int) -> dict[str, int]:
    """Its counters, once nothing is running."""
    deadline = time.monotonic() + 60
    while (found := await counters(port, WRITTEN, READ, "vllm:num_requests_running"))["vllm:num_requests_running"]:
        assert time.monotonic() < deadline, "vLLM goes on writing for clients that left"
        await asyncio.sleep(0.05)
    return found


async def test_totals_equal_the_engines_counters_while_clients_leave(port: int) -> None:
    before = await settled(port)

    async def ask_all(number: int) -> list[Answered]:
        client = Client(port, "vllm", Random(number), leaving=0.3)
        return [await client.ask() for _ in range(EACH)]

    answers = [answer for some in await asyncio.gather(*map(ask_all, range(CLIENTS))) for answer in some]
    after = await settled(port)
    left = [answer for answer in answers if answer.left]
    assert len(left) >= 0.2 * len(answers)
    assert not any(answer.usage.estimated for answer in answers)
    assert total(answers).prompt_tokens == after[READ] - before[READ]
    late = after[WRITTEN] - before[WRITTEN] - total(answers).completion_tokens
    print(f"{len(left)} of {len(answers)} left; tokens written for them that they never saw: {late}")
    assert 0 <= late <= LATE * len(left)


async def test_nothing_that_was_asked_for_by_us_is_seen(port: int) -> None:
    answer = await Client(port, "vllm", Random(3), leaving=0).ask_for(9, None)
    assert b"usage" not in answer.seen
    assert answer.usage.completion_tokens == 9
    asked = {"stream_options": {"include_usage": True}}
    answer = await Client(port, "vllm", Random(3), leaving=0).ask_for(9, None, **asked)
    assert answer.seen.count(b'"usage"') == 1
