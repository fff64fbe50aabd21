"""One target of a route at run time: which replicas, and what they can do."""

from dataclasses import dataclass, field

from api.gateway.pool import Pool
from api.gateway.upstream import Upstream
from fleet.routes import Target

PROVIDER = "provider:"
_SPOKEN_BY_ANTHROPIC = frozenset({"/v1/messages", "/v1/messages/count_tokens", "/v1/models"})
_NOT_SPOKEN_BY_OPENAI = frozenset({"/v1/messages", "/v1/messages/count_tokens"})


@dataclass(slots=True, eq=False)
class Destination:
    target: Target
    pool: Pool[Upstream]
    label: str
    """The deployment, or ``provider:<name>``."""
    model: str
    """By which it knows the model; empty: by the name that was asked for."""
    engine: str = ""
    adapter: int | None = None
    """Which of the engine's adapters is meant, where it counts them."""
    adapters: int = 0
    patient: int = 0
    """Requests that wait for a host of it to come back."""
    lacks: set[str] = field(default_factory=set)
    """Paths that it has answered with 404: what they are for is said in another way, if there is one."""

    @property
    def provider(self) -> bool:
        return self.target.provider is not None

    def speaks(self, path: str) -> bool:
        if self.engine == "anthropic":
            return path in _SPOKEN_BY_ANTHROPIC
        if self.provider and path in _NOT_SPOKEN_BY_OPENAI:
            return False
        return path not in self.lacks
