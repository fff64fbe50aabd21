"""Which replicas a request may go to, while a deployment's requests are shared out by weight or some are suspect."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    @property
    def launch(self) -> int:
        """The group that it belongs to."""

    @property
    def suspect(self) -> bool:
        """Only asked when there is nothing better."""


C = TypeVar("C", bound=Candidate)


class Split:
    """Smooth weighted round robin over launches: exact in every full round, and as even as can be within one.

    Nothing is random, so that 10 % of 20 requests are 2, and not 0 or 5.
    """

    __slots__ = ("_credit", "weights")

    def __init__(self, weights: Mapping[int, int]) -> None:
        """By launch; those that are not named have none. Empty: all replicas alike."""
        self.weights = {launch: weight for launch, weight in weights.items() if weight > 0}
        self._credit = dict.fromkeys(self.weights, 0)

    def narrow(self, candidates: Sequence[C]) -> Sequence[C]:
        """Those that the next request may go to; one call is one request.

        Availability comes first: a launch without a candidate passes its requests on to the others, suspect
        candidates serve when no other is left, and launches without weight when no launch with one has any.
        ``candidates`` must not be empty.
        """
        best = _best([c for c in candidates if c.launch in self.weights] or candidates)
        launches = {c.launch for c in best}
        if len(launches) == 1 or not launches <= self.weights.keys():
            return best
        launch = self._next(sorted(launches))
        return [c for c in best if c.launch == launch]

    def _next(self, launches: Sequence[int]) -> int:
        """Each earns its weight; who has most is chosen and pays for all."""
        credit, weights = self._credit, self.weights
        for launch in launches:
            credit[launch] += weights[launch]
        chosen = max(launches, key=credit.__getitem__)
        credit[chosen] -= sum(weights[launch] for launch in launches)
        return chosen


def _best(candidates: Sequence[C]) -> Sequence[C]:
    return [c for c in candidates if not c.suspect] or candidates
