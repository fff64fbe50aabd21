"""The gateway's Prometheus metrics. A label value exists only for what the table knows."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from api.gateway.series import Counts, Distribution, Distributions, Family, Levels, Snapshot
from api.gateway.shared_metrics import SharedMetrics, shared_by_environment, without
from fleet.usage import Usage

_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)

NO_MODEL = ""
"""Label of requests that were refused before their model was known."""
CLIENT_LEFT = 499


class Busy(Protocol):
    @property
    def instance_id(self) -> str: ...
    @property
    def in_flight(self) -> int: ...


Loads = Callable[[], Iterable[tuple[str, int, int]]]
"""Of every model: its name, requests in engines, and requests that wait here."""


class Metrics:
    """One per gateway. Where ``PROMETHEUS_MULTIPROC_DIR`` is set, all processes that share it answer for all."""

    def __init__(
        self, upstreams: Iterable[Busy], registry: CollectorRegistry | None = None, *, loads: Loads = lambda: ()
    ) -> None:
        """``registry``: where to register; None: one of its own, as a process may have several gateways."""
        self.registry = registry or CollectorRegistry()
        self._upstreams, self._loads = upstreams, loads
        self._shared: SharedMetrics | None = shared_by_environment()
        self._forgotten: set[str] = set()
        self._make_of_models()
        self._make_of_targets()
        self._in_engines = Levels("holdfast_gateway_in_flight", "Requests in an engine now.", ["endpoint"])
        self._busy = Levels("holdfast_gateway_model_in_flight", "Requests in engines now.", ["model"])
        self._waiting = Levels("holdfast_gateway_waiting", "Requests that wait in gateways for an engine.", ["model"])
        self._levels: dict[str, Levels] = {"endpoint": self._in_engines, "busy": self._busy, "waiting": self._waiting}
        self.registry.register(_Collected(self._collect))

    def _make_of_models(self) -> None:
        named = "holdfast_gateway_"
        self._requests = Counts(f"{named}requests", "Requests, by answer; 499: the client left.", ["model", "code"])
        self._retries = Counts(f"{named}retries", "Requests sent again before any reply.", ["model"])
        self._fallbacks = Counts(f"{named}fallbacks", "Requests that went on to another route.", ["model", "to"])
        self._aborts = Counts(f"{named}aborts", "Requests taken back from engines before their end.", ["model"])
        self._duration = Distributions(
            f"{named}request_duration_seconds",
            "From the request's first byte to the answer's last one.",
            ["model"],
            _SECONDS,
        )
        self._ttft = Distributions(
            f"{named}time_to_first_token_seconds", "Until the first event of a streamed answer.", ["model"], _SECONDS
        )
        self._queued = Distributions(
            f"{named}queue_seconds", "Time that requests waited here for an engine.", ["model"], _SECONDS
        )

    def _make_of_targets(self) -> None:
        named = "holdfast_gateway_"
        of_tenant = ["model", "target", "tenant"]
        self._answers = Counts(
            f"{named}target_requests",
            "Requests that were sent to a deployment or provider, by answer.",
            [*of_tenant, "code"],
        )
        self._tokens = Counts(
            f"{named}tokens", "By kind; cached ones are also prompt, reasoning also completion.", [*of_tenant, "kind"]
        )
        self._audio = Counts(f"{named}audio_seconds", "Length of audio heard or spoken.", of_tenant)
        self._images = Counts(f"{named}images", "Images made.", of_tenant)
        self._target_ttft = Distributions(
            f"{named}target_time_to_first_token_seconds",
            "From when it was sent until the first event of its answer.",
            ["model", "target"],
            _SECONDS,
        )
        self._gaps = Distributions(
            f"{named}inter_token_latency_seconds",
            "Between two reads of a streamed answer.",
            ["model", "target"],
            _GAPS,
        )

    # --- what requests call ---

    def finished(self, model: str, code: int, seconds: float) -> None:
        """Every request, once. ``seconds``: in all."""
        values, key = self._requests.values, (model, code)
        values[key] = values.get(key, 0) + 1
        self._duration.of((model,)).observe(seconds)

    def first_token(self, model: str, seconds: float) -> None:
        self._ttft.of((model,)).observe(seconds)

    def settled(
        self,
        model: str,
        target: str,
        tenant: str,
        code: int,
        usage: Usage,
        *,
        queued: float = 0.0,
        first_token: float | None = None,
    ) -> None:
        """Every request that was sent to a target, once, when its use is known. ``queued``: seconds in our queue.
        ``first_token``: seconds from when it was sent."""
        key = (model, target, tenant)
        values, answer = self._answers.values, (*key, code)
        values[answer] = values.get(answer, 0) + 1
        if usage.prompt_tokens:
            self._count_tokens(key, usage)
        if usage.audio_seconds:
            self._audio.add(key, usage.audio_seconds)
        if usage.images:
            self._images.add(key, usage.images)
        self._queued.of((model,)).observe(queued)
        if first_token is not None:
            self._target_ttft.of((model, target)).observe(first_token)
        if code == CLIENT_LEFT:
            self.aborted(model)

    def gaps(self, model: str, target: str) -> Distribution:
        """Get it once for a streamed answer; ``observe`` the seconds since the read before, for every one."""
        return self._gaps.of((model, target))

    def retried(self, model: str) -> None:
        self._retries.add((model,))

    def fell_back(self, model: str, to: str) -> None:
        """Its request goes on to another route."""
        self._fallbacks.add((model, to))

    def aborted(self, model: str) -> None:
        """Taken back from an engine, for another reason than that its client left: ``settled`` counts that."""
        self._aborts.add((model,))

    def _count_tokens(self, key: tuple[str, str, str], usage: Usage) -> None:
        values = self._tokens.values
        prompt, completion = (*key, "prompt"), (*key, "completion")
        values[prompt] = values.get(prompt, 0) + usage.prompt_tokens
        values[completion] = values.get(completion, 0) + usage.completion_tokens
        if usage.cached_tokens:
            self._tokens.add((*key, "cached"), usage.cached_tokens)
        if usage.reasoning_tokens:
            self._tokens.add((*key, "reasoning"), usage.reasoning_tokens)

    # --- what happens now and then ---

    def forget(self, model: str) -> None:
        """A public name is gone; its series end."""
        self._forgotten.add(model)
        for family in self._families().values():
            family.forget("model", model)

    def forget_tenant(self, tenant: str) -> None:
        """A key is gone. What the other processes counted for it stays until they forget it, too."""
        for family in self._families().values():
            family.forget("tenant", tenant)

    def know(self, model: str) -> None:
        """A public name is there, perhaps again."""
        self._forgotten.discard(model)

    def flush(self) -> None:
        """Once or twice a second: let the other processes know. Nothing where there are none."""
        if self._shared is not None:
            self._shared.leave(self._counted(), self._going_on())

    def stop(self) -> None:
        """Nothing goes on here any more; what was counted stays."""
        if self._shared is not None:
            self._shared.leave(self._counted(), {})

    def render(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

    # --- what is asked for ---

    def _families(self) -> dict[str, Family]:
        return {
            "requests": self._requests,
            "retries": self._retries,
            "fallbacks": self._fallbacks,
            "aborts": self._aborts,
            "duration": self._duration,
            "ttft": self._ttft,
            "queued": self._queued,
            "answers": self._answers,
            "tokens": self._tokens,
            "audio": self._audio,
            "images": self._images,
            "target_ttft": self._target_ttft,
            "gaps": self._gaps,
        }

    def _counted(self) -> Snapshot:
        return {name: family.snapshot() for name, family in self._families().items()}

    def _going_on(self) -> Snapshot:
        for level in self._levels.values():
            level.values = {}
        for upstream in self._upstreams:  # an instance may still be busy under an older fence
            self._in_engines.add((upstream.instance_id,), upstream.in_flight)
        for model, busy, waiting in self._loads():
            self._busy.add((model,), busy)
            self._waiting.add((model,), waiting)
        return {name: level.snapshot() for name, level in self._levels.items()}

    def _collect(self) -> Iterator[Metric]:
        counted, going_on = [self._counted()], [self._going_on()]
        for theirs, there in self._shared.others() if self._shared is not None else ():
            counted.append(without(theirs, self._forgotten))
            going_on.append(there)
        for name, family in self._families().items():
            yield family.metric(one.get(name, []) for one in counted)
        for name, level in self._levels.items():
            yield level.metric(one.get(name, []) for one in going_on)


class _Collected(Collector):
    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        return self._collect()
