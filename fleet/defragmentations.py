"""A defragmentation: its durable state, and what changes it. Pure.

One at a time for a deployment: while one of its replicas waits for room that is there in pieces, others are moved.
"""

from datetime import datetime, timedelta

from fleet.model import Record
from fleet.timings import Timings

_REMEMBERED = 50


class Seat(Record):
    """Room on one host."""

    host_id: str
    host_name: str = ""
    gpu_uuids: tuple[str, ...] = ()
    gpu_bytes: int = 0
    """On each of them."""
    ram_bytes: int = 0


class PlannedMove(Record):
    """One replica that goes from where it is to room that is free now."""

    instance_id: str
    deployment: str
    fence: int
    priority: int = 1
    bytes: int = 0
    from_host: str
    from_name: str = ""
    to: tuple[Seat, ...] = ()

    def __str__(self) -> str:
        target = self.to[0].host_name or self.to[0].host_id if self.to else "elsewhere"
        return f"`{self.instance_id}` from {self.from_name or self.from_host} to {target}"


class Waiting(Record):
    """The replica that finds no room, and what will be its room."""

    instance_id: str
    deployment: str
    fence: int = 0
    priority: int = 1
    room: tuple[Seat, ...] = ()


class DefragmentPlan(Record):
    """What an activity found to do next."""

    waiting: Waiting | None = None
    """None: nobody of the deployment waits for room."""
    moves: tuple[PlannedMove, ...] = ()
    obstacle: str = ""
    """Why there are no moves, for people; empty where there is room without any."""


class UnderWay(Record):
    move: PlannedMove
    until: datetime
    """From then on it stays where it is."""


class Defragmentation(Record):
    """State of a ``DefragmentWorkflow``, carried over continue-as-new."""

    schema_version: int = 1
    deployment: str
    asked_by: str = "placement"
    """For people: ``placement``, or ``a person``."""
    started_at: datetime
    waiting: Waiting | None = None
    planned: tuple[PlannedMove, ...] = ()
    under_way: tuple[UnderWay, ...] = ()
    done: tuple[PlannedMove, ...] = ()
    """The last ones, oldest first."""
    given_up: tuple[str, ...] = ()
    """Instances that could not be moved: they stay."""
    stop_reason: str = ""
    """Set by a person: no move more, and those under way are called off."""
    ended: str = ""
    """How it ended, for people; empty: it goes on."""
    not_before: datetime | None = None
    """The next moves wait until then."""
    projection: int = 0
    timings: Timings = Timings()

    def with_(self, **changes: object) -> "Defragmentation":
        return self.model_copy(update=changes)

    @property
    def state(self) -> str:
        """For people and lists."""
        if self.ended:
            return "ended"
        return "stopping" if self.stop_reason else "moving" if self.under_way else "planning"

    @property
    def message(self) -> str:
        if self.ended:
            return self.ended
        if self.under_way:
            moves = ", ".join(str(u.move).replace("`", "") for u in self.under_way)
            return f"moves {moves}"
        return f"{len(self.planned)} moves to go" if self.planned else "looks what could be moved"


class StopDefragmenting(Record):
    """Input of the ``stop`` update."""

    reason: str = ""


def planned(d: Defragmentation, plan: DefragmentPlan) -> Defragmentation:
    """After a look at the fleet."""
    if plan.waiting is None:
        how = "it has its room" if d.waiting is not None else "no replica of it waits for room"
        return d.with_(planned=(), ended=f"{how}, after {len(d.done)} moves" if d.done else how)
    known = d.with_(waiting=plan.waiting, planned=plan.moves)
    return known.with_(ended=f"no moves would make room: {plan.obstacle}") if plan.obstacle else known


def begun(d: Defragmentation, move: PlannedMove, until: datetime, *, accepted: bool) -> Defragmentation:
    rest = tuple(p for p in d.planned if p.instance_id != move.instance_id)
    if not accepted:
        return d.with_(planned=rest)
    return d.with_(planned=rest, under_way=(*d.under_way, UnderWay(move=move, until=until)))


def seen(d: Defragmentation, left: tuple[str, ...], now: datetime) -> Defragmentation:
    """Those that are not where they were have moved, and what is left to do is asked anew: the fleet is another one
    now. The same object when nothing changed."""
    gone = tuple(u.move for u in d.under_way if u.move.instance_id not in left)
    if not gone:
        return d
    return d.with_(
        under_way=tuple(u for u in d.under_way if u.move.instance_id in left),
        planned=(),
        done=(*d.done, *gone)[-_REMEMBERED:],
        not_before=now + d.timings.move_pause,
    )


def overdue(d: Defragmentation, now: datetime) -> tuple[PlannedMove, ...]:
    return tuple(u.move for u in d.under_way if now >= u.until)


def called_off(d: Defragmentation, moves: tuple[PlannedMove, ...], now: datetime) -> Defragmentation:
    """Those stay. What had been begun for them is taken back first, so that the next look is at a fleet at rest."""
    ids = tuple(m.instance_id for m in moves)
    return d.with_(
        planned=(),
        not_before=now + d.timings.move_pause,
        under_way=tuple(u for u in d.under_way if u.move.instance_id not in ids),
        given_up=tuple(dict.fromkeys((*d.given_up, *ids))),
    )


def stopped(d: Defragmentation, wanted: StopDefragmenting) -> Defragmentation:
    """A person's word; twice is once."""
    return d if d.stop_reason or d.ended else d.with_(stop_reason=wanted.reason or "a person stopped it")


def pauses(d: Defragmentation, now: datetime) -> bool:
    """Between two moves."""
    return d.not_before is not None and now < d.not_before


def next_moves(d: Defragmentation) -> tuple[PlannedMove, ...]:
    """Those that may begin beside those under way."""
    return d.planned[: max(0, d.timings.moves_at_once - len(d.under_way))]


def patience(d: Defragmentation, look: timedelta, now: datetime) -> timedelta:
    """How long to wait for something to happen before the next look."""
    moments = [u.until for u in d.under_way]
    if d.not_before is not None and pauses(d, now) and not d.under_way:
        moments.append(d.not_before)
    return max(timedelta(0), min([look, *(m - now for m in moments)]))


def describe(d: Defragmentation, now: datetime) -> str:
    """Markdown for an operator who has only the Temporal UI."""
    lines = [f"**{d.state}**: {d.message}"]
    if d.waiting is not None:
        where = ", ".join(s.host_name or s.host_id for s in d.waiting.room)
        lines.append(f"`{d.waiting.instance_id}` waits for room" + (f" on {where}" if where else ""))
    lines.append(f"Begun by {d.asked_by}. Why: there is enough free memory in all, but not in one piece.")
    for title, moves in (
        ("Under way", [f"{u.move}, until {u.until:%H:%M:%S} UTC" for u in d.under_way]),
        ("Next", [str(m) for m in d.planned]),
        ("Done", [str(m) for m in d.done]),
    ):
        if moves:
            lines.append(f"{title}:\n" + "\n".join(f"- {text}" for text in moves))
    if d.given_up:
        lines.append(f"Could not be moved: {', '.join(f'`{i}`' for i in d.given_up)}")
    if d.not_before is not None and pauses(d, now) and not d.ended:
        lines.append(f"The next move waits until {d.not_before:%H:%M:%S} UTC")
    if not d.ended:
        lines.append("It ends when the replica has its room, when a person stops it (update `stop`), or without a plan")
    return "\n\n".join(lines)
