"""What a container must be given to have exactly the cards that were claimed, by vendor. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

from fleet.inventory import AcceleratorKind, Gpu

_DRI = ("/dev/dri/card{card}", "/dev/dri/renderD{render}")
_PTRACE, _UNCONFINED = ("SYS_PTRACE",), ("seccomp=unconfined",)
"""Collectives between processes of ROCm and its kin read each other's memory."""
_ASCEND = "/usr/local/Ascend/driver"


class NoContainer(Exception):
    """These cards cannot be given to a container; the message says why."""


@dataclass(frozen=True)
class ContainerDevices:
    """For Docker. Never ``--privileged``: nothing but what is listed can be seen inside."""

    devices: tuple[str, ...] = ()
    """Paths that must exist, the same inside."""
    devices_if_present: tuple[str, ...] = ()
    mounts_if_present: tuple[str, ...] = ()
    """Read-only, the same inside."""
    gpu_ids: tuple[str, ...] = ()
    """For Docker's own GPU support (the NVIDIA container toolkit)."""
    runtime: str = ""
    """OCI runtime of the vendor; empty: the usual one."""
    env: dict[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    cap_add: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    host_ipc: bool = False


def devices_for(kind: AcceleratorKind, gpus: Sequence[Gpu]) -> ContainerDevices:
    """For the claimed ``gpus``, all of ``kind``; inside they are numbered from 0. Raises NoContainer."""
    inside = ",".join(str(number) for number in range(len(gpus)))
    match kind:
        case AcceleratorKind.CPU:
            return ContainerDevices()
        case AcceleratorKind.NVIDIA:
            uuids = tuple(gpu.uuid for gpu in gpus)
            return ContainerDevices(gpu_ids=uuids, env={"CUDA_VISIBLE_DEVICES": ",".join(uuids)})
        case AcceleratorKind.AMD:
            return ContainerDevices(
                devices=("/dev/kfd", *_paths(gpus, *_DRI)),
                env={"HIP_VISIBLE_DEVICES": inside},
                groups=("video",),
                cap_add=_PTRACE,
                security_opt=_UNCONFINED,
                host_ipc=True,
            )
        case AcceleratorKind.HYGON:
            return ContainerDevices(
                devices=("/dev/kfd", "/dev/mkfd", *_paths(gpus, *_DRI)),
                mounts_if_present=("/opt/hyhal",),
                env={"HIP_VISIBLE_DEVICES": inside},
                groups=("video",),
                cap_add=_PTRACE,
                security_opt=_UNCONFINED,
            )
        case AcceleratorKind.ASCEND:
            return ContainerDevices(
                devices=(
                    *_paths(gpus, "/dev/davinci{physical_id}"),
                    *("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"),
                ),
                devices_if_present=("/dev/dvpp_cmdlist", "/dev/uburma", "/dev/ummu"),
                mounts_if_present=(
                    *(f"{_ASCEND}/{part}" for part in ("lib64", "include", "topo", "version.info")),
                    *("/usr/local/dcmi", "/usr/local/bin/npu-smi"),
                    *("/etc/ascend_install.info", "/etc/hccl_rootinfo.json"),
                ),
                env={"ASCEND_RT_VISIBLE_DEVICES": inside, "NPU_VISIBLE_DEVICES": inside},
            )
        case AcceleratorKind.MTHREADS:
            indices = ",".join(str(gpu.index) for gpu in gpus)
            env = {"MTHREADS_VISIBLE_DEVICES": indices, "MUSA_VISIBLE_DEVICES": inside, "CUDA_VISIBLE_DEVICES": inside}
            return ContainerDevices(runtime="mthreads", env=env)
        case AcceleratorKind.ILUVATAR:
            devices = ("/dev/itrctl", *_paths(gpus, "/dev/iluvatar{minor}"))
            return ContainerDevices(devices=devices, env={"CUDA_VISIBLE_DEVICES": inside})
        case AcceleratorKind.CAMBRICON:
            devices = ("/dev/cambricon_ctl", *_paths(gpus, "/dev/cambricon_dev{minor}"))
            return ContainerDevices(devices=devices, env={"MLU_VISIBLE_DEVICES": inside})
        case AcceleratorKind.METAX:
            return ContainerDevices(
                devices=("/dev/mxcd", *_paths(gpus, *_DRI)),
                devices_if_present=("/dev/mxnd", "/dev/mxgd"),
                env={"CUDA_VISIBLE_DEVICES": inside},
                groups=("video",),
            )
        case AcceleratorKind.APPLE:
            raise NoContainer("no container reaches an Apple GPU: set spec.runtime to 'process'")
    assert_never(kind)


def kind_of(gpus: Sequence[Gpu]) -> AcceleratorKind:
    """CPU when there are none. Raises NoContainer for a mixture."""
    kinds = {gpu.kind for gpu in gpus}
    if len(kinds) > 1:
        raise NoContainer(f"one engine cannot use cards of different vendors: {', '.join(sorted(kinds))}")
    return kinds.pop() if kinds else AcceleratorKind.CPU


def _paths(gpus: Sequence[Gpu], *patterns: str) -> tuple[str, ...]:
    return tuple(_path(gpu, pattern) for gpu in gpus for pattern in patterns)


def _path(gpu: Gpu, pattern: str) -> str:
    numbers = {name: number for name, number in gpu.device.model_dump().items() if number is not None}
    try:
        return pattern.format(**numbers)
    except KeyError as missing:
        raise NoContainer(
            f"the driver does not say which device file belongs to {gpu.name} {gpu.uuid}: {missing.args[0]} is unknown"
        ) from None
