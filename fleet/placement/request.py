"""What placement is asked and what it answers."""

from fleet.model import Record


class PlacementRequest(Record):
    instance_id: str
    deployment: str
    fence: int
    """Grows with every placement of the instance; asking twice with one fence gives one claim."""
    engine: str
    engine_version: str
    model_path: str
    memory_bytes: int | None = None
    """Claim exactly this; None: estimate from the model file."""
    concurrency: int | None = None
    max_model_len: int | None = None
    gpus_per_replica: int | None = None
    host_selector: dict[str, str] = {}
    labels: dict[str, str] = {}
    """Of the deployment, as they are now: a host may be reserved for some."""
    excluded_hosts: tuple[str, ...] = ()
    env_sealed: dict[str, str] = {}
    runtime: str = "auto"
    image: str = ""
    """The deployment's own."""


class Placement(Record):
    """A claim that was made."""

    host_id: str
    gpu_uuids: tuple[str, ...] = ()
    memory_bytes: int = 0
    """Per GPU, or of RAM where there is no GPU."""
    model_path: str = ""
    """Absolute path on that host."""
    env_for_host: dict[str, str] = {}
    """Environment values, sealed anew so that only this host can read them."""


class Unplaceable(Record):
    reasons: tuple[str, ...]
    """One per host or per cause, for people."""

    @property
    def message(self) -> str:
        return "; ".join(self.reasons) or "no host is ready"


class PlaceResult(Record):
    """Exactly one of the three is set."""

    placement: Placement | None = None
    unplaceable: Unplaceable | None = None
    newer_fence: int | None = None
    """The instance was placed under this higher fence already: ask again above it."""
