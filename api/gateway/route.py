"""Where the requests of one deployment go: which engine is next, and whether one may be asked again."""

from collections.abc import Mapping, Sequence

from api.gateway.upstream import Upstream
from fleet.policy.least_load import least_loaded
from fleet.policy.retry_budget import RetryBudget
from fleet.policy.split import Split


class Route:
    """Lives as long as the table names the deployment or a request is on its way; ``update`` takes over a new table.

    A request keeps its route, so that a retry finds the engines that there are by then.
    """

    __slots__ = ("_plain", "_split", "_traffic", "_turn", "_turns", "budget", "in_flight", "upstreams", "waiting")

    def __init__(self) -> None:
        self.upstreams: tuple[Upstream, ...] = ()
        """Those that take new requests; suspect ones too."""
        self.budget = RetryBudget()
        self.in_flight = 0
        """Requests on their way, wherever they are."""
        self.waiting = 0
        """Of these, those that wait for a host to come back."""
        self._traffic: Mapping[int, int] = {}
        self._split = Split({})
        self._plain = True
        self._turn = 0
        self._turns: dict[int, int] = {}
        """Of each launch, while requests are split: their rhythm must not favour one of its replicas."""

    def update(self, upstreams: Sequence[Upstream], traffic: Mapping[int, int]) -> None:
        """``traffic``: weights by launch; empty: all alike."""
        self.upstreams = tuple(upstreams)
        if traffic != self._traffic:  # else the shares go on where they are
            self._traffic = traffic
            self._split = Split(traffic)
            self._turns = {}
        self._plain = not traffic and not any(u.suspect for u in upstreams)

    def choose(self, tried: Sequence[Upstream], now: float) -> Upstream:
        """The one to ask next, which is none of ``tried``: at least one other must be there."""
        upstreams: Sequence[Upstream] = self.upstreams
        if len(upstreams) == 1:
            return upstreams[0]
        left = [u for u in upstreams if u not in tried] if tried else upstreams
        candidates = [u for u in left if u.avoided_until <= now] or left
        if not tried:
            self._turn += 1  # not for retries: with two replicas, one of them dead, it would always be first
        turn = self._turn
        if not self._plain:
            candidates = self._split.narrow(candidates)
            launch = candidates[0].launch
            turn = self._turns[launch] = self._turns.get(launch, 0) + 1
        chosen = least_loaded(candidates, turn)
        chosen.note_trial()
        return chosen

    def others(self, tried: Sequence[Upstream]) -> bool:
        """Whether there is one that is none of ``tried``."""
        return any(u not in tried for u in self.upstreams)
