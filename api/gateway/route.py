"""A public name at run time: its targets, and which one is next."""

from collections.abc import Callable, Iterable, Sequence

from api.gateway.destination import Destination
from api.gateway.refusals import Reason
from fleet.policy.split import Split
from fleet.routes import RouteSpec


class Route:
    """Lives as long as the table names it or a request is on its way; ``update`` takes over a new table.

    A request keeps its route, so that a retry finds the engines that there are by then.
    """

    __slots__ = ("_only", "_split", "destinations", "name", "spec")

    def __init__(self, name: str) -> None:
        self.name = name
        self.spec: RouteSpec
        self.destinations: tuple[Destination, ...] = ()
        self._split = Split({})
        self._only: Destination | None = None

    def update(self, spec: RouteSpec, destinations: Sequence[Destination]) -> None:
        weights = {n: d.target.weight for n, d in enumerate(destinations)}
        if [d.target.weight for d in self.destinations] != list(weights.values()):  # else shares go on where they are
            self._split = Split(weights)
        self.spec = spec
        self.destinations = tuple(destinations)
        self._only = destinations[0] if len(destinations) == 1 else None

    @property
    def serves(self) -> bool:
        """Whether any target has a replica."""
        return any(d.pool.upstreams for d in self.destinations)

    def choose(self, tried: Sequence[Destination] = ()) -> Destination | None:
        """The next target to be asked; None: all were. Those with replicas come first, then those with weight."""
        if self._only is not None:
            return None if tried else self._only
        left = [(n, d) for n, d in enumerate(self.destinations) if d not in tried]
        if not left:
            return None
        serving = [(n, d) for n, d in left if d.pool.upstreams] or left
        chosen = self._split.narrow([_Share(n) for n, _ in serving])[0].launch
        return self.destinations[chosen]

    def fallbacks(self, reason: Reason) -> Iterable[str]:
        fallbacks = self.spec.fallbacks
        match reason:
            case "context_window":
                return fallbacks.context_window
            case "content_policy":
                return fallbacks.content_policy
            case _:
                return fallbacks.general


class _Share:
    """A target as ``Split`` sees it."""

    __slots__ = ("launch",)
    suspect = False

    def __init__(self, launch: int) -> None:
        self.launch = launch


Routes = Callable[[str], Route | None]
"""By public name, for fallbacks."""
