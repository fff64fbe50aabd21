"""What the kernel says of a card on the PCI bus."""

import re
from pathlib import Path

from fleet.inventory import DeviceIds

_DEVICES = Path("/sys/bus/pci/devices")


def address(said: str) -> str:
    """As the kernel writes it: ``0000:3b:00.0``; empty when ``said`` is none."""
    match = re.fullmatch(
        r"(?:(?P<domain>[0-9a-f]{1,8}):)?(?P<rest>[0-9a-f]{1,2}:[0-9a-f]{1,2}\.[0-9a-f])", said.strip().lower()
    )
    if match is None:
        return ""
    bus, _, slot = match["rest"].partition(":")
    device, _, function = slot.partition(".")
    return f"{int(match['domain'] or '0', 16):04x}:{int(bus, 16):02x}:{int(device, 16):02x}.{function}"


def numa_node(where: str) -> int | None:
    """None: not told, or there is only one."""
    try:
        node = int((_DEVICES / where / "numa_node").read_text()) if where else -1
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def drm_nodes(where: str) -> DeviceIds:
    """Numbers of its nodes in ``/dev/dri``."""
    try:
        names = [entry.name for entry in (_DEVICES / where / "drm").iterdir()] if where else []
    except OSError:
        names = []
    return DeviceIds(card=_number(names, "card"), render=_number(names, "renderD"))


def _number(names: list[str], prefix: str) -> int | None:
    found = sorted(int(n.removeprefix(prefix)) for n in names if re.fullmatch(prefix + r"\d{1,6}", n))
    return found[0] if found else None
