"""Which containers may run here, for the time while nobody can ask Docker."""

import threading
from pathlib import Path

from fleet.inventory import EngineRef
from fleet.model import Record
from worker_host.files import write_atomically


class Entry(Record):
    engine: EngineRef
    name: str
    port: int = 0


class _Pages(Record):
    containers: tuple[Entry, ...] = ()


class Journal:
    """On disk before a container is made; it may name some that have ended, and never lacks one that runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._starting: set[str] = set()

    def entries(self) -> tuple[Entry, ...]:
        try:
            return _Pages.model_validate_json(self._path.read_text()).containers
        except (OSError, ValueError):
            return ()

    def begin(self, entry: Entry) -> None:
        """A container is about to be made. Raises OSError."""
        with self._lock:
            self._starting.add(entry.name)
            self._write({e.name: e for e in self.entries()} | {entry.name: entry})

    def made(self, name: str) -> None:
        """It was, or Docker has refused."""
        with self._lock:
            self._starting.discard(name)

    def correct(self, running: list[Entry]) -> None:
        """Docker has just said what runs."""
        with self._lock:
            known = {e.name: e for e in self.entries()}
            true = {e.name: e for e in running} | {n: e for n, e in known.items() if n in self._starting}
            if true != known:
                self._write(true)

    def _write(self, entries: dict[str, Entry]) -> None:
        write_atomically(self._path, _Pages(containers=tuple(entries.values())).model_dump_json())
