"""What must hold of a Holdfast, seen from outside: in its database, and in the processes of its hosts."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, SQLModel, select

from fleet.db.session import Database
from fleet.db.tables import ClaimRow, DeploymentRow, EndpointRow, GpuRow, HostRow, InstanceRow
from tests.stack import Stack, eventually

_LOOK_EVERY_S = 0.05
_LOOKS_PER_LOOK_AT_PROCESSES = 5
_HOLDS = ("held", "bound")
_ROUTED = ("ready", "suspect")


class InvariantBroken(AssertionError):
    """With everything that was seen."""


@dataclass(frozen=True)
class Engine:
    """An engine process that runs."""

    pid: int
    instance_id: str
    fence: int
    host_id: str
    gpus: tuple[str, ...] = ()
    began: float = field(default=0.0, compare=False)
    """By ``time.monotonic``, in steps of a clock tick (10 ms)."""

    @property
    def key(self) -> tuple[str, int]:
        return (self.instance_id, self.fence)


@dataclass(frozen=True)
class Books:
    """The database at one moment."""

    hosts: Sequence[HostRow]
    gpus: Sequence[GpuRow]
    claims: Sequence[ClaimRow]
    endpoints: Sequence[EndpointRow]
    instances: Sequence[InstanceRow]
    deployments: Sequence[DeploymentRow]


def read_books(database: Database) -> Books:
    def read(session: Session) -> Books:
        if not database.is_sqlite:
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        tables: list[type[SQLModel]] = [HostRow, GpuRow, ClaimRow, EndpointRow, InstanceRow, DeploymentRow]
        return Books(*(session.exec(select(table)).all() for table in tables))  # type: ignore[arg-type]

    return database.read(read)


def engines(stack: Stack) -> list[Engine]:
    """All engine processes of this stack's hosts; without what an engine started itself."""
    found: dict[int, tuple[int, Engine]] = {}
    for pid in stack.engine_pids():
        try:
            process = psutil.Process(pid)
            env = process.environ()
            if "HOLDFAST_ENGINE_FENCE" in env:
                found[pid] = (process.ppid(), _engine(pid, env))
        except (psutil.Error, OSError):
            continue
    return [engine for parent, engine in found.values() if parent not in found]


