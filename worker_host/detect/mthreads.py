"""Moore Threads GPUs, through mthreads-gmi."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fleet.inventory import AcceleratorKind, Gpu
from worker_host.detect import machine, pci
from worker_host.detect.card import CannotLook, Card, GpuProcess, Look, card_of, checked, placed
from worker_host.detect.tools import ask, find, first_json, items, number, plain, share, size, text_of, whole

_MUSA = Path("/usr/local/musa/version.json")
_MEMORY = re.compile(r"(\d+MiB)\((\d+MiB)\)")


class MooreThreads:
    kind = AcceleratorKind.MTHREADS

    def look(self, known: Sequence[Gpu] = ()) -> Look:
        tool = find("mthreads-gmi")
        if tool is None:
            return Look()
        table = ask(tool)
        try:
            said = plain(first_json(ask(tool, "-q", "--json"), "mthreads-gmi -q"))
            cards = [_card(plain(row), text_of(said.get("driver version"))) for row in items(said.get("gpu"))]
            notes: tuple[str, ...] = ()
        except CannotLook as error:  # older releases know only the table
            cards = list(_of_table(table))
            notes = (f"mthreads: {error}; the table is read instead",)
        if not cards:
            raise CannotLook("mthreads-gmi lists no card")
        processes = _processes(table)
        return Look(tuple(Card(c.gpu, c.status, _of(processes, c.gpu.index)) for c in cards), notes)


def musa_version() -> str:
    """Of the toolkit that is installed on the host."""
    try:
        said = plain(first_json(_MUSA.read_text(), "version.json"))
    except (OSError, UnicodeDecodeError, CannotLook):
        return ""
    parts = (plain(said.get(key)) for key in ("musa", "musa_runtime", "musa_sdk", "musa_toolkits"))
    return next((version for part in parts if (version := text_of(part.get("version")))), "")


def _card(row: Mapping[str, Any], driver: str) -> Card:
    memory, busy = plain(row.get("fb memory usage")), plain(row.get("utilization"))
    heat, power = plain(row.get("temperature")), plain(row.get("power readings"))
    gpu = _gpu(
        min(whole(row.get("index")) or 0, 10_000),
        text_of(plain(row.get("pci")).get("bus id")),
        name=text_of(row.get("product name")) or "Moore Threads GPU",
        memory_bytes=size(memory.get("total"), "mib") or 0,
        driver_version=driver,
    )
    uuid = text_of(row.get("gpu uuid"))
    return card_of(
        gpu.model_copy(update={"uuid": uuid}) if uuid else gpu,
        memory_used_bytes=size(memory.get("used"), "mib"),
        utilization=share(busy.get("gpu")),
        temperature_c=number(heat.get("gpu current temp")),
        power_w=number(power.get("power draw")),
        power_limit_w=number(power.get("current power limit")),
    )


def _gpu(index: int, bus: str, *, name: str, memory_bytes: int, driver_version: str) -> Gpu:
    where = pci.address(bus)
    gpu = Gpu(
        uuid=placed(AcceleratorKind.MTHREADS, machine.machine_id(), where or index),
        kind=AcceleratorKind.MTHREADS,
        name=name,
        memory_bytes=memory_bytes,
        index=index,
        driver_version=driver_version,
        runtime_version=musa_version(),
        pci_address=where,
        numa_node=pci.numa_node(where),
        device=pci.drm_nodes(where),
    )
    return checked(gpu, "mthreads-gmi")


def _of_table(table: str) -> Iterator[Card]:
    """Each card has three lines of cells; the first begins with its number, the second has its temperature."""
    match = re.search(r"Driver Version: *(\S+)", table)
    driver = match[1] if match else ""
    lines = table.splitlines()
    for line, below in itertools.pairwise([*lines, ""]):
        cells, more = [c.strip() for c in line.split("|")], [c.strip() for c in below.split("|")]
        head = re.match(r"([0-9]{1,4})\s+(\S.*)", cells[0])
        if head is None or len(cells) < 3 or not pci.address(cells[1]):
            continue
        memory = _MEMORY.search(cells[2])
        total = size(memory[2]) or 0 if memory else 0
        yield card_of(
            _gpu(int(head[1]), cells[1], name=head[2], memory_bytes=total, driver_version=driver),
            memory_used_bytes=size(memory[1]) if memory else None,
            utilization=share(cells[2]),
            temperature_c=number(more[2]) if len(more) > 2 else None,
        )


def _processes(table: str) -> dict[int, list[GpuProcess]] | None:
    """By index; None when the tool does not list them."""
    _, title, listed = table.partition("Processes:")
    if not title:
        return None
    found: dict[int, list[GpuProcess]] = {}
    for line in listed.splitlines():
        match = re.match(r"\s*([0-9]{1,4})\s+([0-9]{1,9})\s+(.*?)\s+(\d+\s*[KMG]i?B)\s*$", line)
        if match:
            process = GpuProcess(int(match[2]), size(match[4]), match[3].strip()[:200])
            found.setdefault(int(match[1]), []).append(process)
    return found


def _of(processes: dict[int, list[GpuProcess]] | None, index: int) -> tuple[GpuProcess, ...] | None:
    return None if processes is None else tuple(processes.get(index, ()))
