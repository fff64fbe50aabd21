"""Is the new revision as good as the old one? From what gateways counted. Pure."""

from enum import StrEnum
from fractions import Fraction

from fleet.model import Record
from fleet.policy.latency import BUCKETS, bounds, quantile_bucket
from fleet.specs import CanarySpec

_SLOW = 0.95
"""The quantile of the times until the first byte that is compared."""


class Reading(Record):
    """Counters of the engines of one launch; they only grow, so a period is the difference of two."""

    requests: int = 0
    errors: int = 0
    latency: tuple[int, ...] = ()
    """By bucket of ``fleet.policy.latency``; empty: nothing was counted."""


class Judgement(StrEnum):
    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"
    """Too few requests to say."""


def judge(
    old_since: Reading, new_since: Reading, old: Reading, new: Reading, spec: CanarySpec
) -> tuple[Judgement, str]:
    """The canary (``new``) since its baseline, and why, in one sentence for people.

    * Errors are BAD once they are more than ``max_error_rate`` of the requests, or of ``min_requests`` where there
      were fewer: whatever the missing ones bring, the rate at ``min_requests`` will be exceeded, so nobody has to
      suffer them first. With a rate of 0 the first error is BAD.
    * Slowness is BAD when both revisions have answered ``min_requests`` times and the p95 of the new one is more than
      ``max_latency_ratio`` times that of the old one, *wherever in their buckets the two are*. Buckets double, so
      up to four times the ratio may pass unnoticed; what is reported is certain.
    * Fewer requests than ``min_requests``: UNKNOWN. Everything else: GOOD.
    """
    canary, stable = _between(new_since, new), _between(old_since, old)
    if canary.errors > _exactly(spec.max_error_rate) * max(canary.requests, spec.min_requests):
        return Judgement.BAD, (
            f"{_failed(canary)} failed, more than the {_percent(spec.max_error_rate)} "
            f"of at least {spec.min_requests} that may"
        )
    if (slowness := _too_slow(canary, stable, spec)) is not None:
        return Judgement.BAD, slowness
    if canary.requests < spec.min_requests:
        return Judgement.UNKNOWN, f"{canary.requests} of the {spec.min_requests} requests that it takes to say"
    return Judgement.GOOD, _praise(canary, stable)


def _between(since: Reading, now: Reading) -> Reading:
    """Nothing is negative: rows of gateways that ended long ago may have been deleted meanwhile."""
    before, after = _padded(since.latency), _padded(now.latency)
    requests = max(0, now.requests - since.requests)
    return Reading(
        requests=requests,
        errors=min(requests, max(0, now.errors - since.errors)),
        latency=tuple(max(0, b - a) for a, b in zip(before, after, strict=True)),
    )


def _padded(latency: tuple[int, ...]) -> tuple[int, ...]:
    return (*latency, *([0] * BUCKETS))[:BUCKETS]


def _too_slow(canary: Reading, stable: Reading, spec: CanarySpec) -> str | None:
    if spec.max_latency_ratio is None or min(sum(canary.latency), sum(stable.latency)) < spec.min_requests:
        return None
    new, old = quantile_bucket(canary.latency, _SLOW), quantile_bucket(stable.latency, _SLOW)
    if new is None or old is None:
        return None
    at_least, at_most = bounds(new)[0], bounds(old)[1]
    if at_least < spec.max_latency_ratio * at_most:
        return None
    return (
        f"the p95 until the first byte is over {_seconds(at_least)}, more than {spec.max_latency_ratio:g} times the "
        f"{_seconds(at_most)} of the old revision"
    )


def _praise(canary: Reading, stable: Reading) -> str:
    text = f"{_failed(canary)} failed"
    new, old = quantile_bucket(canary.latency, _SLOW), quantile_bucket(stable.latency, _SLOW)
    if new is None:
        return text
    text += f", p95 until the first byte within {_seconds(bounds(new)[1])}"
    return text if old is None else f"{text} (old revision: {_seconds(bounds(old)[1])})"


def _failed(canary: Reading) -> str:
    share = f" ({_percent(canary.errors / canary.requests)})" if canary.requests else ""
    return f"{canary.errors} of {canary.requests} requests{share}"


def _exactly(rate: float) -> Fraction:
    """As the person wrote it: 0.29 of 100 is 29, not a little less."""
    return Fraction(str(rate))


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:.3g} s"
