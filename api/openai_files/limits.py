"""How much clients may keep here."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Limits:
    file_bytes: int = 200 << 20
    """Of one file."""
    key_bytes: int = 20 << 30
    """Of all files of one key."""
    kept: timedelta = timedelta(days=30)
    """Input and output of batches, where nobody says otherwise."""
    shortest_kept: timedelta = timedelta(hours=1)
    longest_kept: timedelta = timedelta(days=30)
