"""Small fleets in any state, for the planners that make room."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from fleet.engines.spec import EngineSpec
from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.placement.decision import Decision
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Need, Needs
from fleet.placement.request import PlacementRequest
from fleet.placement.view import GpuView, HostView, ModelFile, Occupant
from fleet.policy.priority import Standing
from fleet.policy.trial import best_place
from fleet.sizing.sizing import Shape
from fleet.specs import PlacementSpec

CARD = 80
RAM = 100
BUILD = EngineBuild(engine="llama_cpp", version="1", accelerators=(AcceleratorKind.CPU, AcceleratorKind.NVIDIA))
BORN = datetime(2026, 1, 1, tzinfo=UTC)


def request(name: str = "new", priority: int = 2, **wishes: Any) -> PlacementRequest:
    excluded = wishes.pop("excluded_hosts", ())
    spec = EngineSpec(
        engine="llama_cpp",
        engine_version="1",
        model_path="m.gguf",
        served_name=name,
        placement=PlacementSpec.model_validate(wishes),
    )
    return PlacementRequest(
        instance_id=f"{name}/1-a", deployment=name, fence=1, spec=spec, priority=priority, excluded_hosts=excluded
    )


def occupant(instance: str, *cards: tuple[str, int], ram: int = 0, **more: Any) -> Occupant:
    return Occupant(
        instance_id=instance,
        deployment=instance.partition("/")[0],
        gpu_bytes=cards,
        ram_bytes=ram,
        **{"priority": 0, "ready": True, "since": BORN} | more,
    )


def host(host_id: str, *occupants: Occupant, cards: int = 0, **more: Any) -> HostView:
    """Of RAM alone, or with ``cards`` named ``<host>-0``, ``<host>-1``, …; free is what nobody holds."""
    taken: Counter[str] = Counter()
    for uuid, size in (pair for o in occupants for pair in o.gpu_bytes):
        taken[uuid] += size
    names = [f"{host_id}-{n}" for n in range(cards)]
    view = HostView(
        host_id=host_id,
        name=host_id.upper(),
        generation=1,
        labels={},
        ram_free_bytes=RAM - sum(o.ram_bytes for o in occupants),
        ram_total_bytes=RAM,
        gpus=tuple(GpuView(uuid, CARD - taken[uuid], CARD) for uuid in names),
        engines=(BUILD,),
        replicas_of_deployment=0,
        model=ModelFile("/models/m.gguf", 1),
        occupants=occupants,
    )
    return replace(view, **more)


def on_cards(size: int, count: int = 1) -> Needs:
    return Needs(otherwise=(Need(Shape(tensor_parallel=count), size),))


def in_ram(size: int) -> Needs:
    return Needs(cpu=(Need(ram_bytes=size),))


def placed(asked: PlacementRequest, needs: Needs, hosts: Sequence[HostView]) -> Decision | None:
    return best_place(asked, needs, Fleet.of(hosts))


def standings(hosts: Sequence[HostView], **changes: Standing) -> dict[str, Standing]:
    """As their occupants say, without floors."""
    found: dict[str, Standing] = {}
    for o in {o.instance_id: o for h in hosts for o in h.occupants}.values():
        known = found.get(o.deployment, Standing(priority=o.priority, floor=0))
        found[o.deployment] = replace(known, ready=known.ready + (o.ready and not o.leaving))
    return found | changes


@st.composite
def fleets(draw: st.DrawFn, most_hosts: int = 3) -> list[HostView]:
    """With up to three cards each, filled with replicas of any priority; some hold two cards, some are gangs."""
    hosts: list[HostView] = []
    priorities = {f"d{n}": draw(st.integers(0, 3)) for n in range(4)}
    count = 0
    for h in range(draw(st.integers(1, most_hosts))):
        cards = draw(st.integers(1, 3))
        free = {f"h{h}-{n}": CARD for n in range(cards)}
        occupants: list[Occupant] = []
        for _ in range(draw(st.integers(0, 5))):
            count += 1
            name = draw(st.sampled_from(sorted(priorities)))
            size = draw(st.sampled_from([10, 20, 30, 40, 80]))
            on = [u for u, left in free.items() if left >= size][: draw(st.integers(1, 2))]
            if not on:
                continue
            for uuid in on:
                free[uuid] -= size
            occupants.append(
                occupant(
                    f"{name}/{count}",
                    *((uuid, size) for uuid in on),
                    priority=priorities[name],
                    ready=draw(st.booleans()),
                    leaving=draw(st.integers(0, 5)) == 0,
                    since=BORN + timedelta(seconds=count),
                )
            )
        hosts.append(host(f"h{h}", *occupants, cards=cards))
    return hosts


@st.composite
def standings_of(draw: st.DrawFn, hosts: Sequence[HostView]) -> Mapping[str, Standing]:
    return {
        name: replace(s, floor=draw(st.integers(0, 3)), below_floor=draw(st.booleans()))
        for name, s in standings(hosts).items()
    }
