"""Replicas as policies and pools see them, without an engine."""

from dataclasses import dataclass, field

from api.gateway.standing import Standing
from fleet.policy.replica import EngineLoad


@dataclass(eq=False)
class FakeReplica:
    instance_id: str
    capacity: int = 4
    in_flight: int = 0
    tokens: int = 0
    speed: float = 1.0
    prefill_rate: float = 0.0
    load: EngineLoad | None = None
    launch: int = 0
    suspect: bool = False
    avoided_until: float = 0.0
    standing: Standing = field(default_factory=Standing)
    trials: int = 0

    def note_trial(self) -> None:
        self.trials += 1


def several(count: int, capacity: int = 4) -> tuple[FakeReplica, ...]:
    return tuple(FakeReplica(f"m/{number}-abc", capacity) for number in range(count))
