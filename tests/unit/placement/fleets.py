"""Hosts, requests and needs for tests of placement."""

from dataclasses import replace
from typing import Any

from fleet.engines.spec import EngineSpec
from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.placement.decision import Decision, Refusal, Seat
from fleet.placement.fleet import Fleet
from fleet.placement.guess import guessed
from fleet.placement.needs import Needs
from fleet.placement.place import place
from fleet.placement.request import PlacementRequest
from fleet.placement.view import GpuView, HostView, ModelFile
from fleet.specs import ContainerSpec, PlacementSpec

CPU_ONLY = EngineBuild(engine="llama_cpp", version="1")
BOTH = EngineBuild(engine="llama_cpp", version="1", accelerators=(AcceleratorKind.CPU, AcceleratorKind.NVIDIA))
GIB = 1 << 30


def request(**changes: Any) -> PlacementRequest:
    """``changes``: of the request, its spec, or its wishes for placement."""
    wishes = {k: changes.pop(k) for k in list(changes) if k in PlacementSpec.model_fields}
    container = ContainerSpec(image=changes.pop("image", None) or None)
    told = {k: changes.pop(k) for k in list(changes) if k in EngineSpec.model_fields}
    spec = EngineSpec(engine="llama_cpp", engine_version="1", model_path="m.gguf", served_name="chat", memory_bytes=GIB)
    spec = spec.model_copy(update={**told, "placement": PlacementSpec.model_validate(wishes), "container": container})
    made = PlacementRequest(instance_id="chat/1-a", deployment="chat", fence=1, spec=spec)
    return made.model_copy(update=changes)


def host(host_id: str = "a", free: int = 4 * GIB, gpus: tuple[int, ...] = (), **changes: object) -> HostView:
    """With one card of 80 GiB for each of ``gpus``, of which so many bytes are free."""
    views = tuple(GpuView(f"{host_id}-gpu-{n}", memory, 80 * GIB, index=n) for n, memory in enumerate(gpus))
    made = HostView(
        host_id=host_id,
        name=f"{host_id}-name",
        generation=7,
        labels={},
        ram_free_bytes=free,
        ram_total_bytes=max(free, 8 * GIB),
        gpus=views,
        engines=(BOTH,) if gpus else (CPU_ONLY,),
        replicas_of_deployment=0,
        model=ModelFile(f"/models/{host_id}/m.gguf", GIB // 2),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def cards(name: str, host_id: str, *free: int, total: int = 80 * GIB, capability: str = "", **more: Any) -> Any:
    return tuple(
        GpuView(f"{host_id}-gpu-{n}", left, total, name=name, compute_capability=capability, index=n, **more)
        for n, left in enumerate(free)
    )


def linked(gpus: tuple[GpuView, ...], *groups: tuple[int, ...]) -> tuple[GpuView, ...]:
    """With direct links among the cards of each group."""
    peers = {n: [gpus[p].uuid for p in group if p != n] for group in groups for n in group}
    return tuple(replace(g, links=tuple((uuid, 5) for uuid in peers.get(n, ()))) for n, g in enumerate(gpus))


def answer(asked: PlacementRequest, *hosts: HostView, needs: Needs | None = None, **more: Any) -> Decision | Refusal:
    """Without ``needs``: those that are guessed from the size of the file, on the hosts that have it."""
    fleet = Fleet.of(hosts, asked.deployment)
    if needs is not None:
        return place(asked, needs, fleet, **more)
    files = {h.host_id: h.model.size_bytes for h in hosts if h.model is not None}
    return place(asked, guessed(asked.spec, max(files.values(), default=0)), fleet, files=files.keys(), **more)


def chosen(asked: PlacementRequest, *hosts: HostView, **more: Any) -> Seat:
    """The only seat of the decision."""
    [seat] = decided(asked, *hosts, **more).seats
    return seat


def decided(asked: PlacementRequest, *hosts: HostView, **more: Any) -> Decision:
    found = answer(asked, *hosts, **more)
    assert isinstance(found, Decision), found
    return found


def refused(asked: PlacementRequest, *hosts: HostView, **more: Any) -> tuple[str, ...]:
    found = answer(asked, *hosts, **more)
    assert isinstance(found, Refusal), found
    assert sum(removed.hosts for removed in found.filters) == len(hosts)
    assert sum(removed.gpus for removed in found.filters) == sum(len(h.gpus) for h in hosts)
    return found.reasons
