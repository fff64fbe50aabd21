"""The adapter against vLLM itself: what it takes, does, says and prints."""

import ast
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fleet.engines.adapter import Start
from fleet.engines.failures import classify
from fleet.engines.spec import EngineSpec
from fleet.engines.vllm import CPU_SUFFIX, Vllm
from fleet.instances import Remedy
from fleet.placement.request import ModelCard
from fleet.sizing.sizing import Sizing
from fleet.specs import SpeculativeSpec
from tests.unit.gateway.process import free_port

pytestmark = [pytest.mark.engines, pytest.mark.slow, pytest.mark.timeout(600)]

ADAPTER = Vllm()
VERSION = Vllm.default_version + CPU_SUFFIX
MIB = 1 << 20
KV_BYTES = 256 * MIB
BYTES_OF_TOKEN = 30 * 3 * 64 * 2 * 2
"""30 layers, 3 KV heads of 64, keys and values, 16 bit."""
SIZING = Sizing(
    gpu_bytes=0,
    ram_bytes=3 << 30,
    context=1024,
    sequences=4,
    batched_tokens=1024,
    kv_bytes=KV_BYTES,
    concurrency=11.0,
)
START_S = 300
"""The first one compiles all of Python's files."""


def spec(*args: str, **changes: object) -> EngineSpec:
    made = EngineSpec(engine="vllm", engine_version=VERSION, model_path="", served_name="small", args=args)
    return made.model_copy(update=changes)


