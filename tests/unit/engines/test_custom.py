"""Engines that a deployment describes itself."""

import pytest

from fleet.engines.adapter import Unstartable
from fleet.engines.catalog import adapter_for
from fleet.engines.custom import Custom, unknown_placeholders
from fleet.inventory import AcceleratorKind
from fleet.sizing.sizing import GpuClass
from fleet.specs import CustomEngine
from tests.unit.engines.starts import GIB, facts_of, gang_of, sizing_of, spec_of, start_of

DESCRIBED = CustomEngine(
    command=[
        "/opt/server",
        "--model={{model_path}}",
        "--name",
        "{{ model_name }}",
        "{{host}}:{{port}}",
    ],
    health_path="/live",
    metrics_path="/m",
    ready_path="/v1/chat/completions",
    accelerators=["nvidia"],
    stop_grace_s=7,
)
MORE = ("--gpus", "{{gpu_count}}", "--more", "{{max_model_len}}x{{concurrency}}")
SPEC = spec_of(*MORE, engine="custom", custom=DESCRIBED)


def test_template_is_filled_in() -> None:
    made = Custom().command(start_of(SPEC, sizing_of()))
    assert made.argv == (
        *("/opt/server", "--model=/models/m", "--name", "chat", "127.0.0.1:9001"),
        *("--gpus", "2", "--more", "32768x128"),
    )
    assert made.env == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}


def test_without_a_sizing_the_person_is_asked_and_then_the_default() -> None:
    assert Custom().command(start_of(SPEC)).argv[-1] == "4096x4"
    named = SPEC.model_copy(update={"max_model_len": 100, "concurrency": 2})
    assert Custom().command(start_of(named, gpu_uuids=())).argv[-1] == "100x2"


def test_what_is_filled_in_is_not_filled_in_again() -> None:
    named = SPEC.model_copy(update={"served_name": "{{port}}"})
    assert "{{port}}" in Custom().command(start_of(named)).argv


def test_it_is_what_its_deployment_says() -> None:
    adapter = adapter_for(SPEC)
    assert (adapter.health_path, adapter.metrics_path, adapter.stop_grace_s) == ("/live", "/m", 7)
    assert adapter.program == "/opt/server"
    assert adapter.accelerators == {AcceleratorKind.NVIDIA}
    assert adapter.install("") is None
    assert adapter.readiness(SPEC).path == "/v1/chat/completions"
    assert adapter.readiness(SPEC).body["max_tokens"] == 1
    card = GpuClass(kind=AcceleratorKind.AMD, memory_bytes=GIB)
    assert "does not list amd" in adapter.supports(facts_of(), "", card)
    assert adapter.supports(facts_of(format="gguf"), "") == ""


def test_nothing_but_cpus_is_used_where_no_accelerator_is_listed() -> None:
    plain = CustomEngine(command=["x"])
    assert Custom(plain).accelerators == {AcceleratorKind.CPU}
    assert Custom(plain).metrics_path == ""


@pytest.mark.parametrize(
    ("path", "key"), [("/v1/embeddings", "input"), ("/v1/rerank", "query"), ("/v1/completions", "prompt")]
)
def test_it_is_asked_in_its_own_kind(path: str, key: str) -> None:
    spec = SPEC.model_copy(update={"custom": DESCRIBED.model_copy(update={"ready_path": path})})
    assert key in Custom().readiness(spec).body


def test_unknown_placeholder_is_found_with_those_that_there_are() -> None:
    found = unknown_placeholders(["x", "{{model_path}}", "a{{worker_ip}}b"])
    assert list(found) == [2]
    assert "{{worker_ip}}" in found[2]
    assert "{{model_path}}" in found[2]
    assert unknown_placeholders(DESCRIBED.command) == {}


def test_it_does_not_span_hosts() -> None:
    with pytest.raises(Unstartable, match="multi_host"):
        Custom().command(start_of(SPEC, **gang_of(0)))


def test_nothing_is_known_of_its_metrics_and_log() -> None:
    assert Custom().busy("requests 1") is None
    assert Custom().progress("requests 1") is None
    assert not Custom().measures("KV cache size: 5 tokens")
