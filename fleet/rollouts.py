"""A rollout: how far it is, what a person may do to it, and when it goes on by itself. Pure."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from fleet.model import Record
from fleet.policy.canary import Judgement, Reading, judge
from fleet.specs import DeploymentSpec, RolloutSpec

Strategy = Literal["rolling", "recreate", "canary", "blue_green"]


class Template(Record):
    """What the engines of one launch are made from."""

    revision: int
    launch: int
    spec: DeploymentSpec
    """With the values of ``env`` sealed; ``replicas`` is that of its time and of no meaning here."""
    engine: str
    engine_version: str


class Stage(StrEnum):
    TRYING = "trying"
    """canary, blue_green: the new replicas start beside the old ones."""
    BAKING = "baking"
    """They serve, and are judged."""
    WAITING = "waiting"
    """Baked; a person promotes or aborts."""
    REPLACING = "replacing"
    """Old replicas give way to new ones."""


class Steering(StrEnum):
    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ABORT = "abort"


class Steer(Record):
    """What a person wants of the rollout in progress."""

    action: Steering
    key: str = ""
    """Idempotency key of the request."""


class Rollout(Record):
    """From the revision that works to a new one. Part of a deployment's durable state."""

    strategy: Strategy
    stage: Stage
    started_at: datetime
    stable: Template | None = None
    """What ran before and can be gone back to; None: nothing that ever worked."""
    back: bool = False
    """This one undoes another that failed or was aborted."""
    shunned: int | None = None
    """Launch that gets no requests any more while it is taken away."""
    paused: bool = False
    blamed: str = ""
    """The failed replica for which it was paused."""
    dip: int = 0
    """Old replicas that had to go before new ones were ready, because there was no room for both."""
    no_room_since: datetime | None = None
    bake_until: datetime | None = None
    next_check: datetime | None = None
    old_baseline: Reading | None = None
    new_baseline: Reading | None = None
    note: str = ""
    """For people: why it does what it does."""

    def with_(self, **changes: object) -> "Rollout":
        return self.model_copy(update=changes)

    @property
    def beside(self) -> bool:
        """New replicas are tried beside the old ones, which stay."""
        return self.stage is not Stage.REPLACING


def begin(spec: RolloutSpec, stable: Template | None, now: datetime, *, restart: bool = False) -> Rollout:
    """How a change of what runs starts out. What never worked is not worth being careful for."""
    strategy: Strategy = spec.strategy
    if (stable is None or restart) and strategy in ("canary", "blue_green"):
        strategy = "rolling"
    stage = Stage.TRYING if strategy in ("canary", "blue_green") else Stage.REPLACING
    return Rollout(strategy=strategy, stage=stage, started_at=now, stable=stable)


def going_back(rollout: Rollout, bad_launch: int, note: str, now: datetime) -> Rollout:
    """The rollout that undoes ``rollout``, towards its ``stable``."""
    return Rollout(
        strategy="rolling",
        stage=Stage.REPLACING,
        started_at=now,
        back=True,
        # Only while all old replicas are still there: else the rest would be flooded.
        shunned=bad_launch if rollout.beside else None,
        note=note,
    )


def bake(rollout: Rollout, spec: RolloutSpec, now: datetime) -> Rollout:
    """All replicas that are to be tried are ready."""
    until = now + timedelta(seconds=spec.bake_s)
    return rollout.with_(stage=Stage.BAKING, bake_until=until, next_check=now, no_room_since=None)


def promoted(rollout: Rollout, note: str) -> Rollout:
    return rollout.with_(stage=Stage.REPLACING, bake_until=None, next_check=None, note=note)


def judged(
    rollout: Rollout, counted: tuple[Reading, Reading], spec: RolloutSpec, checks: int, now: datetime
) -> tuple[Rollout, str]:
    """After a look at the counters (old, new); with the reason to go back, empty if there is none.

    The first look is the baseline: what was counted before it is not held against anyone.
    """
    old, new = counted
    pause = max(timedelta(seconds=spec.bake_s) / max(checks, 1), timedelta(seconds=1))
    following = now + min(pause, timedelta(minutes=5))
    if rollout.bake_until is not None and now < rollout.bake_until:
        following = min(following, rollout.bake_until)
    looked = rollout.with_(next_check=following)
    if rollout.old_baseline is None or rollout.new_baseline is None:
        return looked.with_(old_baseline=old, new_baseline=new), ""
    verdict, reason = judge(rollout.old_baseline, rollout.new_baseline, old, new, spec.canary)
    looked = looked.with_(note=reason)
    return looked, reason if verdict is Judgement.BAD else ""


def after_bake(rollout: Rollout, spec: RolloutSpec, now: datetime) -> Rollout:
    """What follows when the bake time is over; the same object before that."""
    if rollout.stage is not Stage.BAKING or rollout.bake_until is None or now < rollout.bake_until:
        return rollout
    if rollout.next_check is not None and now >= rollout.next_check:
        return rollout  # one more look first
    if rollout.strategy == "canary" and not spec.canary.auto_promote:
        note = rollout.note or "baked without complaint"
        return rollout.with_(stage=Stage.WAITING, next_check=None, note=f"{note}; promote or abort it")
    return promoted(rollout, "baked without complaint: the old replicas go")


def deadline(rollout: Rollout | None, patience: timedelta) -> datetime | None:
    """When it has to be looked at again although nothing happened."""
    if rollout is None or rollout.paused:
        return None
    moments = [rollout.next_check] if rollout.stage is Stage.BAKING else []
    if rollout.stage is Stage.BAKING:
        moments.append(rollout.bake_until)
    if rollout.no_room_since is not None:
        moments.append(rollout.no_room_since + patience)
    return min((m for m in moments if m is not None), default=None)
