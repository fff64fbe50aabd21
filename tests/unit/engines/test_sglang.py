"""SGLang: its command line, what a person's own flags ask for, and what it says.

It could not be run here: lines and metrics are made of the templates in the sources of SGLang 0.5.23.
"""

from itertools import pairwise
from pathlib import Path

import pytest

from fleet.engines.adapter import Command
from fleet.engines.failures import classify
from fleet.engines.sglang import SGLang
from fleet.instances import Remedy
from fleet.inventory import AcceleratorKind
from fleet.placement.request import ModelCard
from fleet.sizing.sizing import GpuClass, Shape
from fleet.specs import KvCacheSpec, LoraSpec, SpeculativeSpec
from tests.unit.engines.starts import GIB, facts_of, gang_of, sizing_of, spec_of, start_of

ADAPTER = SGLang()
HEAD = ["/e/bin/engine", "serve", "--model-path", "/models/m", "--served-model-name", "chat"]
BIND = ["--host", "127.0.0.1", "--port", "9001"]
QWEN = ["--tool-call-parser", "qwen25", "--reasoning-parser", "qwen3"]


def command(*args: str, sizing: object = None, start: dict[str, object] | None = None, **changes: object) -> Command:
    return ADAPTER.command(start_of(spec_of(*args, **changes), sizing, **(start or {})))  # type: ignore[arg-type]


def values(made: Command, flag: str) -> list[str]:
    return [value for name, value in pairwise(made.argv) if name == flag]


def test_command_says_what_was_booked() -> None:
    made = command(sizing=sizing_of(utilization=0.8512))
    assert list(made.argv) == [
        *HEAD,
        *BIND,
        *("--enable-metrics", "--tp-size", "2", "--mem-fraction-static", "0.8512", "--context-length", "32768"),
        *("--max-running-requests", "128", "--chunked-prefill-size", "8192", *QWEN),
    ]
    assert made.env["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert made.env["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] == "false"


def test_without_a_sizing_only_what_a_person_named_is_told() -> None:
    made = command(start={"card": ModelCard()}, max_model_len=512)
    assert list(made.argv) == [*HEAD, *BIND, "--enable-metrics", "--tp-size", "2", "--context-length", "512"]


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        (("--tp", "1"), "--tp-size"),
        (("--tensor-parallel-size=1",), "--tp-size"),
        (("--mem_fraction_static", "0.5"), "--mem-fraction-static"),
        (("--context-length=5",), "--context-length"),
        (("--max-running-requests", "3"), "--max-running-requests"),
        (("--reasoning-parser", "x"), "--reasoning-parser"),
    ],
)
def test_persons_flags_win(given: tuple[str, ...], gone: str) -> None:
    made = command(*given, sizing=sizing_of())
    assert made.argv[-len(given) :] == given
    assert gone not in made.argv[: -len(given)]


def test_kv_cache_lora_speculation_and_embeddings() -> None:
    made = command(
        sizing=sizing_of(),
        kv_cache=KvCacheSpec(dtype="fp8_e4m3", offload_bytes=8 * 10**9),
        lora=(LoraSpec(name="a", path="/l/a"),),
        speculative=SpeculativeSpec(method="eagle3", tokens=4, model="/d"),
        start={"lora_ranks": (40,), "card": ModelCard(task="embed")},
    )
    assert values(made, "--kv-cache-dtype") == ["fp8_e4m3"]
    assert values(made, "--hicache-size") == ["4"], "of each rank"
    assert values(made, "--max-lora-rank") == ["64"]
    assert made.argv[-2:] == ("--lora-paths", "a=/l/a")
    assert values(made, "--speculative-algorithm") == ["EAGLE3"]
    assert values(made, "--speculative-draft-model-path") == ["/d"]
    assert values(made, "--speculative-num-steps") == ["4"]
    assert values(made, "--speculative-num-draft-tokens") == ["5"]
    assert "--is-embedding" in made.argv
    own = command("--speculative-algorithm", "NGRAM", speculative=SpeculativeSpec(method="mtp"))
    assert "--speculative-num-steps" not in own.argv


def test_hosts_of_a_gang_are_told_their_parts() -> None:
    sizing = sizing_of(shape=Shape(tensor_parallel=4, hosts=2))
    leader, follower = (command(sizing=sizing, start=gang_of(rank)) for rank in (0, 1))
    assert leader.argv[-6:] == ("--nnodes", "2", "--node-rank", "0", "--dist-init-addr", "10.0.0.1:9101")
    assert follower.argv[-6:] == ("--nnodes", "2", "--node-rank", "1", "--dist-init-addr", "10.0.0.1:9101")
    assert values(leader, "--host") == ["127.0.0.1"]
    assert values(follower, "--host") == ["10.0.0.2"], "where its readiness is asked for"
    assert values(leader, "--tp-size") == values(follower, "--tp-size") == ["4"]


