"""Many hosts with GPUs and replicas on them, written straight into a database."""

from typing import Any

from sqlalchemy import insert
from sqlmodel import Session

from fleet.db.tables import ClaimRow, DeploymentRow, GpuRow, HostRow, InstanceRow, now
from fleet.inventory import AcceleratorKind, EngineBuild, Gpu, Inventory, Link, LinkType
from fleet.placement.request import Placement
from fleet.states import ClaimState, HostState, InstanceState

GiB = 1 << 30
GPUS = 8
GPU_BYTES = 80 * GiB
RAM_BYTES = 1024 * GiB
PORTS = (20000, 21999)


def add_machines(
    session: Session,
    hosts: int,
    *,
    gpus: int = GPUS,
    gpu_bytes: int = GPU_BYTES,
    ram_bytes: int = RAM_BYTES,
    ports: tuple[int, int] = PORTS,
) -> None:
    """Ready hosts ``h0000``, …, with GPUs ``h0000-g0``, …; all cards of a host are linked."""
    made = [(f"h{n:04d}", _inventory(f"h{n:04d}", gpus, gpu_bytes, ram_bytes, ports)) for n in range(hosts)]
    _insert(session, [_host(host_id, inventory) for host_id, inventory in made])
    _insert(session, [_gpu(host_id, gpu) for host_id, inventory in made for gpu in inventory.gpus])


def add_claims(session: Session, hosts: int, claims: int, *, memory_bytes: int = 16 * GiB) -> None:
    """Ready replicas of 200 deployments, each on one GPU, evenly over the hosts and their cards."""
    placed = [(f"d{n % 200}/{n}-a", f"h{n % hosts:04d}", n // hosts % GPUS) for n in range(claims)]
    _insert(session, [_claim(*place, memory_bytes) for place in placed])
    _insert(session, [_instance(instance_id, host_id) for instance_id, host_id, _ in placed])
    _insert(session, [_deployment(name) for name in sorted({i.partition("/")[0] for i, _, _ in placed})])
    session.connection().exec_driver_sql(
        "UPDATE gpu SET used = (SELECT coalesce(sum(memory_bytes), 0) FROM claim WHERE claim.gpu_uuid = gpu.uuid)"
    )


def _insert(session: Session, rows: list[Any]) -> None:
    session.connection().execute(insert(type(rows[0])), [row.model_dump() for row in rows])


def _inventory(host_id: str, gpus: int, gpu_bytes: int, ram_bytes: int, ports: tuple[int, int]) -> Inventory:
    return Inventory(
        hostname=host_id,
        machine_id=host_id,
        boot_id="1",
        os="Linux",
        arch="x86_64",
        cpu_count=64,
        ram_bytes=ram_bytes,
        ram_allocatable_bytes=ram_bytes,
        disk_bytes=1 << 40,
        disk_free_bytes=1 << 39,
        gpus=tuple(_card(host_id, index, gpus, gpu_bytes) for index in range(gpus)),
        engines=(EngineBuild(engine="vllm", version="0.11.0", accelerators=(AcceleratorKind.NVIDIA,)),),
        labels={"rack": f"r{int(host_id[1:]) // 8}"},
        port_range=ports,
        fabric_address=f"10.0.{int(host_id[1:]) // 250}.{int(host_id[1:]) % 250 + 1}",
    )


def _card(host_id: str, index: int, gpus: int, gpu_bytes: int) -> Gpu:
    peers = (f"{host_id}-g{n}" for n in range(gpus) if n != index)
    return Gpu(
        uuid=f"{host_id}-g{index}",
        kind=AcceleratorKind.NVIDIA,
        name="NVIDIA H100 80GB HBM3",
        memory_bytes=gpu_bytes,
        index=index,
        compute_capability="9.0",
        numa_node=index * 2 // gpus,
        pci_address=f"0000:{index:02x}:00.0",
        links=tuple(Link(peer=peer, type=LinkType.NVLINK, count=18) for peer in peers),
    )


def _host(host_id: str, inventory: Inventory) -> HostRow:
    return HostRow(
        id=host_id,
        name=host_id,
        state=HostState.READY,
        credential_hash=host_id,
        generation=1,
        fingerprint=inventory.fingerprint(),
        ram_allocatable=inventory.ram_allocatable_bytes,
        port_first=PORTS[0] if inventory.port_range is None else inventory.port_range[0],
        port_last=PORTS[1] if inventory.port_range is None else inventory.port_range[1],
        fabric_address=inventory.fabric_address,
        labels=inventory.labels,
        inventory=inventory.model_dump(mode="json"),
    )


def _gpu(host_id: str, gpu: Gpu) -> GpuRow:
    return GpuRow(
        uuid=gpu.uuid,
        host_id=host_id,
        index=gpu.index,
        kind=gpu.kind,
        name=gpu.name,
        memory_bytes=gpu.memory_bytes,
        allocatable=gpu.memory_bytes,
        details=gpu.model_dump(mode="json"),
        generation=1,
    )


def _claim(instance_id: str, host_id: str, gpu: int, memory_bytes: int) -> ClaimRow:
    placement = Placement(host_id=host_id, gpu_uuids=(f"{host_id}-g{gpu}",), memory_bytes=memory_bytes)
    return ClaimRow(
        instance_id=instance_id,
        fence=1,
        gpu_uuid=placement.gpu_uuids[0],
        host_id=host_id,
        memory_bytes=memory_bytes,
        state=ClaimState.BOUND,
        placement=placement.model_dump(mode="json"),
    )


def _instance(instance_id: str, host_id: str) -> InstanceRow:
    return InstanceRow(
        id=instance_id,
        deployment=instance_id.partition("/")[0],
        revision=1,
        launch=1,
        slot=0,
        state=InstanceState.READY,
        host_id=host_id,
        fence=1,
        projection=1,
    )


def _deployment(name: str) -> DeploymentRow:
    return DeploymentRow(
        name=name,
        labels={"team": name},
        spec={},
        engine="vllm",
        engine_version="0.11.0",
        generation=1,
        revision=1,
        launch=1,
        phase="ready",
        desired_replicas=1,
        ready_replicas=1,
        projection=1,
        created_at=now(),
    )
