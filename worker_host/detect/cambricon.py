"""Cambricon MLUs, through cnmon, which writes its answer into a file."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fleet.inventory import AcceleratorKind, DeviceIds, Gpu
from worker_host.detect import machine, pci
from worker_host.detect.card import CannotLook, Card, Look, card_of, checked, placed
from worker_host.detect.tools import ask, find, first_json, items, number, plain, share, size, text_of, whole

_FILE = "cnmon_info.json"
_FOLDERS = ("/usr/local/neuware/bin",)
_NEUWARE = Path("/usr/local/neuware/version.txt")
_FINE = ("good", "ok", "healthy", "normal", "0", "1")


class Cambricon:
    kind = AcceleratorKind.CAMBRICON

    def look(self, known: Sequence[Gpu] = ()) -> Look:
        tool = find("cnmon", *_FOLDERS)
        if tool is None:
            return Look()
        with tempfile.TemporaryDirectory(prefix="holdfast-cnmon-") as folder:
            said = _asked(tool, Path(folder))
        rows = items(plain(said).get("cnmoninfo"))
        if not rows:
            raise CannotLook("cnmon lists no card")
        return Look(tuple(_card(number_, row) for number_, row in enumerate(rows)))


def _asked(tool: str, folder: Path) -> Any:
    try:
        printed = ask(tool, "info", "-j", cwd=folder)
    except CannotLook as error:
        if not (folder / _FILE).is_file():  # it may say nothing and write all the same
            raise error
        printed = ""
    try:
        text = (folder / _FILE).read_text(errors="replace")
    except OSError:
        text = printed
    return first_json(text, "cnmon")


def neuware_version() -> str:
    try:
        text = _NEUWARE.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text.rpartition(" ")[2].removeprefix("v")[:50]


def _card(place: int, row: Mapping[str, Any]) -> Card:
    index = whole(row.get("cardnum"))
    index = place if index is None or index > 10_000 else index
    memory, heat = plain(row.get("physicalmemusage")), plain(row.get("temperature"))
    where = _address(plain(row.get("pci")))
    power = plain(row.get("power"))
    gpu = Gpu(
        uuid=text_of(row.get("uuid")) or placed(AcceleratorKind.CAMBRICON, machine.machine_id(), where or index),
        kind=AcceleratorKind.CAMBRICON,
        name=text_of(row.get("productname")) or "Cambricon MLU",
        memory_bytes=size(memory.get("total"), "mib") or 0,
        index=index,
        driver_version=_driver(row),
        runtime_version=neuware_version(),
        pci_address=where,
        numa_node=pci.numa_node(where),
        device=DeviceIds(minor=index),
    )
    return card_of(
        checked(gpu, "cnmon", _sickness(row)),
        memory_used_bytes=size(memory.get("used"), "mib"),
        utilization=share(plain(row.get("utilization")).get("mluaverage")),
        temperature_c=number(heat.get("chip")),
        power_w=number(power.get("usage")),
        power_limit_w=number(power.get("cap")),
    )


def _address(said: Mapping[str, Any]) -> str:
    """Written in four numbers, in hexadecimal."""
    parts = [text_of(said.get(key)).lower().removeprefix("0x") for key in ("domainid", "bus", "device", "function")]
    return pci.address("{}:{}:{}.{}".format(*parts)) if all(parts) else ""


def _sickness(row: Mapping[str, Any]) -> str:
    health = row.get("health")
    said = text_of(plain(health).get("status") if isinstance(health, dict) else health)
    return f"cnmon: its health is {said}" if said and said.lower() not in _FINE else ""


def _driver(row: Mapping[str, Any]) -> str:
    driver = row.get("driver")
    return text_of(plain(driver).get("version")) or text_of(driver) or text_of(row.get("driverversion"))
