"""The whole path of a placement, as the controller goes it: look, size, decide, claim, on both databases.

``python -m tests.bench.whole_path [hosts]`` prints one JSON object a line. The fleet is that of ``tests.bench.claims``;
the model is Qwen3-8B on vLLM, whose memory is worked out anew each time. Hosts answer at once that they have it.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import cast

from temporalio.client import Client

from activities.placement import PlacementActivities
from activities.preemption import RoomMaker
from activities.waiting import WaitingInstances
from fleet.access.sealing import master_sealer
from fleet.db.session import Database
from fleet.engines.spec import EngineSpec
from fleet.host_client import FileFacts, HostAddress
from fleet.model_files import ModelFiles
from fleet.placement.request import PlacementRequest
from tests.bench.claims import HOSTS, databases
from tests.unit.sizing.checkpoints import facts_of

PLACEMENTS = 200
MODEL = facts_of("Qwen/Qwen3-8B")


class _EveryHostHasIt:
    async def on(self, hosts: Sequence[HostAddress], path: str) -> dict[str, FileFacts]:
        facts = FileFacts(path=path, exists=True, readable=True, size_bytes=MODEL.file_bytes, model=MODEL)
        return {host.host_id: facts for host in hosts}


def main(hosts: int = HOSTS) -> None:
    asyncio.run(_run(hosts))


async def _run(hosts: int) -> None:
    before: float | None = None
    for kind, database in databases(hosts):
        times = sorted(await _placing(database))
        p50 = statistics.median(times)
        _print(f"whole_path_{kind}_{hosts}_hosts_p50", p50, before)
        _print(f"whole_path_{kind}_{hosts}_hosts_p99", times[int(len(times) * 0.99)], None)
        before = p50


async def _placing(database: Database) -> list[float]:
    room = RoomMaker(database, cast(Client, None), drain=timedelta(seconds=30))
    files, waiting = cast(ModelFiles, _EveryHostHasIt()), cast(WaitingInstances, None)
    placing = PlacementActivities(database, files, master_sealer("bench"), waiting, room)
    await placing.place_instance(_request(0))
    times = []
    for number in range(1, PLACEMENTS + 1):
        began = time.perf_counter()
        answer = await placing.place_instance(_request(number))
        times.append((time.perf_counter() - began) * 1000)
        assert answer.placement is not None, answer
        assert answer.placement.sizing is not None
    return times


def _request(number: int) -> PlacementRequest:
    spec = EngineSpec(
        engine="vllm",
        engine_version="0.11.0",
        model_path="/models/qwen3-8b",
        served_name="bench",
        max_model_len=8192,
        concurrency=4,
    )
    return PlacementRequest(instance_id=f"bench/{number}-a", deployment="bench", fence=1, spec=spec)


def _print(metric: str, value: float, vs: float | None) -> None:
    line = {"bench": "placement", "metric": metric, "value": round(value, 2), "unit": "ms"}
    print(json.dumps(line | {"vs": None if vs is None else {"sqlite": round(vs, 2)}}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
