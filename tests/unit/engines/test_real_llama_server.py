"""The adapter against the program itself: what it takes, says and prints."""

import os
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
from fleet.engines.llama_cpp import LlamaCpp
from fleet.engines.spec import EngineSpec
from fleet.instances import Remedy
from fleet.sizing.sizing import Sizing
from tests.unit.gateway.process import free_port

pytestmark = pytest.mark.slow

ADAPTER = LlamaCpp()


@contextmanager
def started(binary: Path, model: Path | str, log: Path, *args: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and its base URL."""
    spec = EngineSpec(engine="llama_cpp", engine_version="", model_path=str(model), served_name="small", args=args)
    port = free_port()
    command = ADAPTER.command(Start(binary, spec, str(model), (), "127.0.0.1", port, os.cpu_count() or 1))
    with log.open("wb") as output, subprocess.Popen(command.argv, stdout=output, stderr=output) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def until_healthy(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(url + ADAPTER.health_path, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"not healthy; exit code {process.poll()}")


@pytest.mark.parametrize(
    "args", [(), ("--ctx-size=512", "-np", "1", "--cache-ram", "0"), ("--embedding", "--pooling", "mean")]
)
def test_command_line_works_and_a_kill_is_seen_as_one(
    llama_server_binary: Path, small_model: Path, tmp_path: Path, args: tuple[str, ...]
) -> None:
    log = tmp_path / "log"
    with started(llama_server_binary, small_model, log, *args) as (process, url):
        until_healthy(url, process)
        spec = EngineSpec(engine="llama_cpp", engine_version="", model_path="", served_name="small", args=args)
        probe = ADAPTER.readiness(spec)
        answer = httpx.post(url + probe.path, json=probe.body, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        metrics = httpx.get(url + ADAPTER.metrics_path, trust_env=False).text
        assert ADAPTER.busy(metrics) == 0
        assert (ADAPTER.progress(metrics) or (0, True))[0] > 0, metrics
        process.send_signal(signal.SIGKILL)
        code = process.wait(10)
    found = classify(code, log.read_text(), served=False, extra=ADAPTER.failure_patterns)
    assert (found.failure_class, found.remedy) == ("killed", Remedy.HERE), log.read_text()


def test_what_was_booked_is_what_it_says_it_took(llama_server_binary: Path, small_model: Path, tmp_path: Path) -> None:
    spec = EngineSpec(engine="llama_cpp", engine_version=ADAPTER.default_version, model_path="", served_name="small")
    sizing = Sizing(
        gpu_bytes=0, ram_bytes=1 << 28, context=1024, sequences=2, batched_tokens=256, kv_bytes=45 << 20, concurrency=2
    )
    port, log = free_port(), tmp_path / "log"
    start = Start(
        llama_server_binary, spec, str(small_model), (), "127.0.0.1", port, os.cpu_count() or 1, sizing=sizing
    )
    with (
        log.open("wb") as output,
        subprocess.Popen(ADAPTER.command(start).argv, stdout=output, stderr=output) as process,
    ):
        try:
            until_healthy(f"http://127.0.0.1:{port}", process)
        finally:
            process.kill()
    measured = ADAPTER.measures(log.read_text())
    assert measured.kv_tokens == sizing.context * sizing.sequences
    assert measured.kv_bytes == sizing.kv_bytes, "30 layers, 3 KV heads of 64, 16 bit, 2048 tokens"
    assert measured.weights_bytes == pytest.approx(small_model.stat().st_size, rel=0.05)
    assert measured.compute_bytes is not None
    assert 0 < measured.compute_bytes < 64 << 20


def test_progress_is_seen_while_a_request_runs(llama_server_binary: Path, small_model: Path, tmp_path: Path) -> None:
    """Its counters of tokens move only at the end; ``progress`` must not be one of them."""
    seen: set[float | None] = set()
    with started(llama_server_binary, small_model, tmp_path / "log") as (process, url):
        until_healthy(url, process)
        body = {"prompt": "One", "max_tokens": 200, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60, trust_env=False) as answer:
            for number, _ in enumerate(answer.iter_lines()):
                if number % 40 == 20:
                    metrics = httpx.get(url + ADAPTER.metrics_path, timeout=60, trust_env=False).text
                    if ADAPTER.busy(metrics):
                        seen.add(ADAPTER.progress(metrics))
    assert None not in seen
    assert len(seen) > 2


_LAST_WORDS_LOST_AT_MOST = 20
"""It logs in a thread of its own: ending at once, it may take its last words with it."""


@pytest.mark.parametrize(
    ("model", "args", "expected"),
    [
        ("/nonexistent.gguf", (), "not_found"),
        ("not-a-model.gguf", (), "corrupt_file"),
        (None, ("--bogus",), "bad_flag"),
        (None, ("--ctx-size", "many"), "bad_flag"),
    ],
)
def test_start_that_fails_is_understood(
    llama_server_binary: Path,
    small_model: Path,
    tmp_path: Path,
    model: str | None,
    args: tuple[str, ...],
    expected: str,
) -> None:
    (tmp_path / "not-a-model.gguf").write_text("this is no model, whatever its name says\n")
    path = tmp_path / model if model else small_model
    for _ in range(_LAST_WORDS_LOST_AT_MOST):
        with started(llama_server_binary, path, tmp_path / "log", *args) as (process, _):
            code = process.wait(60)
        found = classify(code, (tmp_path / "log").read_text(), served=False, extra=ADAPTER.failure_patterns)
        if found.failure_class != "unknown":
            break
    assert (found.failure_class, code) == (expected, 1), found.log_tail
