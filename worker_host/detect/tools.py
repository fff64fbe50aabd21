"""Asking the vendors' command line tools: whatever they do, the answer is text or ``CannotLook``."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from worker_host.detect.card import CannotLook

TIMEOUT_S = 20.0
"""Some take seconds for each card while it is being reset."""
_LONGEST = 8 << 20
_WARNINGS_MOST = 50
"""Brackets before the JSON itself."""
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    # They write MB and mean MiB.
    _UNITS |= dict.fromkeys((_letter, f"{_letter}b", f"{_letter}ib"), 1 << 10 * _power)

Json = dict[str, Any]


def find(name: str, *folders: str) -> str | None:
    """Path of a tool: on the PATH, or in the folders where its installer puts it."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *folders]))


def ask(tool: str, *args: str, cwd: Path | None = None, libraries: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """What it prints; raises CannotLook. An exit code other than 0 with output is left to whoever reads the output."""
    env = {**os.environ, "LC_ALL": "C"}
    if libraries:
        env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (libraries, env.get("LD_LIBRARY_PATH"))))
    name = Path(tool).name
    try:
        done = subprocess.run(
            [tool, *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=cwd,
            env=env,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotLook(f"{name} did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise CannotLook(f"{name} cannot be run: {error.strerror or error}") from error
    text = done.stdout[:_LONGEST].decode(errors="replace").replace("\x00", "")
    if not text.strip():
        raise CannotLook(f"{name} failed: {last_words(done.stderr, done.returncode)}")
    return text


def last_words(errors: bytes, returncode: int) -> str:
    lines = errors[-_LONGEST:].decode(errors="replace").replace("\x00", "").strip().splitlines()
    return lines[-1].strip()[:300] if lines else f"no output, exit code {returncode}"


def first_json(text: str, tool: str) -> Any:
    """The first JSON object or list of a text that may begin with warnings. Raises CannotLook."""
    for start in (m.start() for m in islice(re.finditer(r"[\[{]", text), _WARNINGS_MOST)):
        try:
            value, _ = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) or (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
            return value
    raise CannotLook(f"{tool} said no JSON: {last_line(text)}")


def plain(value: object) -> Mapping[str, Any]:
    """An object with its keys in lower case and without spaces around them; empty for anything else."""
    return {str(k).strip().lower(): v for k, v in value.items()} if isinstance(value, dict) else {}


def items(value: object) -> list[Mapping[str, Any]]:
    return [plain(item) for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text_of(value: object) -> str:
    """Without the many ways of saying nothing."""
    said = "" if value is None or isinstance(value, (dict, list)) else str(value).strip()
    return "" if said.lower() in ("n/a", "na", "none", "null", "-", "unknown", "[n/a]", "not supported") else said[:500]


def number(value: object) -> float | None:
    """``"52C"``, ``"96.66W"``, ``3``, ``{"value": 3, "unit": "W"}``; None for anything else."""
    if isinstance(value, dict):
        return number(value.get("value"))
    match = re.match(r"[-+]?\d+(\.\d+)?", text_of(value))
    return float(match[0]) if match and len(match[0]) < 40 else None


def ordinal(value: object) -> int | None:
    """A number by which cards or processes are counted, written plainly; None for anything else."""
    return int(str(value)) if re.fullmatch(r"[0-9]{1,9}", str(value)) else None


def last_line(text: str) -> str:
    """Where tools that fail say why."""
    lines = text.strip().splitlines()
    return lines[-1].strip()[:300] if lines else "nothing"


def whole(value: object) -> int | None:
    found = number(value)
    return int(found) if found is not None and 0 <= found < 1 << 62 else None


def size(value: object, unit: str = "b") -> int | None:
    """Bytes of ``"81920MiB"``, ``"65520"`` (in ``unit``) or ``{"value": 196592, "unit": "MB"}``."""
    if isinstance(value, dict):
        return size(value.get("value"), text_of(value.get("unit")) or unit)
    match = re.match(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text_of(value))
    if match is None or len(match[1]) > 30:
        return None
    factor = _UNITS.get((match[2] or unit).lower())
    found = None if factor is None else int(float(match[1]) * factor)
    return found if found is not None and found < 1 << 62 else None


def share(value: object) -> float | None:
    """Of a percentage, between 0 and 1."""
    found = number(value)
    return None if found is None else min(1.0, max(0.0, found / 100))
