"""Which engine runs a model."""

from typing import Any

import pytest

from fleet.engines.catalog import ADAPTERS
from fleet.engines.choice import EngineChoice, Offer, choose_engine, format_by_name
from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.sizing.facts import Format, ModelFacts
from fleet.sizing.sizing import GpuClass
from fleet.specs import DeploymentSpec
from tests.unit.engines.starts import GIB, facts_of

CPU, NVIDIA, AMD = AcceleratorKind.CPU, AcceleratorKind.NVIDIA, AcceleratorKind.AMD
LLAMA = EngineBuild(engine="llama_cpp", version="0.1.2")
VLLM = EngineBuild(engine="vllm", version="0.32.0", accelerators=(NVIDIA,))
VLLM_CPU = EngineBuild(engine="vllm", version="0.32.0+cpu")
SGLANG = EngineBuild(engine="sglang", version="0.5.23", accelerators=(NVIDIA,))
CUSTOM = EngineBuild(engine="custom", version="", accelerators=(CPU, NVIDIA), origin="spec")
H100 = GpuClass(kind=NVIDIA, name="NVIDIA H100", memory_bytes=80 * GIB, compute_capability="9.0")
T4 = GpuClass(kind=NVIDIA, name="Tesla T4", memory_bytes=16 * GIB, compute_capability="7.5")
GPU_HOST = Offer("gpu", (LLAMA, VLLM, SGLANG, CUSTOM), (H100,))
CPU_HOST = Offer("cpu", (LLAMA, VLLM_CPU, CUSTOM))
GGUF = facts_of(format=Format.GGUF, architecture="llama")
QWEN = facts_of()


def asked(**changes: Any) -> DeploymentSpec:
    return DeploymentSpec.model_validate({"model": {"path": "m"}, **changes})


def chosen(facts: ModelFacts | None, *offers: Offer, **changes: Any) -> EngineChoice:
    return choose_engine(facts, asked(**changes), offers)


@pytest.mark.parametrize(
    ("facts", "offers", "engine", "version"),
    [
        (GGUF, (GPU_HOST, CPU_HOST), "llama_cpp", "0.1.2"),
        (GGUF, (), "llama_cpp", "0.1.2"),
        (QWEN, (GPU_HOST, CPU_HOST), "vllm", "0.32.0"),
        (QWEN, (CPU_HOST,), "vllm", ""),
        (QWEN, (), "vllm", "0.32.0"),
        (QWEN, (Offer("h", (LLAMA, SGLANG), (H100,)),), "sglang", "0.5.23"),
        (QWEN, (Offer("h", (LLAMA, VLLM, SGLANG), (T4,)),), "vllm", "0.32.0"),
        (facts_of(format=Format.PYTORCH), (GPU_HOST,), "vllm", "0.32.0"),
        (None, (GPU_HOST,), "llama_cpp", "0.1.2"),
    ],
)
def test_auto_goes_by_what_the_model_is_and_what_hosts_offer(
    facts: ModelFacts | None, offers: tuple[Offer, ...], engine: str, version: str
) -> None:
    choice = chosen(facts, *offers)
    assert (choice.engine, choice.version) == (engine, version)


@pytest.mark.parametrize("facts", [GGUF, QWEN, None])
@pytest.mark.parametrize("offers", [(), (GPU_HOST,), (CPU_HOST,)])
def test_every_engine_that_is_not_chosen_has_its_reason(facts: ModelFacts | None, offers: tuple[Offer, ...]) -> None:
    choice = chosen(facts, *offers)
    assert set(choice.reasons) == set(ADAPTERS) - {choice.engine}
    assert all(choice.reasons.values())


def test_reasons_are_about_the_model_the_hosts_and_the_wish() -> None:
    gguf = chosen(GGUF, GPU_HOST).reasons
    assert "this model is gguf" in gguf["vllm"]
    assert "only where a deployment asks for it" in gguf["custom"]
    safe = chosen(QWEN, GPU_HOST).reasons
    assert "vllm is preferred" in safe["sglang"]
    assert "loads gguf" in safe["llama_cpp"]
    assert chosen(QWEN, GPU_HOST, engine="sglang").reasons["vllm"] == "the deployment asks for sglang"
    assert "no host offers sglang" in chosen(QWEN, CPU_HOST).reasons["sglang"]


@pytest.mark.parametrize(
    ("changes", "offers", "reason"),
    [
        ({"engine": "llama_cpp"}, (GPU_HOST,), "loads gguf"),
        ({"engine": "sglang"}, (CPU_HOST,), "no host offers sglang"),
        ({"engine": "sglang"}, (Offer("h", (SGLANG,), (T4,)),), "needs compute capability 8.0"),
        ({"engine": "vllm", "engine_version": "0.1"}, (GPU_HOST,), "no host offers vllm 0.1"),
        ({"engine": "vllm", "placement": {"gpus_per_replica": 0}}, (GPU_HOST,), "no host offers vllm"),
        ({"engine": "vllm", "placement": {"gpus_per_replica": 1}}, (CPU_HOST,), "with a card that it can use"),
        ({"engine": "vllm", "placement": {"gpu_types": ["A100"]}}, (GPU_HOST,), "no host offers vllm"),
        ({"engine": "vllm", "placement": {"vendors": ["amd"]}}, (GPU_HOST,), "no host offers vllm"),
        ({"engine": "vllm", "runtime": "docker"}, (GPU_HOST,), "no host offers vllm"),
    ],
)
def test_engine_that_is_asked_for_and_cannot_be_had_is_refused(
    changes: dict[str, Any], offers: tuple[Offer, ...], reason: str
) -> None:
    choice = chosen(QWEN, *offers, **changes)
    assert choice.engine == ""
    assert reason in choice.reasons[changes["engine"]]


def test_image_of_the_deployment_itself_runs_where_there_is_docker() -> None:
    changes: dict[str, Any] = {"engine": "sglang", "container": {"image": "x/y:1"}}
    docker = Offer("h", (LLAMA,), (H100,), ("process", "docker"))
    assert chosen(QWEN, docker, **changes).engine == "sglang"
    assert chosen(QWEN, CPU_HOST, **changes).engine == ""


def test_version_that_a_person_asks_for_is_pinned() -> None:
    older = Offer("h", (EngineBuild(engine="vllm", version="0.30.0", accelerators=(NVIDIA,), origin="/x"),), (H100,))
    assert chosen(QWEN, GPU_HOST, older, engine_version="0.30.0").version == "0.30.0"
    assert chosen(QWEN, older).version == "", "whatever build a host has"


def test_custom_engine_runs_whatever_its_author_says() -> None:
    choice = chosen(GGUF, CPU_HOST, engine="custom", custom={"command": ["x"]})
    assert (choice.engine, choice.version) == ("custom", "")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.gguf", Format.GGUF),
        ("a/b.GGUF", Format.GGUF),
        ("a/model.safetensors", Format.SAFETENSORS),
        ("a/pytorch_model.bin", Format.PYTORCH),
        ("m", Format.GGUF),
    ],
)
def test_name_says_the_format_where_nobody_has_looked(path: str, expected: Format) -> None:
    assert format_by_name(path) is expected
