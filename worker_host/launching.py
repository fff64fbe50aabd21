"""What an engine is told of this host: its port, its cards, its part of a gang."""

import logging
import socket
from collections.abc import Sequence
from pathlib import Path

import psutil

from fleet.engines.adapter import EngineAdapter, Start
from fleet.engines.spec import EngineSpec
from fleet.instances import EngineLaunch
from fleet.inventory import AcceleratorKind, Gpu
from fleet.sizing.files import ReadError
from fleet.sizing.lora import read_lora
from worker_host.runtime.process import free_port
from worker_host.runtime.protocol import LOOPBACK, CannotStart

log = logging.getLogger("holdfast.host")


def start_of(
    launch: EngineLaunch, *, binary: Path, address: str, gpus: Sequence[Gpu], cpu_count: int, models: Path
) -> Start:
    """``gpus``: those claimed here. Blocks: adapters are read. Raises CannotStart."""
    placement, here = launch.placement, launch.here
    spec = _on_this_host(launch.spec, models)
    return Start(
        binary=binary,
        spec=spec,
        model_path=here.model_path or placement.model_path,
        gpu_uuids=here.gpu_uuids,
        address=address,
        port=_port(here.ports, known_to_others=launch.rank > 0),
        cpu_count=cpu_count,
        sizing=placement.sizing,
        card=placement.card,
        rank=launch.rank,
        members=placement.members,
        ports=here.ports,
        accelerator=gpus[0].kind if gpus else AcceleratorKind.CPU,
        booked_bytes=placement.memory_bytes,
        card_bytes=min((gpu.memory_bytes for gpu in gpus), default=0),
        interface=_interface(here.address) if len(placement.members) > 1 else "",
        lora_ranks=tuple(_rank(Path(lora.path)) for lora in spec.lora),
    )


def program_of(adapter: EngineAdapter, binary: Path, rank: int) -> Path:
    """For followers another one, beside the engine's. Raises CannotStart."""
    if not rank or not adapter.follower_programs:
        return binary
    names = adapter.follower_programs
    found = next((path for name in names if (path := binary.with_name(name)).is_file()), None)
    if found is None:
        missing = " or ".join(names)
        raise CannotStart(f"{binary.parent} has no {missing}: this build of {adapter.name} cannot lend its cards")
    return found


def extra_files(spec: EngineSpec, models: Path) -> tuple[Path, ...]:
    """What it reads beside its model: adapters, and a draft model."""
    told = _on_this_host(spec, models)
    draft = told.speculative.model if told.speculative is not None else None
    return tuple(Path(path) for path in (*(lora.path for lora in told.lora), draft) if path)


def _on_this_host(spec: EngineSpec, models: Path) -> EngineSpec:
    """With absolute paths: those of a deployment may be relative to the host's models."""
    loras = tuple(lora.model_copy(update={"path": str(models / lora.path)}) for lora in spec.lora)
    draft = spec.speculative
    if draft is not None and draft.model is not None:
        draft = draft.model_copy(update={"model": str(models / draft.model)})
    return spec.model_copy(update={"lora": loras, "speculative": draft})


def _port(claimed: Sequence[int], *, known_to_others: bool) -> int:
    """The one that was claimed; if somebody else has it, which the ledger cannot know, any other: requests come through
    this host. Only what others of a gang were told must be kept. Raises CannotStart."""
    if claimed and _is_free(claimed[0]):
        return claimed[0]
    if claimed and known_to_others:
        raise CannotStart(f"address already in use: {LOOPBACK}:{claimed[0]}, which was claimed for it")
    if claimed:
        log.warning("port %d was claimed for an engine, but somebody else has it: another one is taken", claimed[0])
    return free_port()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _interface(address: str) -> str:
    """The one that holds ``address``; empty: none does, and libraries choose by themselves."""
    held = psutil.net_if_addrs().items()
    return next((name for name, addresses in held if any(a.address == address for a in addresses)), "")


def _rank(path: Path) -> int:
    try:
        return read_lora(path).rank
    except ReadError as error:
        log.warning("nothing is known of the adapter %s: %s", path, error)
        return 0
