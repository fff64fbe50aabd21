"""Random lives of claims against a model of them: the counters are always the sum of the claims."""

from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import update
from sqlmodel import Session, delete, select

from fleet.db import claims
from fleet.db.session import Database
from fleet.db.tables import ClaimRow, GpuRow, HostRow, PortClaimRow
from fleet.inventory import EngineRef
from fleet.placement.parts import Part, parts_of
from fleet.placement.request import Member, Placement
from fleet.states import ClaimState
from tests.unit.db import ledger

HOSTS = {"h1": ("g1", "g2"), "h2": (), "h3": ("g3",)}
PLACES = [("h1",), ("h2",), ("h1", "g1"), ("h1", "g2", "g1"), ("h3", "g3")]
GANGS = [(("h1", "g1"), ("h3", "g3")), (("h3", "g3"), ("h1", "g2", "g1")), (("h2",), ("h1",), ("h3",))]
PORTS = (20000, 20002)
INSTANCES = st.sampled_from(["a", "b", "c", "d"])
FENCES = st.integers(1, 4)
MEMORY = st.integers(1, 70)
Key = tuple[str, int]
Place = tuple[str, ...]
"""A host, and GPUs of it."""


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    leader, *followers = draw(st.sampled_from([(place,) for place in PLACES] + GANGS))
    ports = st.sets(st.integers(*PORTS), max_size=2).map(tuple)
    return Placement(
        host_id=leader[0],
        gpu_uuids=leader[1:],
        memory_bytes=draw(MEMORY),
        ram_bytes=draw(st.sampled_from([0, 0, 5, 40])),
        ports=draw(ports),
        followers=tuple(Member(host_id=h, gpu_uuids=tuple(gpus), ports=draw(ports)) for h, *gpus in followers),
    )


