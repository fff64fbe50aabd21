"""Counts and distributions, as cheap as a dictionary, and as Prometheus reads them.

prometheus_client's own cost several times as much, and as much again where several processes share them through mapped
files; a request touches a dozen.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

V = TypeVar("V")
Labels = tuple[Any, ...]
"""Values in the order of the family's labels; numbers are fine."""


class Counts:
    """Numbers that grow, by labels. Add with ``counts.values[labels] = counts.values.get(labels, 0) + number``."""

    __slots__ = ("_help", "_labels", "_name", "values")

    def __init__(self, name: str, help_: str, labels: Iterable[str]) -> None:
        self._name, self._help, self._labels = name, help_, tuple(labels)
        self.values: dict[Labels, float] = {}

    def add(self, labels: Labels, number: float = 1) -> None:
        self.values[labels] = self.values.get(labels, 0) + number

    def forget(self, label: str, value: str) -> None:
        """End all series with this value of a label, if the family has it."""
        self.values = _without(self.values, self._labels, label, value)

    def snapshot(self) -> list[Any]:
        return [[labels, value] for labels, value in self.values.items()]

    def metric(self, snapshots: Iterable[list[Any]]) -> Metric:
        """Summed over processes."""
        summed: dict[tuple[str, ...], float] = {}
        for snapshot in snapshots:
            for labels, value in snapshot:
                texts = tuple(map(str, labels))
                summed[texts] = summed.get(texts, 0) + value
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for texts, value in summed.items():
            family.add_metric(texts, value)
        return family


class Levels(Counts):
    """Numbers that go up and down, set anew for every look."""

    __slots__ = ()

    def metric(self, snapshots: Iterable[list[Any]]) -> Metric:
        counted = super().metric(snapshots)
        family = GaugeMetricFamily(self._name, self._help, labels=self._labels)
        for sample in counted.samples:
            family.add_metric([sample.labels[name] for name in self._labels], sample.value)
        return family


class Distribution:
    """Of durations, in seconds. ``observe`` is for the hot path."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.total += seconds


class Distributions:
    """By labels."""

    __slots__ = ("_bounds", "_help", "_labels", "_name", "values")

    def __init__(self, name: str, help_: str, labels: Iterable[str], bounds: tuple[float, ...]) -> None:
        self._name, self._help, self._labels, self._bounds = name, help_, tuple(labels), bounds
        self.values: dict[Labels, Distribution] = {}

    def of(self, labels: Labels) -> Distribution:
        found = self.values.get(labels)
        if found is None:
            found = self.values[labels] = Distribution(self._bounds)
        return found

    def forget(self, label: str, value: str) -> None:
        self.values = _without(self.values, self._labels, label, value)

    def snapshot(self) -> list[Any]:
        return [[labels, d.counts, d.total] for labels, d in self.values.items()]

    def metric(self, snapshots: Iterable[list[Any]]) -> Metric:
        summed: dict[tuple[str, ...], tuple[list[int], float]] = {}
        for snapshot in snapshots:
            for labels, counts, total in snapshot:
                texts = tuple(map(str, labels))
                known, sum_ = summed.get(texts, ([0] * len(counts), 0.0))
                summed[texts] = ([a + b for a, b in zip(known, counts, strict=True)], sum_ + total)
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for texts, (counts, total) in summed.items():
            family.add_metric(texts, buckets=self._buckets(counts), sum_value=total)
        return family

    def _buckets(self, counts: list[int]) -> list[tuple[str, float]]:
        """Cumulative, by upper bound."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        return [(bound, float(sum(counts[: n + 1]))) for n, bound in enumerate(bounds)]


def _without(values: dict[Labels, V], names: tuple[str, ...], label: str, value: str) -> dict[Labels, V]:
    if label not in names:
        return values
    at = names.index(label)
    return {labels: kept for labels, kept in values.items() if labels[at] != value}


Family = Counts | Distributions
Snapshot = Mapping[str, list[Any]]
"""Of all families of one process, by the name that the process has for them."""
