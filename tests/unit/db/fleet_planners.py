"""A planner process for the race on a whole fleet: it may be killed at any moment, and goes on where it was."""

import json
import random
from collections.abc import MutableSequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sqlalchemy import bindparam, update
from sqlmodel import Session, col, select

from fleet.db import claims, guarded
from fleet.db.ports import pick_ports
from fleet.db.session import Database
from fleet.db.tables import ClaimRow, GpuRow
from fleet.placement.request import Member, Placement
from fleet.states import ClaimState

HOLDS = 100
"""So many placements each planner holds before it gives as many back as it makes: together nearly the whole fleet."""
LOOK_EVERY = 20
"""Placements that are decided on one look: what others do meanwhile is not seen."""
Key = tuple[str, int]
_LOOK_AT = 40
SHAPES = [(1, 1), (1, 1), (1, 1), (1, 2), (1, 2), (1, 4), (1, 0), (2, 2)]
"""(hosts, GPUs of each); without GPUs it is RAM."""


@dataclass(frozen=True)
class Orders:
    url: str
    planner: int
    quota: int
    """Of placements, also over several lives."""
    folder: Path
    """Where it leaves what it holds at its end."""
    guarded: bool = True


def live(orders: Orders, placed: MutableSequence[int]) -> None:
    """``placed``: shared by all planners, one number for each."""
    if not orders.guarded:
        _take_down_the_guard()
    planner = _Planner(orders, Database(orders.url))
    planner.go_on()
    while placed[orders.planner] < orders.quota:
        placed[orders.planner] += planner.step()
    (orders.folder / f"{orders.planner}.json").write_text(json.dumps(sorted(planner.held)))


@dataclass
class _Planner:
    orders: Orders
    database: Database
    chance: random.Random = field(default_factory=random.Random)
    held: dict[Key, tuple[str, ...]] = field(default_factory=dict)
    """(instance, fence) → hosts."""
    gpus: dict[str, dict[str, int]] = field(default_factory=dict)
    """Host → GPU → free, as last seen."""
    decided: int = LOOK_EVERY
    number: int = 0

    def go_on(self) -> None:
        """After a life that ended anywhere: what was given up is confirmed, and the rest is still ours."""
        for row in self.database.read(self._ours):
            self.number = max(self.number, row.fence)
            if row.state == ClaimState.RELEASING:
                self.database.write(partial(claims.confirm_gone, host_id=row.host_id, running=set()))
            else:
                self.held[row.instance_id, row.fence] = Placement.model_validate(row.placement).hosts

    def step(self) -> int:
        """Returns how many placements it made."""
        if len(self.held) >= HOLDS:
            self._let_go()
        if self.decided >= LOOK_EVERY:
            self.gpus, self.decided = self.database.read(_room), 0
        self.decided += 1
        place = self._decide()
        return self._place(place) if place is not None else 0

    def _decide(self) -> Placement | None:
        hosts, cards = self.chance.choice(SHAPES)
        need = self.chance.randint(55, 100)
        fitting: dict[str, list[str]] = {}
        for host_id in self.chance.sample(list(self.gpus), _LOOK_AT):
            free = [uuid for uuid, room in self.gpus[host_id].items() if room >= need]
            if len(free) >= cards and len(fitting) < hosts:
                fitting[host_id] = free
        if len(fitting) < hosts:
            self.decided = LOOK_EVERY
            return None
        leader, *followers = fitting
        return Placement(
            host_id=leader,
            gpu_uuids=tuple(fitting[leader][:cards]),
            memory_bytes=need if cards else self.chance.randint(5, 20),
            ram_bytes=self.chance.randint(0, 10),
            followers=tuple(Member(host_id=h, gpu_uuids=tuple(fitting[h][:cards])) for h in followers),
        )

    def _place(self, place: Placement) -> int:
        self.number += 1
        key = (f"p{self.orders.planner}/{self.number}", self.number)
        try:
            self.database.write(partial(self._claim, key=key, place=place))
        except claims.ClaimLost:
            self.decided = LOOK_EVERY
            return 0
        self.held[key] = place.hosts
        for uuid in (*place.gpu_uuids, *(u for m in place.followers for u in m.gpu_uuids)):
            self.gpus[uuid.partition("-")[0]][uuid] -= place.memory_bytes
        if self.chance.random() < 0.1:
            self.database.write(lambda s: claims.bind(s, *key))
        return 1

    def _claim(self, session: Session, key: Key, place: Placement) -> None:
        seed = self.chance.random()
        made = place.model_copy(
            update={
                "ports": pick_ports(session, place.host_id, 2, f"{seed}"),
                "followers": tuple(
                    m.model_copy(update={"ports": pick_ports(session, m.host_id, 1, f"{seed}")})
                    for m in place.followers
                ),
            }
        )
        claims.claim(session, *key, made, dict.fromkeys(made.hosts, 1))

    def _let_go(self) -> None:
        key = self.chance.choice(sorted(self.held))
        hosts = self.held.pop(key)
        if self.chance.random() < 0.8:
            self.database.write(lambda s: claims.release(s, *key, gone_from=hosts))
            return
        self.database.write(lambda s: claims.give_up(s, *key))
        for host_id in hosts:
            self.database.write(partial(claims.confirm_gone, host_id=host_id, running=set()))

    def _ours(self, session: Session) -> list[ClaimRow]:
        prefix = f"p{self.orders.planner}/"
        return list(session.exec(select(ClaimRow).where(col(ClaimRow.instance_id).startswith(prefix))).all())


_ROOM = select(GpuRow.host_id, GpuRow.uuid, GpuRow.allocatable - GpuRow.used)


def _room(session: Session) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for host_id, uuid, free in session.connection().execute(_ROOM).cursor.fetchall():
        found.setdefault(host_id, {})[uuid] = free
    return found


def _take_down_the_guard() -> None:
    """In this process: what was seen before is trusted."""
    guarded._TAKE_GPU = (
        update(GpuRow)
        .where(
            col(GpuRow.uuid) == bindparam("gpu"),
            col(GpuRow.host_id) == bindparam("host"),
            col(GpuRow.generation) == bindparam("seen"),
        )
        .values(used=GpuRow.used + bindparam("need"))
    )
