"""Failure domains and how tightly hosts stand together, by their labels. Pure."""

from collections.abc import Sequence

import numpy as np

from fleet.placement.fleet import Fleet
from fleet.placement.table import Ints

LEVELS = ("rack", "zone", "region")
"""Labels that say where a host stands, the tightest first. Gangs are kept within one of them where they can."""


Columns = Sequence[Ints]
Found = tuple[tuple[int, ...], tuple[int, ...]]


class Domains:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def of(self, label: str) -> Ints:
        """For each row of a host the code of its domain; one without the label is a domain of its own."""
        column, codes = self._fleet.label(label)
        return np.where(column < 0, len(codes) + np.arange(len(column)), column)

    def tightest(self, able: Ints, size: int, first: str | None, replicas: Columns, others: Columns) -> Found | None:
        """``size`` of ``able`` in the tightest domain that has them, by rank, after how good that is (less is better).

        ``replicas`` and ``others``: what tells better hosts from worse; the last of ``others`` tells all apart. Of
        equally tight domains that with the fewest replicas is taken, then the one that is left with the fewest hosts.
        """
        if len(able) < size:
            return None
        levels = dict.fromkeys(([first] if first else []) + list(LEVELS))
        everywhere = np.zeros(self._fleet.host.size, np.int64)
        for number, domain in enumerate([*(self._fleet.label(level)[0] for level in levels), everywhere]):
            found = _within(domain, able, size, replicas, others)
            if found is not None:
                return (number, *found[0]), found[1]
        return None


def _within(domain: Ints, able: Ints, size: int, replicas: Columns, others: Columns) -> Found | None:
    inside = able[domain[able] >= 0]
    if len(inside) < size:
        return None
    wide_enough = np.flatnonzero(np.bincount(domain[inside]) >= size).tolist()
    choices = [_best(inside[domain[inside] == code], size, replicas, others) for code in wide_enough]
    return min(choices, default=None)


def _best(hosts: Ints, size: int, replicas: Columns, others: Columns) -> Found:
    *others, tie = others
    order = hosts[np.lexsort([column[hosts] for column in (tie, *reversed(others), *reversed(replicas))])][:size]
    before, after = ([int(column[order].sum()) for column in columns] for columns in (replicas, others))
    return (*before, len(hosts), *after, int(tie[order].min())), tuple(order.tolist())
