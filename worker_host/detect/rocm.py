"""The JSON of rocm-smi and of the tools that others made of it. Names of keys differ from release to release."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fleet.inventory import AcceleratorKind, Gpu
from worker_host.detect import kfd, machine, pci
from worker_host.detect.card import CannotLook, Card, card_of, checked, placed
from worker_host.detect.tools import ask, first_json, number, plain, share, size, text_of

QUESTIONS = (
    "--showproductname",
    "--showuniqueid",
    "--showmeminfo",
    "vram",
    "--showuse",
    "--showtemp",
    "--showpower",
    "--showbus",
    "--showdriverversion",
    "--json",
)
_CARD = re.compile(r"card(\d{1,4})")
_HYGON = re.compile(r"haiguang|hygon|\bdcu\b|\bhcu\b")


@dataclass(frozen=True)
class Row:
    """One card: what the tool says of it, keys in lower case."""

    index: int
    said: Mapping[str, Any]

    def first(self, *patterns: str) -> tuple[str, Any]:
        """(key, value) of the first pattern that any key matches whole and that says something; else empty."""
        for pattern in patterns:
            for key, value in self.said.items():
                if re.fullmatch(pattern, key) and text_of(value):
                    return key, value
        return "", None

    @property
    def is_hygon(self) -> bool:
        """Its tools answer on Hygon's cards as well."""
        vendor = text_of(self.first("card vendor")[1]).lower()
        return _HYGON.search(vendor) is not None or any(_HYGON.search(key) for key in self.said)


@dataclass(frozen=True)
class Answer:
    rows: tuple[Row, ...]
    driver: str = ""


def query(tool: str, name: str) -> Answer:
    """Ask a tool of this family. Raises CannotLook, also where it only says in words that there is no card."""
    said = plain(first_json(ask(tool, *QUESTIONS), name))
    rows = [(_CARD.fullmatch(key), plain(value)) for key, value in said.items()]
    found = tuple(Row(int(match[1]), value) for match, value in rows if match is not None)
    if not found:
        raise CannotLook(f"{name} names no card")
    return Answer(found, text_of(plain(said.get("system")).get("driver version")))


def card(kind: AcceleratorKind, row: Row, driver: str, runtime: str) -> Card:
    where = pci.address(text_of(row.first("pci bus")[1]))
    gpu = Gpu(
        uuid=_uuid(kind, row, where),
        kind=kind,
        name=_name(row) or f"{kind} GPU",
        memory_bytes=_memory(row, "total") or 0,
        index=row.index,
        compute_capability=kfd.architectures().get(where) or text_of(row.first("gfx version")[1]),
        driver_version=driver,
        runtime_version=runtime,
        pci_address=where,
        numa_node=pci.numa_node(where),
        device=pci.drm_nodes(where),
    )
    return card_of(
        checked(gpu, "its driver"),
        memory_used_bytes=_memory(row, "total used"),
        utilization=share(row.first(r"(gpu|dcu|hcu) use \(%\)")[1]),
        temperature_c=number(row.first(*(rf"temperature \(sensor {s}\) \(c\)" for s in _SENSORS))[1]),
        power_w=number(row.first(r"(average|current socket) graphics package power \(w\)")[1]),
        power_limit_w=number(row.first(r"max graphics package power \(w\)")[1]),
    )


_SENSORS = ("junction", "hotspot", "edge", "core")


def unique(serial: str) -> str:
    """As ROCm writes it: ``GPU-`` and 16 digits; empty for what is no such number."""
    digits = serial.strip().lower().removeprefix("0x")
    return f"GPU-{digits.zfill(16)}" if re.fullmatch(r"[0-9a-f]{6,16}", digits) and int(digits, 16) else ""


def _uuid(kind: AcceleratorKind, row: Row, where: str) -> str:
    told = unique(text_of(row.first("unique id")[1]))
    return told or placed(kind, machine.machine_id(), where or row.index)


def _name(row: Row) -> str:
    names = (text_of(row.said.get(key)) for key in ("card series", "device name", "card model"))
    return next((name for name in names if name and not name.startswith("0x")), "")


def _memory(row: Row, what: str) -> int | None:
    key, value = row.first(rf"vram {what} memory \(m?i?b\)")
    return size(value, key.rpartition("(")[2].rstrip(")") or "b")
