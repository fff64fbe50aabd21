"""Reading what a person wrote for an engine's command line, and putting ours beside it. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_NUMBER = re.compile(r"-[0-9.]")
_SCALED = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kKmMgGtT]?)")
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SHORTEST_ABBREVIATION = len("--ab")


@dataclass(frozen=True)
class Flag:
    name: str
    """In its one spelling; empty: values before any flag."""
    values: tuple[str, ...]
    index: int
    """Of the argument that names it."""


class Derived(NamedTuple):
    """A flag that we set unless a person did."""

    name: str
    value: str | None = None
    """None: it takes none."""
    unless: tuple[str, ...] = ()
    """Further flags that, set by a person, make this one pointless or wrong."""


@dataclass(frozen=True)
class Given:
    """A person's arguments, understood."""

    flags: tuple[Flag, ...]

    def has(self, *names: str) -> bool:
        return any(flag.name in names for flag in self.flags)

    def text(self, *names: str) -> str | None:
        """The first value of the last mention: what argument parsers take."""
        values = [flag.values[0] for flag in self.flags if flag.name in names and flag.values]
        return values[-1] if values else None

    def integer(self, *names: str) -> int | None:
        """With ``k`` for thousands, ``K`` for 1,024 and so on; None also for what is no number, and below 1."""
        found = _SCALED.fullmatch((self.text(*names) or "").strip())
        if found is None:
            return None
        return int(float(found[1]) * {**_DECIMAL, **_BINARY}[found[2]]) or None

    def share(self, *names: str) -> float | None:
        try:
            value = float(self.text(*names) or "")
        except ValueError:
            return None
        return value if 0 < value <= 1 else None

    def switch(self, name: str, default: bool = False) -> bool:
        """``--name`` or ``--no-name``, whichever came last."""
        off = "--no-" + name.removeprefix("--")
        for flag in reversed(self.flags):
            if flag.name in (name, off):
                return flag.name == name
        return default


@dataclass(frozen=True)
class Dialect:
    """How one engine's argument parser reads."""

    synonyms: Mapping[str, str] = field(default_factory=dict)
    """Spelling → the one that we use."""
    underscores: bool = False
    """``--max_model_len`` means ``--max-model-len``, and ``--config.key`` sets a part of ``--config``."""
    abbreviations: bool = False
    """``--max-model-l`` does, too (Python's argparse)."""

    def canonical(self, flag: str) -> str:
        name = flag.split("=", 1)[0]
        if self.underscores and name.startswith("--"):
            name = "--" + name.removeprefix("--").partition(".")[0].replace("_", "-")
        return self.synonyms.get(name, name)

    def read(self, args: Sequence[str]) -> Given:
        found: list[tuple[str, list[str], int]] = []
        for index, arg in enumerate(args):
            if is_flag(arg):
                found.append((self.canonical(arg), arg.split("=", 1)[1:], index))
            elif found:
                found[-1][1].append(arg)
            else:
                found.append(("", [arg], index))
        return Given(tuple(Flag(name, tuple(values), index) for name, values, index in found))

    def refused(self, args: Sequence[str], ours: Mapping[str, str]) -> dict[int, str]:
        """Index → remedy of the arguments that ``ours`` names, in any spelling."""
        names = ((i, self.canonical(arg)) for i, arg in enumerate(args) if is_flag(arg))
        return {i: ours[full] for i, name in names if (full := self._ours(name, ours)) is not None}

    def _ours(self, name: str, ours: Mapping[str, str]) -> str | None:
        if name in ours:
            return name
        if not self.abbreviations or len(name) < _SHORTEST_ABBREVIATION or not name.startswith("--"):
            return None
        return next((full for full in ours if full.startswith(name)), None)


def is_flag(arg: str) -> bool:
    return len(arg) > 1 and arg.startswith("-") and not _NUMBER.match(arg)


def derived_args(derived: Sequence[Derived], given: Given) -> list[str]:
    """Those that the person did not set."""
    kept = (d for d in derived if not given.has(d.name, *d.unless))
    return [part for d in kept for part in ((d.name,) if d.value is None else (d.name, d.value))]


def contradictions(given: Given, wanted: Mapping[str, tuple[str, object]]) -> dict[int, str]:
    """``wanted``: flag → (field of the spec, its value; None: it says nothing)."""
    found = {}
    for flag in given.flags:
        field_name, value = wanted.get(flag.name, ("", None))
        if value is not None and flag.values and not _same(flag, value):
            found[flag.index] = f"{flag.name} {flag.values[0]} wins over {field_name} {value}; leave one of them out"
    return found


def repeated(given: Given, merged: frozenset[str] = frozenset()) -> dict[int, str]:
    """Flags given more than once with different values, of which the engine keeps the last; not those of ``merged``."""
    last: dict[str, Flag] = {flag.name: flag for flag in given.flags if flag.name}
    return {
        flag.index: f"{flag.name} is given again later, with another value, and the last one counts"
        for flag in given.flags
        if flag.name in last and flag.name not in merged and flag.values != last[flag.name].values
    }


def _same(flag: Flag, value: object) -> bool:
    if isinstance(value, int):
        return Given((flag,)).integer(flag.name) == value
    return flag.values[0] == str(value)
