"""What the compute driver that AMD and Hygon share says of cards: their architecture."""

from pathlib import Path

_NODES = Path("/sys/class/kfd/kfd/topology/nodes")


def architectures() -> dict[str, str]:
    """``gfx942`` and the like, by PCI address."""
    found = {}
    for properties in _NODES.glob("*/properties"):
        try:
            said = dict(line.split(maxsplit=1) for line in properties.read_text().splitlines() if " " in line)
            version, place = int(said["gfx_target_version"]), int(said["location_id"])
            domain = int(said.get("domain", "0"))
        except (OSError, ValueError, KeyError):
            continue
        if version:
            where = f"{domain:04x}:{place >> 8:02x}:{place >> 3 & 0x1F:02x}.{place & 7}"
            major, minor, step = version // 10_000, version // 100 % 100, version % 100
            found[where] = f"gfx{major}{minor:x}{step:x}"
    return found
