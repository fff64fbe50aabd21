"""Log files of engines: one per attempt, kept after failure."""

import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

_KEPT_ATTEMPTS = 5
_KEPT_S = 7 * 24 * 3600
_TAIL_BYTES = 16 << 10
_TOKENS = re.compile(r"\b(hf_|sk-|hf-(?:key|host|join|master)-|AKIA)[A-Za-z0-9_-]{8,}|(?<=[Bb]earer )\S{8,}")
_SHORTEST_SECRET = 6


class EngineLogs:
    """``<folder>/<deployment>/<slot>-<hash>/<attempt>.log``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, instance_id: str, attempt: int) -> Path:
        return self._folder / instance_id / f"{attempt}.log"

    def latest(self, instance_id: str) -> int | None:
        """The number of the newest attempt."""
        attempts = self._attempts(self._folder / instance_id)
        return attempts[-1] if attempts else None

    def tail(self, instance_id: str, attempt: int, secrets: Iterable[str] = ()) -> str:
        """The end of the log, without what looks like a token and without ``secrets``."""
        try:
            with self.path(instance_id, attempt).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return scrub(text, secrets)

    def prune(self, instance_id: str) -> None:
        """Keep the newest attempts of an instance."""
        for attempt in self._attempts(self._folder / instance_id)[:-_KEPT_ATTEMPTS]:
            self.path(instance_id, attempt).unlink(missing_ok=True)

    def prune_old(self, live: set[str]) -> None:
        """Remove the logs of instances that ended long ago."""
        for folder in self._folder.glob("*/*"):
            instance_id = f"{folder.parent.name}/{folder.name}"
            if instance_id not in live and folder.is_dir() and time.time() - folder.stat().st_mtime > _KEPT_S:
                shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    def _attempts(folder: Path) -> list[int]:
        return sorted(int(p.stem) for p in folder.glob("*.log") if p.stem.isdigit())


def scrub(text: str, secrets: Iterable[str] = ()) -> str:
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "********")
    return _TOKENS.sub("********", text)
