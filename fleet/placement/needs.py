"""What one replica needs, by class of cards: what sizing says, or what a person does. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fleet.sizing.sizing import GpuClass, Shape, Sizing

_ALONE = Shape()


@dataclass(frozen=True)
class Need:
    """One way to run one replica."""

    shape: Shape = _ALONE
    gpu_bytes: int = 0
    """On each of its cards. Of a need that is for CPUs: 0."""
    ram_bytes: int = 0
    """Of each host's RAM."""
    sizing: Sizing | None = None
    """What it was made from; None: a person named the bytes, or nothing is known of the model."""
    ports: int = 1
    """Of each host's range for engines."""
    tier: int = 0
    """Ways of a lower tier are tried on all classes first."""

    @property
    def offloads(self) -> bool:
        """Some layers stay in RAM."""
        return self.sizing is not None and self.sizing.gpu_layers is not None


@dataclass(frozen=True)
class Needs:
    """All ways to run one replica, in each class the best first (fewest cards, as a rule)."""

    by_class: Mapping[GpuClass, tuple[Need, ...]] = field(default_factory=dict)
    otherwise: tuple[Need, ...] = ()
    """On classes that ``by_class`` does not name: nothing is known of the model, or a person named the bytes."""
    cpu: tuple[Need, ...] = ()
    """In RAM alone; tried when no card is found. Empty: it is not to run so."""
    why_not: Mapping[GpuClass, str] = field(default_factory=dict)
    """Why it cannot run on a class, for people."""

    @classmethod
    def constant(cls, size: int, gpus: int | None = None, ram_bytes: int = 0) -> "Needs":
        """``size`` bytes on each of ``gpus`` cards of any class, in RAM without any. None: on one card, else in RAM."""
        on_cards = Need(Shape(tensor_parallel=gpus or 1), size, ram_bytes)
        return cls(otherwise=(on_cards,) if gpus != 0 else (), cpu=() if gpus else (Need(ram_bytes=size),))

    def on(self, gpu_class: GpuClass) -> tuple[Need, ...]:
        if gpu_class in self.why_not:
            return ()
        return self.by_class.get(gpu_class, self.otherwise)
