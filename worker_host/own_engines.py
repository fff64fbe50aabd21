"""What this host answers for, in the words of telemetry."""

from fleet.telemetry import EngineStatus
from worker_host.gpu_owners import OwnEngine
from worker_host.proxy import Load
from worker_host.records import EngineRecord


def own_engine(record: EngineRecord, load: Load | None) -> OwnEngine:
    """``load``: what it was asked through the host's proxy, if anything."""
    process, placement = record.process, record.launch.placement
    status = EngineStatus(
        instance_id=record.launch.instance_id,
        fence=record.launch.fence,
        runtime=process.kind if process is not None else "",
        name=process.name if process is not None else "",
        state=_state(record),
        requests=load.requests if load is not None else 0,
        in_flight=load.in_flight if load is not None else 0,
    )
    return OwnEngine(
        status=status,
        pids=frozenset({process.pid} if process is not None and process.pid is not None else ()),
        gpu_uuids=placement.gpu_uuids,
        memory_bytes=placement.memory_bytes,
    )


def _state(record: EngineRecord) -> str:
    if record.ended is not None:
        return "ended"
    if record.suspended:
        return "suspended"
    if record.ready_since is None:
        return "starting"
    return "suspect" if record.suspect else "ready"
