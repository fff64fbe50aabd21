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


class EndpointState(StrEnum):
    READY = "ready"
    DRAINING = "draining"
