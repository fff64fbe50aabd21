"""A job as Docker is told to run it."""

from pathlib import Path
from typing import Any

import docker
from docker.types import DeviceRequest, LogConfig, Mount, Ulimit

from worker_host.runtime.protocol import LOOPBACK, Container, Job

HOST, INSTANCE, FENCE = "holdfast.host", "holdfast.instance", "holdfast.fence"
PORT, ATTEMPT = "holdfast.port", "holdfast.attempt"
NETWORK = "holdfast"
_SHM_BYTES = 10 << 30
_ULIMITS = {"memlock": -1, "stack": 64 << 20, "nofile": 1 << 20}
"""Of engines with accelerators: pinned memory, deep stacks, many connections."""
_NS = 10**9


def name_of(job: Job, host_id: str) -> str:
    """Of its container: nobody else has it, and it has no other."""
    return f"holdfast-{job.engine.instance_id.replace('/', '.')}-{job.engine.fence}-{job.attempt}-{host_id[:12]}"


def arguments(api: docker.APIClient, job: Job, host_id: str, *, without_ulimits: set[str]) -> dict[str, Any]:
    """For ``create_container``."""
    container = job.container
    assert container is not None  # noqa: S101
    arguments: dict[str, Any] = {
        "image": container.image,
        "command": list(job.argv),
        **({"entrypoint": [container.program]} if container.program else {}),
        "environment": {**job.env, **container.devices.env},
        "labels": {
            HOST: host_id,
            INSTANCE: job.engine.instance_id,
            FENCE: str(job.engine.fence),
            PORT: str(job.port),
            ATTEMPT: str(job.attempt),
        },
        "detach": True,
        "stdin_open": False,
        "tty": False,
        "healthcheck": {"test": ["NONE"]},  # its host asks it
        "host_config": api.create_host_config(**_host_config(job, container, without_ulimits)),
    }
    if not container.host_network:
        arguments["ports"] = [job.port]
    return arguments


def _host_config(job: Job, container: Container, without_ulimits: set[str]) -> dict[str, Any]:
    devices = container.devices
    present = [path for path in devices.devices_if_present if Path(path).exists()]
    mounts = [*container.mounts, *(Path(p) for p in devices.mounts_if_present if Path(p).exists())]
    config: dict[str, Any] = {
        "network_mode": "host" if container.host_network else NETWORK,
        "mounts": [Mount(str(path), str(path), type="bind", read_only=True) for path in mounts],
        "devices": [f"{path}:{path}:rwm" for path in (*devices.devices, *present)],
        "group_add": list(devices.groups),
        "cap_add": list(devices.cap_add),
        "security_opt": ["no-new-privileges:true", *devices.security_opt],
        "restart_policy": {"Name": "no"},
        "log_config": LogConfig(type="json-file", config={"max-size": "20m", "max-file": "3"}),
        "init": False,
    }
    if not container.host_network:
        config["port_bindings"] = {job.port: (LOOPBACK, job.port)}
    if devices.runtime:
        config["runtime"] = devices.runtime
    if devices.gpu_ids:
        config["device_requests"] = [DeviceRequest(device_ids=list(devices.gpu_ids), capabilities=[["gpu"]])]
    if container.host_ipc or devices.host_ipc:
        config["ipc_mode"] = "host"
    else:
        config["shm_size"] = container.shm_bytes or _SHM_BYTES
    limits = {name: value for name, value in _ULIMITS.items() if name not in without_ulimits}
    config["ulimits"] = [Ulimit(name=name, soft=value, hard=value) for name, value in limits.items()]
    if container.cpus is not None:
        config["nano_cpus"] = int(container.cpus * _NS)
    if container.memory_bytes is not None:
        config["mem_limit"] = config["memswap_limit"] = container.memory_bytes
    return config
