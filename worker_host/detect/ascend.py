"""Huawei Ascend NPUs, through npu-smi. A card may carry several chips: each is one that replicas are given."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleet.inventory import AcceleratorKind, DeviceIds, Gpu
from fleet.telemetry import MiB
from worker_host.detect import machine, pci
from worker_host.detect.card import CannotLook, Card, GpuProcess, Look, card_of, checked, placed
from worker_host.detect.tools import ask, find, last_line, number, ordinal, share, text_of

_FOLDERS = ("/usr/local/bin", "/usr/local/sbin")
_CANN = (
    "/usr/local/Ascend/ascend-toolkit/latest/version.cfg",
    "/usr/local/Ascend/ascend-toolkit/latest/compiler/version.info",
    "/usr/local/Ascend/latest/version.cfg",
)
_FINE = ("ok", "warning")
"""A warning is a minor alarm; from ``Alarm`` on the chip is not to be trusted."""
_PAIR = re.compile(r"\b([0-9]{1,10})\s*/\s*([0-9]{1,10})\b")
_NO_CHIP = "mcu"
"""The controller of a card is listed like a chip."""


@dataclass(frozen=True)
class _Chip:
    """Two rows of the table."""

    npu: int
    chip: int
    device: int | None
    """Column ``Phy-ID`` (or ``Device`` of old tools)."""
    name: str
    health: str
    power: float | None
    temperature: float | None
    bus: str
    busy: float | None
    memory: tuple[int, int]
    """Used, total (bytes): of the HBM where it has any."""


@dataclass(frozen=True)
class _Place:
    logic: int
    physical: int | None
    name: str


class Ascend:
    kind = AcceleratorKind.ASCEND

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], _Place] = {}
        self._dies: dict[tuple[int, int], str] = {}

    def look(self, known: Sequence[Gpu] = ()) -> Look:
        tool = find("npu-smi", *_FOLDERS)
        if tool is None:
            return Look()
        table = ask(tool, "info")
        chips = list({(chip.npu, chip.chip): chip for chip in read_table(table)}.values())
        if not chips:
            raise CannotLook(f"npu-smi lists no chip: {last_line(table)}")
        if not known or any((c.npu, c.chip) not in self._dies for c in chips):
            self._places = _asked_places(tool)
            self._dies = {(c.npu, c.chip): _die(tool, c) for c in chips}
        driver, processes = _driver(table), _processes(table)
        alone = all(chip.chip == 0 for chip in chips)
        return Look(tuple(self._card(n, chip, driver, processes, alone) for n, chip in enumerate(chips)))

    def _card(
        self, number_: int, chip: _Chip, driver: str, processes: dict[tuple[int, int], list[GpuProcess]], alone: bool
    ) -> Card:
        key, where = (chip.npu, chip.chip), pci.address(chip.bus)
        place = self._places.get(key) or _Place(number_, None, "")
        physical = chip.device if chip.device is not None else place.physical
        if physical is None:
            physical = chip.npu if alone else place.logic
        gpu = Gpu(
            uuid=self._dies.get(key) or placed(self.kind, machine.machine_id(), where or f"{chip.npu}-{chip.chip}"),
            kind=self.kind,
            name=f"Ascend {_model(chip, place)}".strip(),
            memory_bytes=chip.memory[1],
            index=place.logic,
            compute_capability=_model(chip, place),
            driver_version=driver,
            runtime_version=cann_version(),
            pci_address=where,
            numa_node=pci.numa_node(where),
            device=DeviceIds(physical_id=physical),
        )
        trouble = "" if chip.health.lower() in _FINE else f"npu-smi: its health is {chip.health}"
        return card_of(
            checked(gpu, "npu-smi", trouble),
            tuple(processes.get(key, ())),
            memory_used_bytes=chip.memory[0] if chip.memory[1] else None,
            utilization=chip.busy,
            temperature_c=chip.temperature,
            power_w=chip.power,
        )


def read_table(text: str) -> Iterator[_Chip]:
    """The chips in what ``npu-smi info`` prints; widths and columns differ from release to release."""
    first: list[str] | None = None
    for cells in _rows(text):
        if len(cells) != 3:
            first = None
            if cells and cells[0].split()[:2] == ["NPU", "Chip"]:
                return  # from here on it lists processes
        elif first is None:
            first = cells if _starts_with_numbers(cells, 1) else None
        else:
            chip = _chip(first, cells)
            first = None
            if chip is not None:
                yield chip


def cann_version() -> str:
    for name in _CANN:
        try:
            match = re.search(
                r"(?im)^(?:version|.*runtime_running_version)\s*=\s*\[?([^\]\s:]+:)?([\d.A-Za-z]+)",
                Path(name).read_text(),
            )
        except (OSError, UnicodeDecodeError):
            continue
        if match:
            return match[2][:50]
    return ""


def _chip(upper: list[str], lower: list[str]) -> _Chip | None:
    if not _starts_with_numbers(lower, 1):
        return None
    npu, _, name = upper[0].partition(" ")
    chip, *device = lower[0].split()
    figures = upper[2].split()
    busy, *_ = lower[2].split() or [""]
    pairs = [(int(used) * MiB, int(total) * MiB) for used, total in _PAIR.findall(lower[2])]
    hbm = pairs[-1] if pairs else (0, 0)
    return _Chip(
        npu=int(npu),
        chip=int(chip),
        device=ordinal(device[0]) if device else None,
        name=text_of(name),
        health=upper[1],
        power=number(figures[0]) if figures else None,
        temperature=number(figures[1]) if len(figures) > 1 else None,
        bus=lower[1],
        busy=share(busy),
        memory=hbm if hbm[1] or len(pairs) < 2 else pairs[0],
    )


def _rows(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def _starts_with_numbers(cells: list[str], count: int) -> bool:
    words = cells[0].split()
    return len(words) >= count and all(ordinal(word) is not None and len(word) < 5 for word in words[:count])


def _driver(table: str) -> str:
    match = re.search(r"\bVersion: *(\S+)", table)
    return match[1][:50] if match else ""


def _processes(table: str) -> dict[tuple[int, int], list[GpuProcess]]:
    """By (NPU, chip). Memory is in MB; that of a process on several chips is listed for each."""
    found: dict[tuple[int, int], list[GpuProcess]] = {}
    for cells in _rows(table):
        pid = ordinal(cells[1]) if len(cells) >= 4 else None
        if pid is None or not _starts_with_numbers(cells, 2):
            continue
        npu, chip = map(int, cells[0].split()[:2])
        memory = number(cells[3])
        size = int(memory) * MiB if memory is not None and 0 <= memory < 1 << 40 else None
        found.setdefault((npu, chip), []).append(GpuProcess(pid, size, text_of(cells[2])))
    return found


def _asked_places(tool: str) -> dict[tuple[int, int], _Place]:
    """Logic ids (by which engines count) by (NPU, chip); empty if the tool does not say."""
    try:
        lines = ask(tool, "info", "-m").splitlines()
    except CannotLook:
        return {}
    titles: list[str] = []
    found = {}
    for line in lines:
        cells = re.split(r"\s{2,}", line.strip())
        if cells[0] == "NPU ID":
            titles = [title.lower() for title in cells]
        elif len(cells) >= 4 and len(cells) == len(titles):
            said = dict(zip(titles, cells, strict=True))
            npu, chip, logic = (ordinal(said.get(k)) for k in ("npu id", "chip id", "chip logic id"))
            if npu is None or chip is None or logic is None or said.get("chip name", "").lower() == _NO_CHIP:
                continue
            physical = next((ordinal(v) for k, v in said.items() if "phy" in k), None)
            found[npu, chip] = _Place(min(logic, 10_000), physical, said.get("chip name", ""))
    return found


def _die(tool: str, chip: _Chip) -> str:
    """The number that the chip carries; empty if the tool does not say."""
    try:
        said = ask(tool, "info", "-t", "board", "-i", str(chip.npu), "-c", str(chip.chip))
    except CannotLook:
        return ""
    match = re.search(r"(?im)^\s*VDie ID\s*:\s*([0-9A-F]{2,}(?:[ -][0-9A-F]+)*)\s*$", said)
    die = match[1].replace(" ", "-").upper() if match else ""
    return f"NPU-{die}" if die.strip("0-") else ""


def _model(chip: _Chip, place: _Place) -> str:
    """``910B2``: of the table, or of the mapping where the table only says what family it is."""
    return re.sub(r"(?i)^ascend\s*", "", chip.name) or re.sub(r"(?i)^ascend\s*", "", place.name)