class Ledger(RuleBasedStateMachine):
    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[Key, dict[str, ClaimState]] = {}
        """What each placement holds, by host."""
        self.placed: dict[Key, Placement] = {}

    @initialize()
    def empty(self) -> None:
        def clear(session: Session) -> None:
            for table in (ClaimRow, PortClaimRow, GpuRow, HostRow):
                session.execute(delete(table))

        self.database.write(clear)
        for host_id, gpus in HOSTS.items():
            ledger.add_host(self.database, host_id, gpus=gpus)
        ranges = update(HostRow).values(port_first=PORTS[0], port_last=PORTS[1])
        self.database.write(lambda s: s.execute(ranges))

    @rule(
        instance_id=INSTANCES,
        fence=FENCES,
        placement=placements(),
        generation=st.sampled_from([ledger.GENERATION] * 4 + [ledger.GENERATION + 1]),
    )
    def claim(self, instance_id: str, fence: int, placement: Placement, generation: int) -> None:
        fences = [f for i, f in self.parts if i == instance_id]
        possible = generation == ledger.GENERATION and fence not in fences and self._fits(placement)
        try:
            ledger.claim(self.database, instance_id, fence, placement, generation)
        except claims.StaleFence:
            assert any(f > fence for f in fences)
        except claims.ClaimLost:
            assert not possible
        else:
            assert possible
            self.parts[instance_id, fence] = dict.fromkeys(placement.hosts, ClaimState.HELD)
            self.placed[instance_id, fence] = placement

    @rule(instance_id=INSTANCES, fence=FENCES)
    def bind(self, instance_id: str, fence: int) -> None:
        bound = self.database.write(lambda s: claims.bind(s, instance_id, fence))
        parts = self.parts.get((instance_id, fence), {})
        whole = len(parts) == len(self.placed[instance_id, fence].hosts) if parts else False
        assert bound == whole
        for host_id in parts:
            if parts[host_id] is ClaimState.HELD:
                parts[host_id] = ClaimState.BOUND

    @rule(instance_id=INSTANCES, fence=FENCES, said=st.none() | st.sets(st.sampled_from(sorted(HOSTS))))
    def release(self, instance_id: str, fence: int, said: set[str] | None) -> None:
        self.database.write(lambda s: claims.release(s, instance_id, fence, said))
        for key in self._up_to(instance_id, fence):
            gone = {self.placed[key].host_id} if said is None else said
            self._set(key, {h: ClaimState.RELEASING for h in self.parts[key] if h not in gone})

    @rule(instance_id=INSTANCES, fence=FENCES)
    def give_up(self, instance_id: str, fence: int) -> None:
        self.database.write(lambda s: claims.give_up(s, instance_id, fence))
        for key in self._up_to(instance_id, fence):
            self._set(key, dict.fromkeys(self.parts[key], ClaimState.RELEASING))

    @rule(host_id=st.sampled_from(sorted(HOSTS)), running=st.sets(st.tuples(INSTANCES, FENCES)))
    def confirm_gone(self, host_id: str, running: set[Key]) -> None:
        refs = {EngineRef(instance_id=i, fence=f) for i, f in running}
        self.database.write(lambda s: claims.confirm_gone(s, host_id, refs))
        for key, parts in list(self.parts.items()):
            if parts.get(host_id) is ClaimState.RELEASING and key not in running:
                self._set(key, {h: state for h, state in parts.items() if h != host_id})

    @rule()
    def expire(self) -> None:
        late = datetime.now(UTC) + timedelta(hours=1)
        self.database.write(lambda s: claims.expire(s, late))
        for key, parts in list(self.parts.items()):
            self._set(key, {h: state for h, state in parts.items() if state is not ClaimState.HELD})

    @rule(host_id=st.sampled_from(sorted(HOSTS)))
    def recount(self, host_id: str) -> None:
        self.database.write(lambda s: claims.recount(s, host_id))

    @invariant()
    def books_are_right(self) -> None:
        ledger.assert_the_books_are_right(self.database)

    @invariant()
    def claims_are_those_of_the_model(self) -> None:
        found = self.database.read(lambda s: s.exec(select(ClaimRow)).all())
        assert {(r.instance_id, r.fence, r.host_id, r.gpu_uuid, r.memory_bytes, r.state) for r in found} == {
            (*key, part.host_id, place, need, state)
            for key, part, state in self._held()
            for place, need in _needs(part)
        }

    @invariant()
    def ports_are_those_of_the_claims(self) -> None:
        found = self.database.read(lambda s: s.exec(select(PortClaimRow)).all())
        wanted = [(part.host_id, port, *key) for key, part, _ in self._held() for port in part.ports]
        assert sorted((r.host_id, r.port, r.instance_id, r.fence) for r in found) == sorted(wanted)

    @invariant()
    def legitimate_engines_are_those_of_the_model(self) -> None:
        for host_id in HOSTS:
            expected = {
                EngineRef(instance_id=i, fence=f)
                for (i, f), parts in self.parts.items()
                if parts.get(host_id, ClaimState.RELEASING) is not ClaimState.RELEASING
            }
            found = self.database.read(lambda s, host_id=host_id: claims.legitimate(s, host_id))  # type: ignore[misc]
            assert found == expected

    def _set(self, key: Key, parts: dict[str, ClaimState]) -> None:
        if parts:
            self.parts[key] = parts
        else:
            del self.parts[key]

    def _up_to(self, instance_id: str, fence: int) -> list[Key]:
        return [(i, f) for i, f in self.parts if i == instance_id and f <= fence]

    def _held(self) -> list[tuple[Key, Part, ClaimState]]:
        return [
            (key, part, parts[part.host_id])
            for key, parts in self.parts.items()
            for part in parts_of(self.placed[key])
            if part.host_id in parts
        ]

    def _fits(self, placement: Placement) -> bool:
        taken: dict[str, int] = {}
        for _, part, _ in self._held():
            for place, need in _needs(part):
                taken[place or part.host_id] = taken.get(place or part.host_id, 0) + need
        ports = {(part.host_id, port) for _, part, _ in self._held() for port in part.ports}
        wanted = parts_of(placement)
        room = all(taken.get(place or part.host_id, 0) + need <= 100 for part in wanted for place, need in _needs(part))
        return room and not any((part.host_id, port) in ports for part in wanted for port in part.ports)


def _needs(part: Part) -> list[tuple[str, int]]:
    """(GPU or nothing for RAM, bytes), one for each claim."""
    gpus = [(uuid, part.gpu_bytes) for uuid in part.gpu_uuids]
    return gpus if gpus and not part.ram_bytes else [*gpus, ("", part.ram_bytes)]


def test_counters_are_the_sum_of_claims_whatever_happens(database: Database) -> None:
    machine = type("OnThisDatabase", (Ledger,), {"database": database})
    quick = settings(
        max_examples=25,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    run_state_machine_as_test(machine, settings=quick)
