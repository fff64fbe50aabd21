"""What a placement costs in memory: 1,000 hosts with 8 GPUs and 4,000 running instances, and how that grows.

``python -m tests.bench.placement`` prints one JSON object a line. Then the whole path up to the claim in a database
(``whole_path``), and the simulation: how many requests of a mix of
models are refused for fragmentation by each strategy, in a fleet that is held under 80 % of its memory.
"""

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fleet.placement.decision import Decision
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Needs
from fleet.placement.place import place, replicas_that_fit
from fleet.placement.request import PlacementRequest
from tests.bench import whole_path
from tests.unit.placement.mix import CARD, GIB, GPUS, MIX, host, needs, request, simulate

HOSTS = 1000
INSTANCES_PER_HOST = 4
P50_MS, P99_MS = 1.0, 10.0
REFUSED = 0.01
SEEDS = range(5)
ROUNDS = 400
SIMULATED = 10_000


@dataclass(frozen=True)
class Case:
    name: str
    needs: Needs
    wishes: dict[str, object]


CASES = (
    Case("1_gpu", needs(1, 18 * GIB), {}),
    Case("4_gpus", needs(4, CARD), {}),
    Case("8_gpus", needs(8, CARD), {}),
    Case("gang_16x8", needs(128, CARD, hosts=16), {"multi_host": True}),
    Case("1_gpu_all_wishes", needs(1, 18 * GIB), {
        "host_selector": {"tier": "a"}, "spread_by": "rack", "avoid": {"noisy": "yes"}, "gpu_types": ["h100"],
    }),
    Case("refused", needs(1, CARD + 1), {}),
)  # fmt: skip


def main() -> None:
    for hosts in (100, HOSTS, 10 * HOSTS):
        _measure(hosts)
    whole_path.main()
    for strategy in ("auto", "spread", "binpack"):
        _simulate(strategy)


def _measure(hosts: int) -> None:
    began = time.perf_counter()
    fleet = Fleet.of([host(number) for number in range(hosts)])
    _print(f"packing_{hosts}_hosts", (time.perf_counter() - began) * 1000, "ms")
    running = _fill(fleet, hosts * INSTANCES_PER_HOST)
    _print(f"running_on_{hosts}_hosts", running, "1", used=round(_used(fleet), 3))
    for case in CASES:
        if case.name != "gang_16x8" or hosts > 100:
            _report(f"place_{case.name}_on_{hosts}_hosts", _placing(fleet, case), hosts)
    view = fleet.view("host-00007")
    _report(f"update_of_a_host_among_{hosts}", _times(lambda: fleet.update(view)), hosts)
    began = time.perf_counter()
    fit = replicas_that_fit(_asked(CASES[0], 0), CASES[0].needs, fleet, at_most=1000)
    _print(f"replicas_that_fit_on_{hosts}_hosts", (time.perf_counter() - began) * 1000, "ms", found=fit)


def _report(metric: str, times: list[float], hosts: int) -> None:
    goals = hosts == HOSTS
    _print(f"{metric}_p50", statistics.median(times), "ms", **({"target": P50_MS} if goals else {}))
    _print(f"{metric}_p99", times[int(len(times) * 0.99)], "ms", **({"target": P99_MS} if goals else {}))


def _fill(fleet: Fleet, wanted: int) -> int:
    """Instances of the mix, of deployments with one to four replicas; at 80 % of the memory in the end."""
    dice, deployment, count = random.Random(7), 0, 0
    while count < wanted and _used(fleet) < 0.8:
        deployment += 1
        _, gpus, size = dice.choices(MIX, weights=[share for share, _, _ in MIX])[0]
        for _ in range(dice.randint(1, 4)):
            found = place(request(f"d{deployment}", count), needs(gpus, size), fleet)
            assert isinstance(found, Decision), found
            fleet.take(found)
            count += 1
    return count


def _used(fleet: Fleet) -> float:
    return 1 - float(fleet.gpu["free"].sum()) / (len(fleet) * GPUS * CARD)


def _placing(fleet: Fleet, case: Case) -> list[float]:
    """Each takes and gives back what it found, so that all see a fleet that changes and stays as full."""
    times, taken = [], []
    for number in range(ROUNDS):
        asked = _asked(case, number)
        began = time.perf_counter()
        found = place(asked, case.needs, fleet)
        times.append((time.perf_counter() - began) * 1000)
        assert isinstance(found, Decision) == (case.name != "refused"), found
        if isinstance(found, Decision):
            fleet.take(found)
            taken.append(found)
        if len(taken) > 2:
            fleet.give_back(taken.pop(0))
    for decision in taken:
        fleet.give_back(decision)
    return sorted(times)


def _asked(case: Case, number: int) -> PlacementRequest:
    """Some are of deployments that have replicas, some are not."""
    return request(f"d{number % 200}", number, **case.wishes)  # type: ignore[arg-type]


def _times(act: Callable[[], object]) -> list[float]:
    def each() -> Iterator[float]:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            act()
            yield (time.perf_counter() - began) * 1000

    return sorted(each())


def _simulate(strategy: str) -> None:
    runs = [simulate(strategy, seed, requests=SIMULATED) for seed in SEEDS]
    for gpus in sorted({count for _, count, _ in MIX}):
        worst = max(run.share(gpus) for run in runs)
        mean = sum(run.refused[gpus] for run in runs) / sum(run.asked[gpus] for run in runs)
        goal = {"target": REFUSED} if (strategy, gpus) == ("auto", 8) else {}
        _print(f"refused_{gpus}_gpu_requests_{strategy}", mean, "1", worst_of_5=worst, **goal)


def _print(metric: str, value: float, unit: str, **vs: float) -> None:
    rounded = {name: round(against, 4) for name, against in vs.items()}
    line = {"bench": "placement", "metric": metric, "value": round(value, 4), "unit": unit, "vs": rounded}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
