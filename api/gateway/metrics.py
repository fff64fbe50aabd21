"""The gateway's Prometheus metrics. A label value exists only for what the table knows."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0)

NO_MODEL = ""
"""Label of requests that were refused before their model was known."""


class Busy(Protocol):
    @property
    def instance_id(self) -> str: ...
    @property
    def in_flight(self) -> int: ...


class Metrics:
    """Children are looked up once per label value, not once per request."""

    def __init__(self, upstreams: Iterable[Busy], registry: CollectorRegistry | None = None) -> None:
        """``registry``: where to register; None: one of its own, as a process may have several gateways."""
        self.registry = registry or CollectorRegistry()
        self._requests = Counter(
            "holdfast_gateway_requests",
            "Requests, by answer; 499: the client left.",
            ["model", "code"],
            registry=self.registry,
        )
        self._duration = Histogram(
            "holdfast_gateway_request_duration_seconds",
            "From the request's first byte to the answer's last one.",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._ttft = Histogram(
            "holdfast_gateway_time_to_first_token_seconds",
            "Until the first event of a streamed answer.",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._retries = Counter(
            "holdfast_gateway_retries",
            "Requests sent again before any reply.",
            ["model"],
            registry=self.registry,
        )
        self._codes: dict[tuple[str, int], Counter] = {}
        self._durations: dict[str, Histogram] = {}
        self._ttfts: dict[str, Histogram] = {}
        self.registry.register(_InFlight(upstreams))

    def finished(self, model: str, code: int, seconds: float) -> None:
        counter = self._codes.get((model, code))
        if counter is None:
            counter = self._codes[model, code] = self._requests.labels(model, str(code))
        counter.inc()
        duration = self._durations.get(model)
        if duration is None:
            duration = self._durations[model] = self._duration.labels(model)
        duration.observe(seconds)

    def first_token(self, model: str, seconds: float) -> None:
        ttft = self._ttfts.get(model)
        if ttft is None:
            ttft = self._ttfts[model] = self._ttft.labels(model)
        ttft.observe(seconds)

    def retried(self, model: str) -> None:
        self._retries.labels(model).inc()

    def forget(self, model: str) -> None:
        """A deployment is gone; its series end."""
        self._requests.remove_by_labels({"model": model})
        self._codes = {key: child for key, child in self._codes.items() if key[0] != model}
        for family in (self._duration, self._ttft, self._retries):
            family.remove_by_labels({"model": model})
        self._durations.pop(model, None)
        self._ttfts.pop(model, None)

    def render(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class _InFlight(Collector):
    """Read when asked for, so that counting costs requests nothing."""

    def __init__(self, upstreams: Iterable[Busy]) -> None:
        self._upstreams = upstreams

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("holdfast_gateway_in_flight", "Requests in an engine now.", labels=["endpoint"])
        counts: dict[str, int] = {}
        for upstream in self._upstreams:  # an instance may still be busy under an older fence
            counts[upstream.instance_id] = counts.get(upstream.instance_id, 0) + upstream.in_flight
        for endpoint, count in counts.items():
            family.add_metric([endpoint], count)
        yield family
