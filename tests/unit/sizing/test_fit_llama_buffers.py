"""llama.cpp's buffers as its server prints them, against those that are predicted."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from fleet.sizing.facts import ModelFacts
from fleet.sizing.fit import fit
from fleet.sizing.read import read_local
from fleet.sizing.sizing import Shape, Sizing, Workload
from tests.unit.sizing.numbers import CPUS

_BUFFER = re.compile(r"CPU\S*\s+(model|output|KV|compute) buffer size =\s+([0-9.]+) MiB")
_LISTENING = "listening on http"
_TERMS = {"model": "weights", "KV": "kv_cache", "compute": "compute", "output": "output"}
_MIB = 1 << 20


@pytest.fixture(scope="module")
def facts(small_model: Path) -> ModelFacts:
    return read_local(small_model)


def printed(binary: Path, model: Path, load: Workload) -> dict[str, float]:
    """MiB of each buffer, from a server that is killed as soon as it listens: it may not be ready for a kind word."""
    slots = load.concurrency or 1
    flags = ["-c", (load.context or 0) * slots, "-np", slots, "-ub", load.batched_tokens or 512, "-b", 2048]
    flags += ["-fa", "on" if load.flash_attention else "off"]
    if load.kv_dtype != "auto":
        flags += ["-ctk", load.kv_dtype, "-ctv", load.kv_dtype]
    argv = [str(binary), "-m", str(model), "--port", "0", "-lv", "4", "-fit", "off", "--no-warmup", *map(str, flags)]
    found: dict[str, float] = {}
    # Into a pipe it would write when its buffer is full; to a terminal it writes line by line.
    ours, theirs = os.openpty()
    with subprocess.Popen(argv, stdout=theirs, stderr=theirs) as server, os.fdopen(ours, errors="replace") as lines:
        os.close(theirs)
        for line in lines:
            if buffer := _BUFFER.search(line):
                found[buffer[1]] = found.get(buffer[1], 0) + float(buffer[2])
            if _LISTENING in line:
                break
        server.kill()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "load",
    [
        Workload(context=8192, concurrency=1),
        Workload(context=32_768, concurrency=1),
        Workload(context=2048, concurrency=4),
        Workload(context=1024, concurrency=8),
        Workload(context=2048, concurrency=4, flash_attention=False),
        Workload(context=8192, concurrency=4, flash_attention=False),
        Workload(context=2000, concurrency=1, batched_tokens=128, flash_attention=False),
        Workload(context=8192, concurrency=4, batched_tokens=2048),
        Workload(context=8192, concurrency=1, kv_dtype="q8_0"),
    ],
    ids=lambda load: "-".join(f"{value}" for value in load.model_dump(exclude_defaults=True).values()),
)
def test_buffers_are_as_the_server_prints_them(
    llama_server_binary: Path, small_model: Path, facts: ModelFacts, load: Workload
) -> None:
    buffers = printed(llama_server_binary, small_model, load)
    sizing = asked(facts, load)
    assert set(buffers) == set(_TERMS)
    for name, term in _TERMS.items():
        assert sizing.terms[term] / _MIB == pytest.approx(buffers[name], rel=0.05), name
    assert sizing.gpu_bytes == 0
    assert sizing.ram_bytes > sum(buffers.values()) * _MIB


def asked(facts: ModelFacts, load: Workload) -> Sizing:
    found = fit("llama_cpp", "0.1.2", facts, load, CPUS, Shape()).asked
    assert found is not None
    return found
