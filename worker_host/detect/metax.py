"""MetaX GPUs, through mx-smi."""

import itertools
import re
from collections.abc import Iterator, Sequence

from fleet.inventory import AcceleratorKind, Gpu
from worker_host.detect import machine, pci
from worker_host.detect.card import CannotLook, Card, GpuProcess, Look, card_of, checked, placed
from worker_host.detect.tools import ask, find, number, share, size

_FOLDERS = ("/opt/mxdriver/bin", "/opt/maca/bin", "/opt/mxn100/bin")
_MEMORY = re.compile(r"(\d+)\s*/\s*(\d+)\s*([KMG]i?B)")
_LISTED = re.compile(r"GPU#([0-9]{1,4})\s+(.*?)\s*$")
_UUID = re.compile(r"\(UUID:\s*(\S+?)\)")
_FINE = ("available", "")
"""Older releases have no such column."""


class MetaX:
    kind = AcceleratorKind.METAX

    def look(self, known: Sequence[Gpu] = ()) -> Look:
        tool = find("mx-smi", *_FOLDERS)
        if tool is None:
            return Look()
        table = ask(tool)
        uuids = {gpu.index: gpu.uuid for gpu in known}
        cards = {card.gpu.index: card for card in _of_table(table, uuids)}
        if not known or cards.keys() - uuids.keys():
            listed, notes = _listing(tool)
            cards = {c.gpu.index: c for c in _of_table(table, {n: u for n, (u, _) in listed.items() if u})}
            # One that does not work may be missing in the table.
            cards = {n: _unlisted(n, said) for n, (_, said) in listed.items() if n not in cards} | cards
        else:
            notes = ()
            missing = [gpu for gpu in known if gpu.index not in cards]
            cards |= {gpu.index: _gone(gpu) for gpu in missing}
        if not cards:
            raise CannotLook("mx-smi lists no card")
        return Look(tuple(cards[index] for index in sorted(cards)), notes)


def _listing(tool: str) -> tuple[dict[int, tuple[str, str]], tuple[str, ...]]:
    """(UUID, what is said of it) by index."""
    try:
        said = ask(tool, "-L")
    except CannotLook as error:
        return {}, (f"metax: {error}",)
    found = {}
    for line in said.splitlines():
        match = _LISTED.match(line.strip())
        if match:
            uuid = _UUID.search(match[2])
            found[int(match[1])] = (uuid[1] if uuid else "", match[2])
    return found, ()


def _of_table(table: str, uuids: dict[int, str]) -> Iterator[Card]:
    """Each card has two lines of three cells; the first begins with its number."""
    driver = re.search(r"Kernel Mode Driver Version: *(\S+)", table)
    runtime = re.search(r"MACA Version: *(\S+)", table)
    processes = _processes(table)
    rows = [[cell.strip() for cell in line.strip("| \t").split("|")] for line in table.splitlines() if "|" in line]
    for upper, lower in itertools.pairwise(rows):
        head = re.match(r"([0-9]{1,4})\s+(\S.*)", upper[0])
        if head is None or len(upper) != 3 or len(lower) < 2 or not pci.address(upper[1]):
            continue
        index, where = int(head[1]), pci.address(upper[1])
        memory = _MEMORY.search(lower[1])
        gpu = Gpu(
            uuid=uuids.get(index) or placed(AcceleratorKind.METAX, machine.machine_id(), where),
            kind=AcceleratorKind.METAX,
            name=re.sub(r"\s+(On|Off)$", "", head[2]),
            memory_bytes=size(f"{memory[2]}{memory[3]}") or 0 if memory else 0,
            index=index,
            driver_version=driver[1] if driver else "",
            runtime_version=runtime[1] if runtime else "",
            pci_address=where,
            numa_node=pci.numa_node(where),
            device=pci.drm_nodes(where),
        )
        yield _card(gpu, upper[2], lower, None if processes is None else tuple(processes.get(index, ())))


def _card(gpu: Gpu, busy: str, lower: list[str], processes: tuple[GpuProcess, ...] | None) -> Card:
    state = lower[2] if len(lower) > 2 else ""
    heat, _, rest = lower[0].partition("C")
    power = re.search(r"(\d+)W(?:\s*/\s*(\d+)W)?", rest)
    memory = _MEMORY.search(lower[1])
    return card_of(
        checked(gpu, "mx-smi", "" if state.lower() in _FINE else f"mx-smi: {state}"),
        processes,
        memory_used_bytes=size(f"{memory[1]}{memory[3]}") if memory else None,
        utilization=share(busy),
        temperature_c=number(heat),
        power_w=number(power[1]) if power else None,
        power_limit_w=number(power[2]) if power else None,
    )


def _unlisted(index: int, said: str) -> Card:
    words = said.split()
    where = next((found for word in words if (found := pci.address(word))), "")
    uuid = _UUID.search(said)
    gpu = Gpu(
        uuid=uuid[1] if uuid else placed(AcceleratorKind.METAX, machine.machine_id(), where or index),
        kind=AcceleratorKind.METAX,
        name=words[0] if words else "MetaX GPU",
        memory_bytes=0,
        index=index,
        healthy=False,
        reason=f"mx-smi: {said[:300]}",
        pci_address=where,
    )
    return card_of(gpu)


def _gone(was: Gpu) -> Card:
    reason = was.reason or "mx-smi does not list it any more"
    gpu = was.model_copy(update={"healthy": False, "reason": reason})
    return card_of(gpu)


def _processes(table: str) -> dict[int, list[GpuProcess]] | None:
    """By index; None when the tool does not list them."""
    _, title, listed = table.partition("Process:")
    if not title:
        return None
    found: dict[int, list[GpuProcess]] = {}
    for line in listed.splitlines():
        match = re.match(r"\|?\s*([0-9]{1,4})\s+([0-9]{1,9})\s+(.*?)\s+(\d+)\s*(?:([KMG]i?B))?\s*\|?\s*$", line)
        if match:
            process = GpuProcess(int(match[2]), size(f"{match[4]}{match[5] or 'MiB'}"), match[3].strip()[:200])
            found.setdefault(int(match[1]), []).append(process)
    return found
