"""What placement is asked and what it answers."""

from fleet.engines.spec import EngineSpec
from fleet.model import Record
from fleet.sizing.facts import ModelFacts
from fleet.sizing.sizing import Sizing


class PlacementRequest(Record):
    instance_id: str
    deployment: str
    fence: int
    """Grows with every placement of the instance; asking twice with one fence gives one claim."""
    spec: EngineSpec
    labels: dict[str, str] = {}
    """Of the deployment, as they are now: a host may be reserved for some."""
    excluded_hosts: tuple[str, ...] = ()
    priority: int = 1
    """0 low, 1 normal, 2 high, 3 critical."""


class ModelCard(Record):
    """What engines are told differently for different models."""

    architecture: str = ""
    model_type: str = ""
    task: str = "generate"
    format: str = "gguf"
    fingerprint: str = ""
    quantization: str = ""

    @classmethod
    def of(cls, facts: ModelFacts) -> "ModelCard":
        return cls(
            architecture=facts.architecture,
            model_type=facts.model_type,
            task=facts.task,
            format=facts.format,
            fingerprint=facts.fingerprint,
            quantization=facts.quantization.method if facts.quantization is not None else "",
        )


class Member(Record):
    """A further host of a replica that spans several."""

    host_id: str
    gpu_uuids: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    address: str = ""
    """On the network that the hosts of a gang share."""
    model_path: str = ""
    env_for_host: dict[str, str] = {}


class Placement(Record):
    """A claim that was made."""

    host_id: str
    """Of a gang: the leader's, where requests go."""
    gpu_uuids: tuple[str, ...] = ()
    memory_bytes: int = 0
    """Per GPU, or of RAM where there is no GPU."""
    model_path: str = ""
    """Absolute path on that host."""
    env_for_host: dict[str, str] = {}
    """Environment values, sealed anew so that only this host can read them."""
    ram_bytes: int = 0
    """Of each host's RAM, besides GPUs."""
    ports: tuple[int, ...] = ()
    """Of the host, claimed with it; the first is the engine's own. Empty: the host picks one."""
    address: str = ""
    """Of the leader on the network that the hosts of a gang share."""
    sizing: Sizing | None = None
    """What was booked, as the engine is told; None: a person named the bytes, or nothing is known of the model."""
    card: ModelCard = ModelCard()
    followers: tuple[Member, ...] = ()
    """The other hosts of a gang, by rank from 1."""

    @property
    def hosts(self) -> tuple[str, ...]:
        return (self.host_id, *(m.host_id for m in self.followers))

    @property
    def members(self) -> tuple[Member, ...]:
        """By rank, the leader first."""
        shared = {name: getattr(self, name) for name in Member.model_fields}
        return (Member.model_validate(shared), *self.followers)


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
