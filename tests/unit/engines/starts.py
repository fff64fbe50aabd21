"""Launches for tests of adapters."""

from pathlib import Path

from fleet.engines.adapter import Start
from fleet.engines.spec import EngineSpec
from fleet.placement.request import Member, ModelCard
from fleet.sizing.facts import Format, LayerKind, Layers, ModelFacts, Quantization, Task
from fleet.sizing.sizing import Shape, Sizing

GIB = 1 << 30


def spec_of(*args: str, **changes: object) -> EngineSpec:
    made = EngineSpec(engine="vllm", engine_version="", model_path="Qwen3-8B", served_name="chat", args=args)
    return made.model_copy(update=changes)


def sizing_of(**changes: object) -> Sizing:
    made = Sizing(
        shape=Shape(tensor_parallel=2),
        gpu_bytes=72 * GIB,
        ram_bytes=8 * GIB,
        context=32768,
        sequences=128,
        batched_tokens=8192,
        kv_bytes=50 * GIB,
        concurrency=12.5,
        utilization=0.9,
    )
    return made.model_copy(update=changes)


ON_CPU = sizing_of(shape=Shape(), gpu_bytes=0, utilization=None, context=2048, sequences=4, kv_bytes=GIB)
CARD = ModelCard(architecture="Qwen3ForCausalLM", model_type="qwen3", format="safetensors")


def start_of(spec: EngineSpec, sizing: Sizing | None = None, **changes: object) -> Start:
    known: dict[str, object] = {"gpu_uuids": ("GPU-a", "GPU-b"), "card": CARD, "sizing": sizing, **changes}
    return Start(
        binary=Path("/e/bin/engine"),
        spec=spec,
        model_path="/models/m",
        address="127.0.0.1",
        port=9001,
        cpu_count=8,
        **known,  # type: ignore[arg-type]
    )


def gang_of(rank: int, *, cards: int = 2) -> dict[str, object]:
    """Two hosts with ``cards`` each."""
    members = tuple(
        Member(
            host_id=f"h{n}",
            gpu_uuids=tuple(f"GPU-{n}{c}" for c in range(cards)),
            ports=(9001 + n, 9101 + n),
            address=f"10.0.0.{n + 1}",
        )
        for n in range(2)
    )
    return {
        "rank": rank,
        "members": members,
        "gpu_uuids": members[rank].gpu_uuids,
        "ports": members[rank].ports,
        "interface": "eth1",
    }


def facts_of(**changes: object) -> ModelFacts:
    made = ModelFacts(
        format=Format.SAFETENSORS,
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        task=Task.GENERATE,
        fingerprint="0" * 32,
        hidden=4096,
        layers_total=36,
        heads=32,
        vocab=151936,
        context=40960,
        layers=(Layers(kind=LayerKind.FULL, count=36, kv_heads=8, key_dim=128, value_dim=128),),
    )
    return made.model_copy(update=changes)


def quantized(method: str) -> Quantization:
    return Quantization(method=method, bits=8)
