"""Reading an engine's log for people: its last lines, what comes next, and the next attempt after that."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fleet.access.sealing import CannotOpen, Sealer
from worker_host.engine_log import EngineLogs, scrub
from worker_host.log_cap import gap_of, note

_FOLLOW_S = 0.25
_CHUNK = 64 << 10
_LONGEST_LINE = 256 << 10
"""A line without end is shown in pieces."""
_HIDDEN = "[this is not shown: which secrets it may contain cannot be told any more]\n"


class NoLog(Exception):
    """There is none such on this host; the message says so."""


@dataclass(frozen=True)
class LogReader:
    logs: EngineLogs
    sealer: Sealer
    """Opens what may not be shown."""

    def read(self, instance_id: str, attempt: int | None, tail: int, *, follow: bool) -> AsyncIterator[str]:
        """The last ``tail`` lines of ``attempt`` (None: the newest), without secrets. ``follow``: then what comes, for
        as long as it is read; of the newest, also the attempts after it. Raises NoLog."""
        newest = self.logs.latest(instance_id) if _is_instance(instance_id) else None
        if newest is None:
            raise NoLog(f"no log of {instance_id} on this host")
        if not self.logs.path(instance_id, attempt or newest).is_file():
            raise NoLog(f"{instance_id} has no attempt {attempt} on this host")
        return self._read(instance_id, attempt or newest, tail, follow=follow, on=attempt is None)

    async def _read(self, instance_id: str, attempt: int, tail: int, *, follow: bool, on: bool) -> AsyncIterator[str]:
        """``on``: to the next attempts."""
        path = self.logs.path(instance_id, attempt)
        clean = await asyncio.to_thread(self._cleaner, instance_id, attempt)
        text, position = await asyncio.to_thread(last_lines, path, tail)
        yield clean(text)
        following = self._following if on else _nothing_follows
        while follow:
            async for chunk in _new_lines(path, position, partial(following, instance_id, attempt)):
                yield clean(chunk)
            later = following(instance_id, attempt)
            if later is None:
                return
            attempt, path, position = later, self.logs.path(instance_id, later), 0
            clean = await asyncio.to_thread(self._cleaner, instance_id, attempt)
            yield f"[attempt {attempt}]\n"

    def _following(self, instance_id: str, attempt: int) -> int | None:
        """The attempt after that one, or after those that were removed meanwhile."""
        return next((later for later in self.logs.attempts(instance_id) if later > attempt), None)

    def _cleaner(self, instance_id: str, attempt: int) -> Callable[[str], str]:
        try:
            secrets = self.logs.secrets(instance_id, attempt, self.sealer)
        except CannotOpen:
            return lambda text: _HIDDEN if text else ""
        return lambda text: scrub(text, secrets)


def _nothing_follows(_instance_id: str, _attempt: int) -> None:
    return None


async def _new_lines(path: Path, position: int, later: Callable[[], int | None]) -> AsyncIterator[str]:
    """Whole lines after ``position`` as they come; ends when there is a later attempt and this one said everything."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        rest = b""
        while True:
            superseded = later() is not None
            gap = gap_of(path)
            if gap.start <= position < gap.end:  # it was cut out before we came to it
                yield rest.decode(errors="replace") + note(gap.end - position)
                position, rest = gap.end, b""
            file.seek(position)
            data = await asyncio.to_thread(file.read, _CHUNK)
            position += len(data)
            whole, newline, rest = (rest + data.replace(b"\0", b"")).rpartition(b"\n")
            if newline or len(rest) > _LONGEST_LINE:
                yield (whole + newline or rest).decode(errors="replace")
                rest = rest if newline else b""
            elif superseded and not data:
                if rest:
                    yield rest.decode(errors="replace") + "\n"
                return
            else:
                await asyncio.sleep(_FOLLOW_S)


def last_lines(path: Path, count: int) -> tuple[str, int]:
    """The last ``count`` lines and where they end, reading no more of the file than needed. What was cut out of the
    middle counts as a line."""
    if count <= 0:
        return "", path.stat().st_size
    gap = gap_of(path)
    with path.open("rb") as file:
        end = position = file.seek(0, 2)
        parts: list[bytes] = []
        lines = 0
        while position > 0 and lines <= count:
            if gap.start < position <= gap.end:
                parts[-1:] = [parts[-1].partition(b"\n")[2]] if parts else []  # it begins within a line
                parts.append(note(gap.size).encode())
                position = gap.start
                lines += 2
                continue
            floor = gap.end if position > gap.end else 0
            step = min(_CHUNK, position - floor)
            position -= step
            file.seek(position)
            parts.append(file.read(step))
            lines += parts[-1].count(b"\n")
    data = b"".join(reversed(parts)).replace(b"\0", b"")
    return b"".join(data.splitlines(keepends=True)[-count:]).decode(errors="replace"), end


def _is_instance(instance_id: str) -> bool:
    deployment, _, name = instance_id.partition("/")
    return all(_is_name(part) for part in (deployment, name))


def _is_name(part: str) -> bool:
    return bool(part and part.strip(".")) and part.replace("-", "").replace(".", "").isalnum()
