"""What several gateway processes of one machine count, brought together for whoever is asked.

Each leaves what it has counted in a file, a little later than it happens; the one that is asked adds up all files. The
file of a process that ended stays, as counters must not fall; what was going on in it does not count any more.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any

import orjson

from api.gateway.series import Snapshot

ENVIRONMENT = "PROMETHEUS_MULTIPROC_DIR"
"""Where the workers of one gateway meet; as ``prometheus_client`` calls it, so that other tools know it, too."""

_PATTERN = "holdfast-*.json"
_FRESH_S = 10.0
"""After so long without a word, what was going on in a process is not going on any more."""


class SharedMetrics:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"holdfast-{os.getpid()}-{token_hex(4)}.json"

    def leave(self, counted: Snapshot, going_on: Snapshot) -> None:
        """Replace what we left before. A folder that is gone, or full, is no reason to stop serving."""
        temporary = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):
            temporary.write_bytes(orjson.dumps({"counted": counted, "going_on": going_on}))
            temporary.replace(self._path)

    def others(self) -> Iterator[tuple[Snapshot, Snapshot]]:
        """What the others have counted, and what is going on in them."""
        for path in self._folder.glob(_PATTERN):
            if path == self._path:
                continue
            with contextlib.suppress(OSError, orjson.JSONDecodeError):
                fresh = time.time() - path.stat().st_mtime < _FRESH_S
                left: dict[str, Any] = orjson.loads(path.read_bytes())
                yield left["counted"], left["going_on"] if fresh else {}


def shared_by_environment() -> SharedMetrics | None:
    """None: this process is alone."""
    folder = os.environ.get(ENVIRONMENT)
    return SharedMetrics(Path(folder)) if folder else None


def without(snapshot: Snapshot, forgotten: Iterable[str]) -> Mapping[str, list[Any]]:
    """Of what others counted, what does not belong to models that are gone."""
    gone = set(forgotten)
    if not gone:
        return snapshot
    return {name: [row for row in rows if row[0][0] not in gone] for name, rows in snapshot.items()}