def _engine(pid: int, env: dict[str, str]) -> Engine:
    fence = int(env["HOLDFAST_ENGINE_FENCE"])
    gpus = tuple(filter(None, env.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    return Engine(pid, env["HOLDFAST_ENGINE_INSTANCE"], fence, env["HOLDFAST_ENGINE_HOST"], gpus, _began(pid))


def _began(pid: int) -> float:
    """``/proc`` counts from the boot of the machine, with the time that it slept."""
    ticks = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    slept = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return round(ticks / os.sysconf("SC_CLK_TCK") - slept, 2)


# -- at every moment ---------------------------------------------------------------------------------------------


def broken_now(books: Books) -> list[str]:
    """What of the books may never be so, not even for a moment."""
    return [*_counters(books), *_two_holds(books), *_routed(books)]


def _counters(books: Books) -> Iterator[str]:
    ram, gpu = Counter[str](), Counter[str]()
    for claim in books.claims:
        (gpu if claim.gpu_uuid else ram)[claim.gpu_uuid or claim.host_id] += claim.memory_bytes
    for host in books.hosts:
        if host.ram_used != ram[host.id]:
            yield f"RAM of {host.id}: {host.ram_used} booked, claims are {ram[host.id]}"
        if not 0 <= ram[host.id] <= host.ram_allocatable:
            yield f"RAM of {host.id} is over-booked: {ram[host.id]} of {host.ram_allocatable}"
    for card in books.gpus:
        if card.used != gpu[card.uuid]:
            yield f"GPU {card.uuid}: {card.used} booked, claims are {gpu[card.uuid]}"
        if not 0 <= gpu[card.uuid] <= card.allocatable:
            yield f"GPU {card.uuid} is over-booked: {gpu[card.uuid]} of {card.allocatable}"


def _two_holds(books: Books) -> Iterator[str]:
    held = {(c.instance_id, c.fence) for c in books.claims if c.state in _HOLDS}
    for instance_id, count in Counter(instance_id for instance_id, _ in held).items():
        if count > 1:
            yield f"{instance_id} holds room under {count} fences: {sorted(held)}"


def _routed(books: Books) -> Iterator[str]:
    """Only to ready instances, to where their claim is, and never to one place for two."""
    instances = {i.id: i for i in books.instances}
    places = {(c.instance_id, c.fence): c.host_id for c in books.claims if c.state in _HOLDS}
    addresses = {h.id: h.address for h in books.hosts}
    routed = [e for e in books.endpoints if e.state in _ROUTED]
    for url, count in Counter(e.url for e in routed).items():
        if count > 1:
            yield f"{url} is routed for {count} instances"
    for e in routed:
        instance, host_id = instances.get(e.instance_id), places.get((e.instance_id, e.fence))
        if instance is None or instance.state not in _ROUTED or instance.fence != e.fence:
            yield f"{e.instance_id} is routed under fence {e.fence}, but it is {instance!r}"
        if host_id is None:
            yield f"{e.instance_id} is routed under fence {e.fence} without a claim"
        elif urlsplit(e.url).hostname != addresses.get(host_id):
            yield f"{e.instance_id} is routed to {e.url}, but its claim is on {host_id} at {addresses.get(host_id)}"


def without_claim(running: Iterable[Engine], books: Books) -> list[Engine]:
    """Engines that live on memory that is free in the books, and so can be given away a second time."""
    claimed = {(c.instance_id, c.fence, c.host_id) for c in books.claims}
    return [e for e in running if (*e.key, e.host_id) not in claimed]


# -- at rest -----------------------------------------------------------------------------------------------------


def broken_at_rest(books: Books, running: Sequence[Engine]) -> list[str]:
    """What must hold once everything has settled."""
    return [*broken_now(books), *_replicas(books), *_all_the_same(books, running)]


def _replicas(books: Books) -> Iterator[str]:
    for d in books.deployments:
        mine = [i for i in books.instances if i.deployment == d.name]
        ready = [i for i in mine if i.state == "ready"]
        routed = [e for e in books.endpoints if e.deployment == d.name and e.state == "ready"]
        if not len(mine) == len(ready) == len(routed) == d.desired_replicas:
            states = ", ".join(f"{i.id} {i.state} ({i.message})" for i in mine)
            yield f"{d.name} wants {d.desired_replicas}: {len(routed)} are routed, and there are: {states or 'none'}"
        if d.rollout is not None or any(i.launch != d.launch for i in mine):
            yield f"{d.name} is still being rolled out: {d.message}"
    names = {d.name for d in books.deployments}
    yield from (f"{i.id} has no deployment" for i in books.instances if i.deployment not in names)


def _all_the_same(books: Books, running: Sequence[Engine]) -> Iterator[str]:
    """Processes, claims, instances and endpoints speak of the same engines under the same fences."""
    processes = Counter((*e.key, e.host_id) for e in running)
    if twice := [key for key, count in processes.items() if count > 1]:
        yield f"run more than once: {twice}"
    claims = {(c.instance_id, c.fence, c.host_id) for c in books.claims}
    instances = {(i.id, i.fence, i.host_id) for i in books.instances if i.host_id}
    if not set(processes) == claims == instances:
        yield f"processes {sorted(processes)}, claims {sorted(claims)}, instances {sorted(instances)} differ"
    yield from (f"the claim of {c.instance_id} is {c.state}" for c in books.claims if c.state != "bound")
    endpoints = {(e.instance_id, e.fence) for e in books.endpoints}
    if endpoints != {(i, fence) for i, fence, _ in instances}:
        yield f"endpoints {sorted(endpoints)} are not those of the instances {sorted(instances)}"


class Checker:
    """Looks at one stack. Thread-safe."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._database = Database(stack.settings.effective_database_url)

    def books(self) -> Books:
        return read_books(self._database)

    def settled(self, within: float = 90.0) -> None:
        """Wait until everything holds that must hold at rest; raises InvariantBroken with what does not."""

        def whole() -> bool:
            broken = broken_at_rest(self.books(), engines(self._stack))
            assert broken == []
            return True

        try:
            eventually(whole, within=within, every=0.1, what="everything has settled")
        except AssertionError as error:
            raise InvariantBroken(str(error)) from None

    def now(self, *, processes: bool) -> list[str]:
        """What is broken at this moment; empty while the database does not answer."""
        running = engines(self._stack) if processes else []
        try:
            books = self.books()
        except SQLAlchemyError:
            return []
        # One that ended while we looked had its claim when it was seen.
        suspects = without_claim(running, books)
        alive = {(e.pid, e.fence) for e in engines(self._stack)} if suspects else set()
        loose = [f"{e} runs without a claim" for e in suspects if (e.pid, e.fence) in alive]
        return [*broken_now(books), *loose]

    def close(self) -> None:
        self._database.close()


class Watch:
    """What was broken at some moment, first come first."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self.broken: dict[str, float] = {}
        """What, and after how many seconds it was first seen."""
        self.looks = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def check(self) -> None:
        """Raises InvariantBroken."""
        if self.broken:
            raise InvariantBroken(self.report())
        assert self.looks > 0, "nobody looked"

    def report(self) -> str:
        return "\n".join(f"after {at:.1f} s: {what}" for what, at in self.broken.items())

    def _look_on(self) -> None:
        began = time.monotonic()
        while not self._stop.wait(_LOOK_EVERY_S):
            for what in self._checker.now(processes=self.looks % _LOOKS_PER_LOOK_AT_PROCESSES == 0):
                self.broken.setdefault(what, time.monotonic() - began)
            self.looks += 1


@contextmanager
def watched(stack: Stack) -> Iterator[Checker]:
    """Look at every moment while the body does its worst; raises InvariantBroken at the end of it."""
    checker = Checker(stack)
    watch = Watch(checker)
    watch.start()
    try:
        yield checker
    except AssertionError as error:
        watch.stop()
        if watch.broken:
            raise InvariantBroken(watch.report()) from error
        raise
    else:
        watch.stop()
        watch.check()
    finally:
        watch.stop()
        checker.close()
