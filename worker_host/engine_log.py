"""Log files of engines: one per attempt, kept after failure."""

import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from fleet.access.sealing import MASK, CannotOpen, Sealer
from worker_host.files import write_atomically
from worker_host.log_cap import forget
from worker_host.runtime.container_log import position_file

_KEPT_ATTEMPTS = 5
_KEPT_S = 7 * 24 * 3600
_TAIL_BYTES = 16 << 10
_HEAD_BYTES = 1 << 20
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
        attempts = self.attempts(instance_id)
        return attempts[-1] if attempts else None

    def begin(self, instance_id: str, attempt: int, sealed: Iterable[str]) -> None:
        """``attempt`` is about to begin. ``sealed``: values that nobody may see in its log, now or later."""
        write_atomically(_sealed_file(self.path(instance_id, attempt)), json.dumps(list(sealed)))

    def secrets(self, instance_id: str, attempt: int, sealer: Sealer) -> tuple[str, ...]:
        """Raises CannotOpen: then nobody can say what of the log may be shown."""
        try:
            sealed = json.loads(_sealed_file(self.path(instance_id, attempt)).read_text())
        except FileNotFoundError:
            return ()
        except (OSError, ValueError) as error:
            raise CannotOpen(str(error)) from error
        return tuple(sealer.open(str(value)) for value in sealed)

    def beginning(self, instance_id: str, attempt: int) -> str:
        """What was printed first, as far as an engine may go on about its start."""
        try:
            with self.path(instance_id, attempt).open("rb") as file:
                return file.read(_HEAD_BYTES).decode(errors="replace").replace("\0", "")
        except OSError:
            return ""

    def tail(self, instance_id: str, attempt: int, secrets: Iterable[str] = ()) -> str:
        """The end of the log, without what looks like a token and without ``secrets``."""
        try:
            with self.path(instance_id, attempt).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return scrub(text.replace("\0", ""), secrets)

    def prune(self, instance_id: str) -> None:
        """Keep the newest attempts of an instance."""
        for attempt in self.attempts(instance_id)[:-_KEPT_ATTEMPTS]:
            forget(self.path(instance_id, attempt))
            for companion in (position_file, _sealed_file):
                companion(self.path(instance_id, attempt)).unlink(missing_ok=True)

    def prune_old(self, live: set[str]) -> None:
        """Remove the logs of instances that ended long ago."""
        for folder in self._folder.glob("*/*"):
            instance_id = f"{folder.parent.name}/{folder.name}"
            if instance_id not in live and folder.is_dir() and time.time() - folder.stat().st_mtime > _KEPT_S:
                shutil.rmtree(folder, ignore_errors=True)

    def attempts(self, instance_id: str) -> list[int]:
        """The numbers of those that have a log, oldest first."""
        return sorted(int(p.stem) for p in (self._folder / instance_id).glob("*.log") if p.stem.isdigit())


def _sealed_file(log: Path) -> Path:
    return log.with_suffix(".sealed")


def scrub(text: str, secrets: Iterable[str] = ()) -> str:
    for form in sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True):
        text = text.replace(form, MASK)
    return _TOKENS.sub(MASK, text)


def _forms(secret: str) -> Iterator[str]:
    """How a value may be printed: whole, line by line, within JSON or a URL."""
    for part in (secret, *secret.splitlines()):
        if len(part) >= _SHORTEST_SECRET:
            yield from (part, json.dumps(part)[1:-1], quote(part, safe="", errors="surrogatepass"))
