"""Apple GPUs. Their memory is the machine's RAM; engines run on them as plain processes, not in containers."""

from collections.abc import Sequence

from fleet.inventory import AcceleratorKind, Gpu
from fleet.telemetry import MiB
from worker_host.detect import machine
from worker_host.detect.card import CannotLook, Look, card_of, placed
from worker_host.detect.tools import ask, find, first_json, items, plain, text_of, whole

_SHARE = 0.75
"""Of the RAM that Metal lets a GPU use, unless a person has set another limit."""


class Apple:
    kind = AcceleratorKind.APPLE

    def look(self, known: Sequence[Gpu] = ()) -> Look:
        if known:
            return Look(tuple(card_of(gpu) for gpu in known))  # soldered on; it takes seconds to ask
        tool = find("system_profiler", "/usr/sbin")
        if tool is None:
            return Look()
        said = plain(first_json(ask(tool, "SPDisplaysDataType", "-json"), "system_profiler"))
        rows = [row for row in items(said.get("spdisplaysdatatype")) if _is_apples(row)]
        return Look(tuple(card_of(_gpu(index, row)) for index, row in enumerate(rows[:1])))


def metal_limit() -> int | None:
    """Bytes that a person lets the GPU use (``iogpu.wired_limit_mb``); None: the system decides."""
    tool = find("sysctl", "/usr/sbin")
    try:
        told = whole(ask(tool, "-n", "iogpu.wired_limit_mb", timeout_s=5)) if tool is not None else None
    except CannotLook:
        return None
    return told * MiB if told else None


def _is_apples(row: object) -> bool:
    said = plain(row)
    vendor = text_of(said.get("spdisplays_vendor")).lower()
    return vendor.endswith("apple") or text_of(said.get("sppci_model")).startswith("Apple")


def _gpu(index: int, row: object) -> Gpu:
    said, ram = plain(row), machine.ram_bytes()
    limit = metal_limit() or int(ram * _SHARE)
    cores = text_of(said.get("sppci_cores"))
    name = text_of(said.get("sppci_model")) or text_of(said.get("_name")) or "Apple GPU"
    return Gpu(
        uuid=placed(AcceleratorKind.APPLE, machine.machine_id(), index),
        kind=AcceleratorKind.APPLE,
        name=f"{name} ({cores} cores)" if cores else name,
        memory_bytes=min(limit, ram) // MiB * MiB,
        index=index,
        compute_capability=text_of(said.get("spdisplays_mtlgpufamilysupport")).removeprefix("spdisplays_"),
        unified=True,
    )
