"""Numbers from the text in which engines tell their metrics. Pure."""

import re
from functools import cache

_NUMBER = r"([0-9]{1,40}(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,2})?)"


@cache
def _line(name: str) -> re.Pattern[str]:
    return re.compile(rf"^{re.escape(name)}(?:\{{[^}}\n]*\}})? {_NUMBER}$", re.MULTILINE)


def samples(metrics: str, name: str) -> list[str]:
    """As printed, for each set of labels. Negative values and NaN are none."""
    return _line(name).findall(metrics)


def total(metrics: str, *names: str) -> float | None:
    """Over all labels of the first name that is there; None: there is none."""
    for name in names:
        if values := samples(metrics, name):
            return sum(float(value) for value in values)
    return None


def highest(metrics: str, *names: str) -> float | None:
    """Over all labels of the first name that is there."""
    for name in names:
        if values := samples(metrics, name):
            return max(float(value) for value in values)
    return None
