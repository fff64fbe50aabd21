"""MindIE on one or several hosts of Ascend cards: the files and variables that it is started with. Pure.

A plan only: nothing installs or starts MindIE yet. Field names are those of MindIE 2's ``config.json``.
"""

from dataclasses import dataclass
from typing import Any

from fleet.engines.adapter import Start, Unstartable
from fleet.engines.environment import rendezvous
from fleet.sizing.sizing import Sizing

_FRACTION = 0.8
"""MindIE's own default of a card's memory."""
_PREFILL_BATCH = 50


@dataclass(frozen=True)
class Npu:
    """One card of the gang."""

    device_id: int
    """On its host."""
    address: str
    """Of its RoCE port."""


@dataclass(frozen=True)
class Plan:
    """Of one host."""

    config: dict[str, Any]
    """For ``conf/config.json``."""
    rank_table: dict[str, Any] | None
    """For the file that ``RANK_TABLE_FILE`` names, readable by its user alone; None: one host needs none."""
    env: dict[str, str]
    argv: tuple[str, ...]


def plan(start: Start, npus: tuple[tuple[Npu, ...], ...], rank_table_path: str) -> Plan:
    """``npus``: the claimed cards of each host, by rank. Raises Unstartable."""
    if start.sizing is None:
        raise Unstartable("MindIE is told every length and batch: it needs a sizing")
    if len(npus) != max(1, len(start.members)) or not all(npus):
        raise Unstartable("MindIE needs the claimed cards of every host, with the addresses of their RoCE ports")
    env = {"NPU_MEMORY_FRACTION": f"{start.sizing.utilization or _FRACTION:.6g}"}
    table = None
    if start.is_gang:
        table = _rank_table(start, npus)
        env |= {"RANK_TABLE_FILE": rank_table_path, "MIES_CONTAINER_IP": start.members[start.rank].address}
    mine = [npu.device_id for npu in npus[start.rank]]
    return Plan(_config(start, start.sizing, mine), table, env, ("mindieservice_daemon",))


def _config(start: Start, sizing: Sizing, devices: list[int]) -> dict[str, Any]:
    backend: dict[str, Any] = {
        "backendName": "mindieservice_llm_engine",
        "npuDeviceIds": [devices],
        "multiNodesInferEnabled": start.is_gang,
        "ModelDeployConfig": {
            "maxSeqLen": sizing.context,
            "maxInputTokenLen": sizing.context,
            "ModelConfig": [_model(start, sizing, len(devices))],
        },
        "ScheduleConfig": {
            "maxBatchSize": sizing.sequences,
            "maxPrefillBatchSize": min(_PREFILL_BATCH, sizing.sequences),
            "maxPrefillTokens": max(sizing.batched_tokens, sizing.context),
        },
    }
    if start.is_gang:
        backend["multiNodesInferPort"] = rendezvous(start)[1]
    return {"ServerConfig": _server(start), "BackendConfig": backend}


def _server(start: Start) -> dict[str, Any]:
    return {
        "ipAddress": start.address,
        "port": start.port,
        "managementPort": start.port,
        "metricsPort": start.port,
        "httpsEnabled": False,
        "allowAllZeroIpListening": False,
    }


def _model(start: Start, sizing: Sizing, world: int) -> dict[str, Any]:
    return {
        "modelName": start.spec.served_name,
        "modelWeightPath": start.model_path,
        "worldSize": world,
        "cpuMemSize": (start.spec.kv_cache.offload_bytes or 0) >> 30,
        "tp": sizing.shape.tensor_parallel,
        "pp": sizing.shape.pipeline_parallel,
        "trustRemoteCode": False,
    }


def _rank_table(start: Start, npus: tuple[tuple[Npu, ...], ...]) -> dict[str, Any]:
    servers, rank = [], 0
    for member, cards in zip(start.members, npus, strict=True):
        devices = []
        for npu in cards:
            devices.append({"device_id": str(npu.device_id), "device_ip": npu.address, "rank_id": str(rank)})
            rank += 1
        servers.append({"server_id": member.address, "container_ip": member.address, "device": devices})
    return {"version": "1.0", "server_count": str(len(servers)), "server_list": servers, "status": "completed"}
