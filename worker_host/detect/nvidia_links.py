"""How NVIDIA cards reach each other: NVLink, or which part of the PCIe tree."""

from collections.abc import Mapping
from typing import Any

import pynvml

from fleet.inventory import Gpu, Link, LinkType
from worker_host.detect import pci
from worker_host.detect.nvml import ask, text

_SWITCH = ""
"""Stands for the NVSwitches: cards that reach them reach each other."""
_BY_ANCESTOR = (
    (pynvml.NVML_TOPOLOGY_MULTIPLE, LinkType.PIX),
    (pynvml.NVML_TOPOLOGY_HOSTBRIDGE, LinkType.PHB),
    (pynvml.NVML_TOPOLOGY_NODE, LinkType.NODE),
)


def between(gpus: Mapping[int, Gpu]) -> dict[str, tuple[Link, ...]]:
    """Links of each of these cards (by NVML's index) to each other one, by UUID. What NVML does not say is left out."""
    handles = {index: handle for index in gpus if (handle := _handle(index)) is not None}
    direct = {index: _nvlinks(handle) for index, handle in handles.items()}
    found = {}
    for index, handle in handles.items():
        others = [other for other in handles if other != index]
        links = (_link(handle, handles[o], direct[index], direct[o], gpus[o]) for o in others)
        found[gpus[index].uuid] = tuple(link for link in links if link is not None)
    return found


def _handle(index: int) -> Any:
    try:
        return pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError:
        return None


def _nvlinks(handle: Any) -> dict[str, int]:
    """Active links by the address of what is at their other end."""
    ends: dict[str, int] = {}
    for number in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            active = ask(None, pynvml.nvmlDeviceGetNvLinkState, handle, number)
            if active is None:
                break  # no more links
            if active != pynvml.NVML_FEATURE_ENABLED:
                continue
            end = _far_end(handle, number)
        except pynvml.NVMLError:
            continue
        if end is not None:
            ends[end] = ends.get(end, 0) + 1
    return ends


def _far_end(handle: Any, number: int) -> str | None:
    kind = ask(None, pynvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, number)
    if kind == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
        return _SWITCH
    remote = ask(None, pynvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, number)
    return pci.address(text(remote.busId)) or None if remote is not None else None


def _link(handle: Any, other: Any, mine: dict[str, int], theirs: dict[str, int], peer: Gpu) -> Link | None:
    count = mine.get(peer.pci_address, 0) or min(mine.get(_SWITCH, 0), theirs.get(_SWITCH, 0))
    if count:
        return Link(peer=peer.uuid, type=LinkType.NVLINK, count=count)
    try:
        ancestor = ask(None, pynvml.nvmlDeviceGetTopologyCommonAncestor, handle, other)
    except pynvml.NVMLError:
        return None
    if ancestor is None:
        return None
    nearest = next((kind for limit, kind in _BY_ANCESTOR if ancestor <= limit), LinkType.SYS)
    return Link(peer=peer.uuid, type=nearest)
