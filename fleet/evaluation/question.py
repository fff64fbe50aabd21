"""What a client asks: would this deployment run, where, how often, and at what price? Pure."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from fleet.evaluation.inventory import DeclaredInventory
from fleet.model import Wire
from fleet.specs import MAX_REPLICAS, DeploymentSpec, Labels


class Described(Wire):
    """A fleet that the request describes."""

    inventory: DeclaredInventory


def _kind(value: Any) -> str:
    return "described" if isinstance(value, dict | Described) else "named"


Against = Annotated[
    Annotated[Literal["fleet", "catalog"], Tag("named")] | Annotated[Described, Tag("described")],
    Discriminator(_kind),
]


class Question(Wire):
    spec: DeploymentSpec
    against: Against = "fleet"
    """``fleet``: hosts that are ready now. ``catalog``: machines that clouds rent out. Or a fleet of your own, as
    ``{"inventory": {"hosts": [...]}}``."""
    replicas: int | None = Field(default=None, ge=1, le=MAX_REPLICAS)
    """Unset: as many as ``spec.replicas``, but at least one."""
    labels: Labels = Field(default_factory=dict)
    """Of the deployment: hosts may be reserved for some."""

    @property
    def wanted(self) -> int:
        return self.replicas or max(1, self.spec.replicas)