@pytest.mark.parametrize("arg", ["--model", "--model-path=x", "--hos", "--nccl-init-addr", "--dist_init_addr"])
def test_what_holdfast_sets_itself_is_refused_with_the_remedy(arg: str) -> None:
    refused = ADAPTER.refuse(["--log-level", "info", arg])
    assert list(refused) == [2]
    assert len(refused[2]) > 20


def test_what_a_person_asks_for_is_what_sizing_is_asked() -> None:
    load = ADAPTER.workload(
        spec_of(
            *("--context-length", "100", "--max-running-requests", "7", "--chunked-prefill-size", "512"),
            *("--mem-fraction-static", "0.7", "--disable-cuda-graph", "--disable-radix-cache", "--hicache-size", "3"),
            concurrency=2,
        )
    )
    assert (load.context, load.sequences, load.concurrency, load.batched_tokens) == (100, 7, 2, 512)
    assert (load.utilization, load.eager, load.prefix_caching, load.kv_offload_bytes) == (0.7, True, False, 3 * 10**9)


def test_contradictions_are_told() -> None:
    found = ADAPTER.conflicts(spec_of("--context-length", "9", "--seed", "1", max_model_len=8, memory_bytes=GIB))
    assert list(found) == [0]
    assert "spec.max_model_len 8" in found[0]


@pytest.mark.parametrize(
    ("kind", "capability", "reason"),
    [
        (AcceleratorKind.CPU, "", "runs on GPUs only"),
        (AcceleratorKind.NVIDIA, "7.5", "needs compute capability 8.0"),
        (AcceleratorKind.NVIDIA, "9.0", ""),
        (AcceleratorKind.AMD, "gfx942", ""),
    ],
)
def test_cards_that_it_cannot_use_are_told(kind: AcceleratorKind, capability: str, reason: str) -> None:
    card = GpuClass(kind=kind, memory_bytes=GIB, compute_capability=capability)
    said = ADAPTER.supports(facts_of(), "0.5.23", card)
    assert reason in said
    assert bool(said) == bool(reason)


LOG = (Path(__file__).parents[2] / "data" / "engines" / "sglang-0.5.23.txt").read_text()


def test_start_up_lines_are_read() -> None:
    measured = ADAPTER.measures(LOG)
    assert measured.weights_bytes == round(15.31 * GIB)
    assert measured.kv_bytes == round(48.64 * GIB)
    assert measured.kv_tokens == 354_112
    assert measured.graph_bytes == round(1.12 * GIB)
    latent = "KV Cache is allocated. dtype: torch.bfloat16, #tokens: 9, KV size: 5.50 GB"
    assert ADAPTER.measures(latent).kv_bytes == round(5.5 * GIB)
    assert not ADAPTER.measures("nothing")


METRICS = """sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="0"} 3.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",tp_rank="0"} 2.0
sglang:token_usage{engine_type="unified",model_name="m",tp_rank="0"} 0.28
sglang:generation_tokens_total{model_name="m"} 7557572.0
sglang:time_to_first_token_seconds_count{model_name="m"} 11008.0
sglang:time_to_first_token_seconds_sum{model_name="m"} 2518.0
"""
REALTIME = """sglang:realtime_tokens_total{mode="prefill_compute",model_name="m"} 100.0
sglang:realtime_tokens_total{mode="decode",model_name="m"} 50.0
"""


def test_metrics_are_read() -> None:
    assert ADAPTER.queue(METRICS) == (3, 2, 0.28, 11008, 2518.0)
    assert ADAPTER.busy(METRICS) == 5
    assert ADAPTER.progress(METRICS) == (7557572.28, False)
    assert ADAPTER.progress(METRICS + REALTIME) == (150, True)
    assert ADAPTER.queue("") is None
    assert ADAPTER.progress("") is None


def test_nothing_that_a_healthy_engine_prints_is_a_cause() -> None:
    found = classify(-9, LOG, served=False, extra=ADAPTER.failure_patterns)
    assert (found.failure_class, found.remedy) == ("killed", Remedy.HERE)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
            "oom_load",
        ),
        ("ValueError: Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=0.88.", "oom_kv"),
        ("launch_server.py: error: unrecognized arguments: --foo", "bad_flag"),
        ("sglang serve: error: argument --tool-call-parser: invalid choice: 'x'", "bad_flag"),
        ("ImportError: libnuma.so.1: cannot open shared object file: No such file or directory", "not_installed"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "oom_load"),
        (
            "ValueError: Model architectures ['Foo'] are not supported for now.",
            "unsupported_arch",
        ),
    ],
)
def test_what_it_says_when_it_fails_is_understood(line: str, expected: str) -> None:
    found = classify(1, f"{LOG}{line}\n", served=False, extra=ADAPTER.failure_patterns)
    assert found.failure_class == expected
