"""AMD GPUs, through amd-smi, or rocm-smi where that is all there is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fleet.inventory import AcceleratorKind, Gpu, Link, LinkType
from worker_host.detect import kfd, machine, pci, rocm
from worker_host.detect.card import CannotLook, Card, GpuProcess, Look, card_of, checked, placed
from worker_host.detect.tools import ask, find, first_json, items, number, plain, share, size, text_of, whole

_FOLDERS = ("/opt/rocm/bin",)
_ROCM_VERSION = Path("/opt/rocm/.info/version")

Rows = dict[int, Mapping[str, Any]]


class Amd:
    kind = AcceleratorKind.AMD

    def __init__(self) -> None:
        self._static: Rows = {}
        self._uuids: dict[int, str] = {}

    def look(self, known: Sequence[Gpu] = ()) -> Look:
        newer, older = find("amd-smi", *_FOLDERS), find("rocm-smi", *_FOLDERS)
        notes: tuple[str, ...] = ()
        if newer is not None:
            try:
                return self._ask_newer(newer, known)
            except CannotLook as error:
                if older is None:
                    raise
                notes = (f"amd: {error}; rocm-smi is asked instead",)
        if older is None:
            return Look()
        answer = rocm.query(older, "rocm-smi")
        ours = [row for row in answer.rows if not row.is_hygon]
        return Look(tuple(rocm.card(self.kind, row, answer.driver, rocm_version()) for row in ours), notes)

    def _ask_newer(self, tool: str, known: Sequence[Gpu]) -> Look:
        metric = _rows(tool, "metric")
        fresh = not known or not metric.keys() <= self._static.keys()
        if fresh:
            self._static = _rows(tool, "static")
            self._uuids = {index: text_of(row.get("uuid")) for index, row in _maybe(tool, "list").items()}
        processes = _maybe(tool, "process")
        architectures = kfd.architectures()
        cards = []
        for index, static in self._static.items():
            now = metric.get(index, {})
            gpu = self._gpu(index, static, now, architectures)
            cards.append(_card(gpu, now, static, processes.get(index)))
        links = _links(tool, [card.gpu for card in cards]) if fresh else {gpu.uuid: gpu.links for gpu in known}
        return Look(tuple(_linked(card, links) for card in cards))

    def _gpu(
        self, index: int, static: Mapping[str, Any], now: Mapping[str, Any], architectures: Mapping[str, str]
    ) -> Gpu:
        asic, memory = plain(static.get("asic")), plain(now.get("mem_usage"))
        where = pci.address(text_of(plain(static.get("bus")).get("bdf")))
        total = size(memory.get("total_vram"), "mb") or size(plain(static.get("vram")).get("size"), "mb")
        node = whole(plain(static.get("numa")).get("node"))
        driver = plain(static.get("driver"))
        serial = rocm.unique(text_of(asic.get("asic_serial")))
        gpu = Gpu(
            uuid=serial or self._uuids.get(index) or placed(self.kind, machine.machine_id(), where or index),
            kind=self.kind,
            name=text_of(asic.get("market_name"))
            or text_of(plain(static.get("board")).get("product_name"))
            or "AMD GPU",
            memory_bytes=total or 0,
            index=index,
            compute_capability=text_of(asic.get("target_graphics_version")) or architectures.get(where, ""),
            driver_version=text_of(driver.get("version")) or text_of(driver.get("driver_version")),
            runtime_version=rocm_version(),
            pci_address=where,
            numa_node=node if node is not None and node <= 10_000 else pci.numa_node(where),
            device=pci.drm_nodes(where),
        )
        return checked(gpu, "its driver", _sickness(now))


def rocm_version() -> str:
    """Of what is installed on the host; engines in containers bring their own."""
    try:
        return _ROCM_VERSION.read_text().strip().partition("-")[0][:50]
    except OSError:
        return ""


def _rows(tool: str, what: str) -> Rows:
    """By index. Newer releases wrap the list. Raises CannotLook."""
    said = first_json(ask(tool, what, "--json"), f"amd-smi {what}")
    rows = items(plain(said).get("gpu_data") if isinstance(said, dict) else said)
    found = {index: row for row in rows if (index := whole(row.get("gpu"))) is not None and index <= 10_000}
    if not found:
        raise CannotLook(f"amd-smi {what} names no card")
    return found


def _maybe(tool: str, what: str) -> Rows:
    try:
        return _rows(tool, what)
    except CannotLook:
        return {}


def _sickness(now: Mapping[str, Any]) -> str:
    if not now:
        return "its driver says nothing of it"
    errors = whole(plain(now.get("ecc")).get("total_uncorrectable_count")) or 0
    return f"{errors} uncorrectable ECC error{'s'[: errors > 1]} since the driver was loaded" if errors else ""


def _card(gpu: Gpu, now: Mapping[str, Any], static: Mapping[str, Any], process: Mapping[str, Any] | None) -> Card:
    power, heat = plain(now.get("power")), plain(now.get("temperature"))
    limit = plain(static.get("limit"))
    limits = (limit.get("max_power"), limit.get("socket_power_limit"), plain(limit.get("ppt0")).get("max_power_limit"))
    return card_of(
        gpu,
        _processes(process),
        memory_used_bytes=size(plain(now.get("mem_usage")).get("used_vram"), "mb"),
        utilization=share(plain(now.get("usage")).get("gfx_activity")),
        temperature_c=_first(heat.get("hotspot"), heat.get("edge"), heat.get("mem")),
        power_w=_first(power.get("socket_power"), power.get("current_socket_power"), power.get("average_socket_power")),
        power_limit_w=_first(*limits),
        ecc_errors=whole(plain(now.get("ecc")).get("total_uncorrectable_count")),
    )


def _first(*values: object) -> float | None:
    return next((found for value in values if (found := number(value)) is not None), None)


def _processes(row: Mapping[str, Any] | None) -> tuple[GpuProcess, ...] | None:
    """None when the tool does not list them; a word instead of a list means that there are none."""
    if row is None:
        return None
    found = []
    for entry in items(row.get("process_list") or row.get("processes")):
        said = plain(entry.get("process_info")) or entry
        pid = whole(said.get("pid"))
        if pid is not None and pid < 1 << 31:
            memory = plain(said.get("memory_usage")).get("vram_mem", said.get("mem_usage"))
            found.append(GpuProcess(pid, size(memory), text_of(said.get("name"))))
    return tuple(found)


def _links(tool: str, gpus: Sequence[Gpu]) -> dict[str, tuple[Link, ...]]:
    by_index = {gpu.index: gpu for gpu in gpus}
    found = {}
    for index, row in _maybe(tool, "topology").items():
        here = by_index.get(index)
        ends = [(by_index.get(_index(entry)), entry) for entry in items(row.get("links"))]
        if here is not None:
            links = (_link(here, peer, entry) for peer, entry in ends if peer is not None and peer is not here)
            found[here.uuid] = tuple(link for link in links if link is not None)
    return found


def _link(here: Gpu, peer: Gpu, entry: Mapping[str, Any]) -> Link | None:
    if text_of(entry.get("link_type")).upper() == "XGMI":
        return Link(peer=peer.uuid, type=LinkType.NVLINK)
    if here.numa_node is None or peer.numa_node is None:
        return None
    return Link(peer=peer.uuid, type=LinkType.NODE if here.numa_node == peer.numa_node else LinkType.SYS)


def _index(entry: Mapping[str, Any]) -> int:
    found = whole(entry.get("gpu"))
    return -1 if found is None else found


def _linked(card: Card, links: Mapping[str, tuple[Link, ...]]) -> Card:
    gpu = card.gpu.model_copy(update={"links": links.get(card.gpu.uuid, ())})
    return Card(gpu, card.status, card.processes)
