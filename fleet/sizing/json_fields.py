"""JSON that somebody else wrote: bounded, and each field checked when it is read. Pure."""

import json
import math
from typing import Any, NoReturn

from fleet.sizing.files import ReadError, ReadProblem

_LARGEST = 2**48
"""No dimension, size or count of a model is larger; products of a few of them stay harmless."""


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """Raises ReadError for whatever is no JSON object, or one that readers may understand differently."""
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_number, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise malformed(name, f"is not proper JSON: {reason}") from error
    if not isinstance(value, dict):
        raise malformed(name, "is not a JSON object")
    return value


def malformed(name: str, what: str) -> ReadError:
    return ReadError(ReadProblem.MALFORMED, f"{name} {what}", "the file is damaged or incomplete: fetch it again")


class Fields:
    """Of one object. A field may have several names: the first that has a value counts; ``null`` is no value."""

    def __init__(self, values: dict[str, Any], where: str, defaults: dict[str, Any] | None = None) -> None:
        """``where``: for people. ``defaults``: for fields that have no value."""
        self._values = values
        self._defaults = defaults or {}
        self._where = where

    def __bool__(self) -> bool:
        return bool(self._values)

    def __contains__(self, name: str) -> bool:
        return self._find((name,)) is not None

    @property
    def values(self) -> dict[str, Any]:
        return self._values

    def with_defaults(self, defaults: dict[str, Any]) -> "Fields":
        return Fields(self._values, self._where, {**defaults, **self._defaults})

    def need(self, *names: str) -> int:
        """A whole number. Raises ReadError where none of the names has one."""
        found = self.count(*names)
        if found <= 0:
            raise ReadError(
                ReadProblem.UNSUPPORTED,
                f"{self._where} does not say {names[0]}",
                "memory cannot be foreseen for a model of this kind",
            )
        return found

    def count(self, *names: str, default: int = 0) -> int:
        """A whole number from 0. Of a list (one for each layer) the largest."""
        value = self._find(names)
        if isinstance(value, list) and value:
            return max(self._whole(names, item) for item in value)
        return default if value is None or value == [] else self._whole(names, value)

    def counts(self, *names: str) -> tuple[int, ...]:
        """A list of whole numbers; empty where there is none."""
        value = self._find(names)
        return tuple(self._whole(names, item) for item in value) if isinstance(value, list) else ()

    def number(self, *names: str, default: float = 0.0) -> float:
        value = self._find(names)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self._refuse(names, value, "a number")
        return float(value)

    def text(self, *names: str) -> str:
        value = self._find(names)
        return value[:512] if isinstance(value, str) else ""

    def texts(self, *names: str) -> tuple[str, ...]:
        value = self._find(names)
        return tuple(v for v in value if isinstance(v, str)) if isinstance(value, list) else ()

    def flag(self, *names: str) -> bool | None:
        value = self._find(names)
        return value if isinstance(value, bool) else None

    def sub(self, *names: str) -> "Fields":
        """An object in it; empty where there is none."""
        for name in names:
            if isinstance(value := self._values.get(name), dict):
                return Fields(value, f"{self._where}: {name}")
        return Fields({}, self._where)

    def _find(self, names: tuple[str, ...]) -> Any:
        for source in (self._values, self._defaults):
            for name in names:
                if (value := source.get(name)) is not None:
                    return value
        return None

    def _whole(self, names: tuple[str, ...], value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
            self._refuse(names, value, f"a whole number from 0 to {_LARGEST:,}")
        return int(value)

    def _refuse(self, names: tuple[str, ...], value: Any, wanted: str) -> NoReturn:
        name = next(n for n in names if self._values.get(n, self._defaults.get(n)) is not None)
        raise malformed(self._where, f"says {name} = {str(value)[:40]!r}, which is not {wanted}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return values


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _whole(text: str) -> int:
    if len(text) > 40:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)
