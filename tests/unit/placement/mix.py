"""A synthetic fleet and the default mix of requests, for the simulation and the benchmark."""

import random
from collections import Counter
from dataclasses import dataclass

from fleet.engines.spec import EngineSpec
from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.placement.decision import Decision
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Need, Needs
from fleet.placement.place import place
from fleet.placement.request import PlacementRequest
from fleet.placement.view import GpuView, HostView
from fleet.sizing.sizing import Shape
from fleet.specs import PlacementSpec

GIB = 1 << 30
CARD = 80 * GIB
GPUS = 8
MIX = ((35, 1, 18 * GIB), (20, 1, 40 * GIB), (15, 1, CARD), (12, 2, CARD), (10, 4, CARD), (8, 8, CARD))
"""(share in percent, cards, bytes on each)."""
BUILD = EngineBuild(engine="vllm", version="1", accelerators=(AcceleratorKind.NVIDIA,))


def host(number: int, deployments: int = 0) -> HostView:
    """Eight linked cards on two NUMA nodes; one of sixteen racks' worth of labels."""
    name = f"host-{number:05}"
    uuids = [f"{name}-{n}" for n in range(GPUS)]
    gpus = tuple(
        GpuView(
            uuid=uuid,
            free_bytes=CARD,
            total_bytes=CARD,
            name="NVIDIA H100 80GB HBM3",
            compute_capability="9.0",
            numa_node=n // 4,
            index=n,
            links=tuple((other, 5) for other in uuids if other != uuid),
        )
        for n, uuid in enumerate(uuids)
    )
    return HostView(
        host_id=name,
        name=name,
        generation=1,
        labels={"rack": f"r{number // 32}", "zone": f"z{number // 512}", "tier": "ab"[number % 2]},
        ram_free_bytes=2048 * GIB,
        ram_total_bytes=2048 * GIB,
        gpus=gpus,
        engines=(BUILD,),
        replicas_of_deployment=0,
        model=None,
        fabric_address=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
    )


def request(deployment: str, number: int, strategy: str = "auto", **wishes: object) -> PlacementRequest:
    wish = PlacementSpec.model_validate({"strategy": strategy, **wishes})
    spec = EngineSpec(engine="vllm", engine_version="1", model_path="m", served_name=deployment, placement=wish)
    return PlacementRequest(instance_id=f"{deployment}/{number}", deployment=deployment, fence=1, spec=spec)


def needs(gpus: int, size: int, hosts: int = 1) -> Needs:
    shape = Shape(tensor_parallel=gpus // hosts, pipeline_parallel=hosts, hosts=hosts)
    return Needs(otherwise=(Need(shape, size, 4 * GIB),))


@dataclass(frozen=True)
class Outcome:
    asked: Counter[int]
    refused: Counter[int]
    """By cards."""

    def share(self, gpus: int) -> float:
        return self.refused[gpus] / max(1, self.asked[gpus])


def simulate(strategy: str, seed: int, *, hosts: int = 125, requests: int = 4000, most_used: float = 0.8) -> Outcome:
    """Requests of the mix come, random ones go whenever the next would take the fleet above ``most_used``; one that is
    refused is not asked again. Counted from the first departure on. A deployment has one to four replicas."""
    dice, fleet = random.Random(seed), Fleet.of([host(n) for n in range(hosts)])
    running: list[tuple[Decision, int]] = []
    used, full, outcome = 0, False, Outcome(Counter(), Counter())
    deployment, left = 0, 0
    gpus = size = 0
    for number in range(requests):
        if not left:
            deployment, left = deployment + 1, dice.randint(1, 4)
            _, gpus, size = dice.choices(MIX, weights=[share for share, _, _ in MIX])[0]
        left -= 1
        while used + gpus * size > most_used * hosts * GPUS * CARD:
            full = True
            gone, freed = running.pop(dice.randrange(len(running)))
            fleet.give_back(gone)
            used -= freed
        found = place(request(f"d{deployment}", number, strategy), needs(gpus, size), fleet)
        outcome.asked[gpus] += full
        if isinstance(found, Decision):
            fleet.take(found)
            running.append((found, gpus * size))
            used += gpus * size
        else:
            outcome.refused[gpus] += full
    return outcome
