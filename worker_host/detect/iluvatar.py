"""Iluvatar CoreX GPUs, through ixsmi."""

import csv
import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fleet.inventory import AcceleratorKind, DeviceIds, Gpu
from worker_host.detect import machine, pci
from worker_host.detect.card import CannotLook, Card, Look, card_of, checked, placed
from worker_host.detect.tools import ask, find, last_line, number, ordinal, share, size, text_of

_CORES = "/usr/local/corex*"
_BASE = ("index", "name", "memory.total", "memory.used", "utilization.gpu", "temperature.gpu")
_MORE = ("uuid", "pci.bus_id", "driver_version")
_QUERIES = (
    (*_BASE, *_MORE, "gpu.power.draw", "gpu.power.limit"),
    (*_BASE, *_MORE, "power.draw"),
    (*_BASE, "uuid"),
    _BASE,
)
"""Releases know more and more; one that does not know a field answers with nothing else."""


class Iluvatar:
    kind = AcceleratorKind.ILUVATAR

    def look(self, known: Sequence[Gpu] = ()) -> Look:
        homes = sorted(glob.glob(_CORES), key=_version, reverse=True)  # noqa: PTH207 - newest first
        tool = find("ixsmi", *(f"{home}/bin" for home in homes))
        if tool is None:
            return Look()
        home = Path(tool).parent.parent
        libraries = str(home / "lib") if str(home) in homes else ""
        said = ""
        for fields in _QUERIES:
            said = ask(tool, f"--query-gpu={','.join(fields)}", "--format=csv", libraries=libraries)
            rows = _rows(said, fields)
            if rows:
                runtime = _joined(_version(str(home)))
                return Look(tuple(_card(row, runtime) for row in rows))
        raise CannotLook(f"ixsmi lists no card: {last_line(said)}")


def _rows(said: str, fields: Sequence[str]) -> list[dict[str, str]]:
    """Those lines that answer all fields; the first, with the titles, has no number."""
    lines = [[cell.strip() for cell in line] for line in csv.reader(said.splitlines(), skipinitialspace=True)]
    return [dict(zip(fields, line, strict=True)) for line in lines if len(line) == len(fields) and _is_index(line[0])]


def _is_index(said: str) -> bool:
    return ordinal(said) is not None and len(said) < 5


def _card(row: Mapping[str, str], runtime: str) -> Card:
    index, where = int(row["index"]), pci.address(row.get("pci.bus_id", ""))
    gpu = Gpu(
        uuid=text_of(row.get("uuid")) or placed(AcceleratorKind.ILUVATAR, machine.machine_id(), where or index),
        kind=AcceleratorKind.ILUVATAR,
        name=text_of(row["name"]) or "Iluvatar GPU",
        memory_bytes=size(row["memory.total"], "mib") or 0,
        index=index,
        driver_version=text_of(row.get("driver_version")),
        runtime_version=runtime,
        pci_address=where,
        numa_node=pci.numa_node(where),
        device=DeviceIds(minor=index),
    )
    return card_of(
        checked(gpu, "ixsmi"),
        memory_used_bytes=size(row["memory.used"], "mib"),
        utilization=share(row["utilization.gpu"]),
        temperature_c=number(row["temperature.gpu"]),
        power_w=number(row.get("gpu.power.draw", row.get("power.draw"))),
        power_limit_w=number(row.get("gpu.power.limit")),
    )


def _version(home: str) -> tuple[int, ...]:
    match = re.search(r"corex-(\d+(?:\.\d+)*)$", str(Path(home).resolve()))
    return tuple(int(part[:6]) for part in match[1].split(".")) if match else ()


def _joined(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
