"""Sizes and lengths of time, as people type them."""

import re

import typer

_SIZES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_TIMES = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def size(text: str) -> int:
    """Bytes: ``1073741824``, ``512MiB``, ``1.5GiB``. Raises BadParameter."""
    return _parsed(text, _SIZES, "a size is like 512MiB or 1.5GiB")


def seconds(text: str) -> int:
    """``3600``, ``90s``, ``30m``, ``1h``, ``7d``. Raises BadParameter."""
    return _parsed(text, _TIMES, "a length of time is like 90s, 30m, 1h or 7d")


def _parsed(text: str, units: dict[str, int], remedy: str) -> int:
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)", text.strip())
    unit = units.get(found[2]) if found else None
    if found is None or unit is None:
        raise typer.BadParameter(f"{text!r}: {remedy}")
    return int(float(found[1]) * unit)
