"""The states that entities can be in, as people and the API see them."""

from enum import StrEnum


class DeploymentPhase(StrEnum):
    PENDING = "pending"
    DEPLOYING = "deploying"
    READY = "ready"
    DEGRADED = "degraded"
    FAILED = "failed"
    STOPPED = "stopped"
    DELETING = "deleting"


class InstanceState(StrEnum):
    PENDING = "pending"
    PLACING = "placing"
    DOWNLOADING = "downloading"
    STARTING = "starting"
    READY = "ready"
    SUSPECT = "suspect"
    RECOVERING = "recovering"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class HostState(StrEnum):
    READY = "ready"
    SUSPECT = "suspect"
    LOST = "lost"
    FORGOTTEN = "forgotten"


class ClaimState(StrEnum):
    HELD = "held"
    """Reserved by placement; expires unless the host takes it up."""
    BOUND = "bound"
    """An engine is being run on it."""
    RELEASING = "releasing"
    """Given up by its instance; freed once the host confirms that the memory came back."""


class Maintenance(StrEnum):
    """What a person has asked of a host, and how far it is."""

    NONE = "none"
    CORDONED = "cordoned"
    """Takes no new replicas; those that run there stay."""
    DRAINING = "draining"
    """Cordoned, and its replicas are being replaced elsewhere."""
    DRAINED = "drained"
    """Nothing runs there any more."""


class EndpointState(StrEnum):
    READY = "ready"
    SUSPECT = "suspect"
    """Does not answer its host for a moment: asked only when no other replica is ready."""
    DRAINING = "draining"
