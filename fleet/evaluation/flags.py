"""What an engine would be told on its command line. Pure."""

from pathlib import Path

from fleet.engines.adapter import EngineAdapter, Start, Unstartable
from fleet.engines.spec import EngineSpec
from fleet.placement.request import Member, ModelCard
from fleet.sizing.facts import ModelFacts
from fleet.sizing.sizing import GpuClass, Sizing

_PLACE = {"--model", "--model-path", "--served-model-name", "--alias", "--host", "--port"}
"""Say where, not how: each is followed by one value."""
_ADDRESS, _PORT = "127.0.0.1", 20_000
_CORES = 16


def flags_of(adapter: EngineAdapter, spec: EngineSpec, facts: ModelFacts, gpu: GpuClass, sizing: Sizing) -> list[str]:
    """Of the leader, without addresses and names; empty where the engine's command line cannot be made from this."""
    try:
        argv = adapter.command(_start(adapter, spec, facts, gpu, sizing)).argv
    except Unstartable:
        return []
    first = next((n for n, part in enumerate(argv) if part.startswith("--")), len(argv))
    found: list[str] = []
    parts = iter(argv[first:])
    for part in parts:
        if part in _PLACE:
            next(parts, None)
        else:
            found.append(part)
    return found


def _start(adapter: EngineAdapter, spec: EngineSpec, facts: ModelFacts, gpu: GpuClass, sizing: Sizing) -> Start:
    uuids = tuple(f"GPU-{n}" for n in range(sizing.shape.gpus_per_host)) if sizing.gpu_bytes else ()
    hosts = sizing.shape.hosts
    ports = tuple(range(_PORT, _PORT + 4))
    members = tuple(
        Member(host_id=f"host-{n + 1}", gpu_uuids=uuids, ports=ports, address=f"10.0.0.{n + 1}")
        for n in range(hosts if hosts > 1 else 0)
    )
    return Start(
        binary=Path(adapter.program or "engine"),
        spec=spec,
        model_path=spec.model_path,
        gpu_uuids=uuids,
        address=_ADDRESS,
        port=_PORT,
        cpu_count=_CORES,
        sizing=sizing,
        card=ModelCard.of(facts),
        members=members,
        ports=ports,
        accelerator=gpu.kind,
        booked_bytes=sizing.gpu_bytes or sizing.ram_bytes,
        card_bytes=gpu.memory_bytes if uuids else 0,
    )
