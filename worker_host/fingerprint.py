"""Which machine this is, told by what a copy of its disk does not carry along."""

import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_LETTERS = 16
_STORED_CARDS = 5
_NO_UUIDS = {
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "03000200-0400-0500-0006-000700080009",  # what many boards say that were never given one
    "12345678-1234-5678-90ab-cddeefaabbcc",
}
_OF_THE_HARDWARE = "0"
"""``addr_assign_type`` of an address that is burnt in."""


@dataclass(frozen=True)
class Fingerprint:
    """Hashes; what a machine does not tell (or not to this user) is empty."""

    board: str = ""
    cards: tuple[str, ...] = ()
    """Network cards, by their own addresses: some may come and go."""
    system: str = ""
    """Of the installed system: a copy has the same."""

    def __str__(self) -> str:
        """At most 128 printable characters."""
        return f"v1:{self.board}:{','.join(self.cards[:_STORED_CARDS])}:{self.system}"

    @classmethod
    def parse(cls, text: str) -> "Fingerprint":
        """Raises ValueError."""
        version, *parts = text.split(":")
        if version != "v1" or len(parts) != 3:
            raise ValueError(f"{text!r} is no fingerprint of a machine")
        board, cards, system = parts
        return cls(board, tuple(filter(None, cards.split(","))), system)

    def same_machine(self, other: "Fingerprint") -> bool:
        """By the best that both tell. When they tell nothing in common, they are taken for the same.

        Two that run at once are then still told apart by the relay.
        """
        if self.board and other.board:
            return self.board == other.board
        if self.cards and other.cards:
            return not set(self.cards).isdisjoint(other.cards)
        if self.system and other.system:
            return self.system == other.system
        return True


def fingerprint(root: Path = Path("/")) -> Fingerprint:
    """Of this machine. Blocks for a moment."""
    return Fingerprint(
        board=_board(root),
        cards=tuple(sorted(_hash("card", address) for address in _card_addresses(root))),
        system=_hash("system", _first_text(root / "etc/machine-id", root / "var/lib/dbus/machine-id")),
    )


def _board(root: Path) -> str:
    uuid = _platform_uuid() if sys.platform == "darwin" else _first_text(root / "sys/class/dmi/id/product_uuid")
    return "" if uuid.lower() in _NO_UUIDS else _hash("board", uuid.lower())


def _platform_uuid() -> str:
    command = ["/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r'"IOPlatformUUID" = "([^"]+)"', told)
    return found[1] if found else ""


def _card_addresses(root: Path) -> set[str]:
    """Of real cards, as they left the factory: bridges, containers' ends and made-up addresses change with the wind."""
    found = set()
    for card in (root / "sys/class/net").glob("*"):
        burnt_in = _first_text(card / "addr_assign_type") == _OF_THE_HARDWARE
        if burnt_in and (card / "device").exists() and (address := _first_text(card / "address")):
            found.add(address.lower())
    return found - {"00:00:00:00:00:00"}


def _first_text(*paths: Path) -> str:
    for path in paths:
        try:
            if text := path.read_text().strip():
                return text
        except (OSError, UnicodeDecodeError):
            continue
    return ""


def _hash(kind: str, value: str) -> str:
    return hashlib.sha256(f"holdfast|{kind}|{value}".encode()).hexdigest()[:_LETTERS] if value else ""
