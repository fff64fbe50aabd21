"""Why did the engine end? From exit code and log to a class, a hint and what can help. Pure."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from fleet.instances import EngineExit, Remedy

_QUOTED = 200
"""Characters of a line that a hint repeats."""
_LONGEST_LINE = 4096
"""Characters of a line that are looked at: patterns with gaps take quadratic time."""


@dataclass(frozen=True)
class FailureClass:
    name: str
    patterns: tuple[re.Pattern[str], ...]
    hint: str
    remedy: Remedy
    at_most: int | None = None
    """As in ``EngineExit``."""
    gpu_fault: Literal["", "possible", "certain"] = ""


@cache
def known_classes() -> dict[str, FailureClass]:
    """From ``failure_patterns.json``; order matters: the first class that matches a line wins."""
    raw = json.loads(files("fleet.engines").joinpath("failure_patterns.json").read_text())
    return {
        c["class"]: FailureClass(
            c["class"],
            tuple(re.compile(p) for p in c["patterns"]),
            c["hint"],
            Remedy(c["remedy"]),
            c.get("at_most"),
            c.get("gpu_fault", ""),
        )
        for c in raw["classes"]
    }


def classify(
    exit_code: int | None, log_tail: str, *, served: bool, extra: Sequence[tuple[str, str]] = ()
) -> EngineExit:
    """``extra`` are (class, pattern) pairs of the engine's own. The earliest line that matches is the cause.

    An engine that had served is always tried again: what it printed may be years old or an echo. Only what speaks of
    a GPU is believed of it.
    """
    found = _cause(log_tail, extra)
    if found is None:
        name, hint = _from_code(exit_code)
        return EngineExit(exit_code=exit_code, failure_class=name, hint=hint, log_tail=log_tail, served=served)
    cause, match = found
    believed = not served or bool(cause.gpu_fault)
    return EngineExit(
        exit_code=exit_code,
        failure_class=cause.name,
        hint=f"{cause.hint} The engine said: {match.string.strip()[:_QUOTED]}",
        remedy=cause.remedy if believed else Remedy.HERE,
        at_most=cause.at_most if believed else None,
        max_model_len=_fitting(match) if believed else None,
        gpu_fault=cause.gpu_fault,
        log_tail=log_tail,
        served=served,
    )


def _cause(log_tail: str, extra: Sequence[tuple[str, str]]) -> tuple[FailureClass, re.Match[str]] | None:
    """The class and where the line shows it."""
    classes = known_classes()
    patterns = [(re.compile(pattern), classes[name]) for name, pattern in extra]
    patterns += [(pattern, cls) for cls in classes.values() for pattern in cls.patterns]
    for line in (whole[:_LONGEST_LINE] for whole in log_tail.splitlines()):
        for pattern, cls in patterns:
            if match := pattern.search(line):
                return cls, match
    return None


def _fitting(match: re.Match[str]) -> int | None:
    """The context length that the engine names as one that would fit."""
    named = match.groupdict().get("max_model_len")
    return int(named) if named else None


def _from_code(exit_code: int | None) -> tuple[str, str]:
    if exit_code in (-9, 137):
        return "killed", "Something killed it: the kernel for lack of memory (see `dmesg`), or a person."
    if exit_code in (-11, -6, -4, 139, 134, 132):
        return "crashed", "The engine crashed; see its log, and try another engine version if it goes on."
    return "unknown", "See the engine's log: `holdfast logs`."