class Server:
    """A running vLLM, as a host would run it."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        self.process, self._port, self._log = process, port, log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self._port}{path}", timeout=30, trust_env=False)

    def post(self, path: str, body: dict[str, object]) -> httpx.Response:
        return httpx.post(f"http://127.0.0.1:{self._port}{path}", json=body, timeout=120, trust_env=False)

    def until_healthy(self) -> "Server":
        deadline = time.monotonic() + START_S
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                if self.get(ADAPTER.health_path).status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"not healthy; exit code {self.process.poll()}\n{self.log[-4000:]}")


@contextmanager
def started(
    binary: Path, model: Path, folder: Path, wanted: EngineSpec, sizing: Sizing | None = SIZING, task: str = "generate"
) -> Iterator[Server]:
    port, log = free_port(), folder / "log"
    card = ModelCard(architecture="LlamaForCausalLM", model_type="llama", task=task, format="safetensors")
    start = Start(binary, wanted, str(model), (), "127.0.0.1", port, os.cpu_count() or 1, sizing=sizing, card=card)
    command = ADAPTER.command(start)
    env = {**os.environ, **command.env}
    with (
        log.open("wb") as output,
        subprocess.Popen(command.argv, stdout=output, stderr=output, env=env, start_new_session=True) as process,
    ):
        try:
            yield Server(process, port, log)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def told(log: str) -> dict[str, object]:
    """What vLLM says that it was told otherwise than by default."""
    found = re.search(r"non-default args: (\{.*\})", log)
    assert found, log[:4000]
    return dict(ast.literal_eval(found[1]))


def test_engine_does_exactly_what_was_booked(vllm_binary: Path, safetensors_model: Path, tmp_path: Path) -> None:
    wanted = spec("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with started(vllm_binary, safetensors_model, tmp_path, wanted) as server:
        server.until_healthy()
        args = told(server.log)
        booked = {
            "max_model_len": SIZING.context,
            "max_num_seqs": SIZING.sequences,
            "max_num_batched_tokens": SIZING.batched_tokens,
            "kv_cache_memory_bytes": KV_BYTES,
        }
        assert {name: args.get(name) for name in booked} == booked
        assert args["served_model_name"] == ["small"]

        measured = ADAPTER.measures(server.log)
        assert measured.kv_bytes == KV_BYTES
        assert measured.kv_tokens is not None
        assert measured.kv_tokens == pytest.approx(KV_BYTES / BYTES_OF_TOKEN, rel=0.02)

        probe = ADAPTER.readiness(wanted)
        assert server.post(probe.path, probe.body).status_code == 200
        messages = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the capital of France?"},
        ]
        chat: dict[str, object] = {"model": "small", "messages": messages, "max_tokens": 20, "temperature": 0}
        answer = server.post("/v1/chat/completions", chat)
        assert "Paris" in answer.json()["choices"][0]["message"]["content"], answer.text
        tool = {"type": "function", "function": {"name": "capital", "parameters": {"type": "object", "properties": {}}}}
        calling = {**chat, "max_tokens": 200, "tools": [tool], "tool_choice": "required"}
        called = server.post("/v1/chat/completions", calling)
        assert called.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "capital", called.text
        too_long = server.post("/v1/completions", {"model": "small", "prompt": "a " * 2000, "max_tokens": 1})
        assert too_long.status_code == 400, "longer than what was booked"

        metrics = server.get(ADAPTER.metrics_path).text
        queue = ADAPTER.queue(metrics)
        assert queue is not None
        assert (queue.running, queue.waiting) == (0, 0)
        assert queue.first_tokens >= 2
        assert queue.first_token_s > 0
        assert (ADAPTER.progress(metrics) or (0, True))[0] > 20
        healthy = classify(-9, server.log, served=False, extra=ADAPTER.failure_patterns)
        assert healthy.failure_class == "killed", f"a healthy log is no failure: {healthy.hint}"

        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(ADAPTER.stop_grace_s) == 0


def test_requests_are_seen_while_they_run(vllm_binary: Path, safetensors_model: Path, tmp_path: Path) -> None:
    guessing = spec(speculative=SpeculativeSpec(method="ngram", tokens=3))
    seen: set[float] = set()
    with started(vllm_binary, safetensors_model, tmp_path, guessing) as server:
        server.until_healthy()
        body = {"model": "small", "prompt": "One", "max_tokens": 120, "ignore_eos": True, "stream": True}
        url = str(server.get("/v1/models").request.url).replace("/v1/models", "/v1/completions")
        with httpx.stream("POST", url, json=body, timeout=120, trust_env=False) as answer:
            for number, _ in enumerate(answer.iter_lines()):
                if number % 20 == 10:
                    metrics = server.get(ADAPTER.metrics_path).text
                    if ADAPTER.busy(metrics):
                        seen.add((ADAPTER.progress(metrics) or (0.0, True))[0])
        drafted = re.search(r"^vllm:spec_decode_num_draft_tokens_total.* (\S+)$", server.get("/metrics").text, re.M)
        assert drafted is not None
        assert float(drafted[1]) > 0
    assert len(seen) > 2


def test_model_can_be_served_for_embeddings(vllm_binary: Path, safetensors_model: Path, tmp_path: Path) -> None:
    with started(vllm_binary, safetensors_model, tmp_path, spec(), task="embed") as server:
        server.until_healthy()
        probe = ADAPTER.readiness(spec(), ModelCard(task="embed"))
        assert probe.path == "/v1/embeddings"
        answer = server.post(probe.path, probe.body)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["data"][0]["embedding"]) == 576


def test_kv_cache_that_is_too_small_is_understood_with_the_context_that_fits(
    vllm_binary: Path, safetensors_model: Path, tmp_path: Path
) -> None:
    small = SIZING.model_copy(update={"kv_bytes": 8 * MIB, "batched_tokens": 2048, "context": 2048})
    with started(vllm_binary, safetensors_model, tmp_path, spec(), small) as server:
        code = server.process.wait(START_S)
        found = classify(code, server.log, served=False, extra=ADAPTER.failure_patterns)
    assert (found.failure_class, found.remedy) == ("oom_kv", Remedy.CHANGED), found.log_tail[-2000:]
    assert found.max_model_len == pytest.approx(8 * MIB / BYTES_OF_TOKEN, rel=0.7)


@pytest.mark.parametrize(
    ("args", "expected"),
    [(("--bogus",), "bad_flag"), (("--max-model-len", "9000"), "ctx_too_long")],
)
def test_start_that_fails_is_understood(
    vllm_binary: Path, safetensors_model: Path, tmp_path: Path, args: tuple[str, ...], expected: str
) -> None:
    with started(vllm_binary, safetensors_model, tmp_path, spec(*args)) as server:
        code = server.process.wait(START_S)
        log = server.log
    assert classify(code, log, served=False, extra=ADAPTER.failure_patterns).failure_class == expected, log[-3000:]
