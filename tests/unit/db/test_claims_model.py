"""Random lives of claims against a model of them: the counters are always the sum of the claims."""

from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlmodel import Session, delete

from fleet.db import claims
from fleet.db.session import Database
from fleet.db.tables import ClaimRow, GpuRow, HostRow
from fleet.inventory import EngineRef
from fleet.placement.request import Placement
from fleet.states import ClaimState
from tests.unit.db import ledger

HOSTS = {"h1": ("g1", "g2"), "h2": ()}
INSTANCES = st.sampled_from(["a", "b", "c", "d"])
FENCES = st.integers(1, 4)
MEMORY = st.integers(1, 70)
Key = tuple[str, int]


class Ledger(RuleBasedStateMachine):
    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.state: dict[Key, ClaimState] = {}
        self.placed: dict[Key, Placement] = {}

    @initialize()
    def empty(self) -> None:
        def clear(session: Session) -> None:
            for table in (ClaimRow, GpuRow, HostRow):
                session.execute(delete(table))

        self.database.write(clear)
        for host_id, gpus in HOSTS.items():
            ledger.add_host(self.database, host_id, gpus=gpus)

    @rule(
        instance_id=INSTANCES,
        fence=FENCES,
        memory=MEMORY,
        place=st.sampled_from([("h1",), ("h2",), ("h1", "g1"), ("h1", "g2", "g1")]),
        generation=st.sampled_from([ledger.GENERATION] * 4 + [ledger.GENERATION + 1]),
    )
    def claim(self, instance_id: str, fence: int, memory: int, place: tuple[str, ...], generation: int) -> None:
        placement = ledger.on(place[0], memory, *place[1:])
        fences = [f for i, f in self.state if i == instance_id]
        possible = generation == ledger.GENERATION and fence not in fences and self._fits(placement)
        try:
            ledger.claim(self.database, instance_id, fence, placement, generation)
        except claims.StaleFence:
            assert any(f > fence for f in fences)
        except claims.ClaimLost:
            assert not possible
        else:
            assert possible
            self.state[instance_id, fence] = ClaimState.HELD
            self.placed[instance_id, fence] = placement

    @rule(instance_id=INSTANCES, fence=FENCES)
    def bind(self, instance_id: str, fence: int) -> None:
        self.database.write(lambda s: claims.bind(s, instance_id, fence))
        if self.state.get((instance_id, fence)) is ClaimState.HELD:
            self.state[instance_id, fence] = ClaimState.BOUND

    @rule(instance_id=INSTANCES, fence=FENCES)
    def release(self, instance_id: str, fence: int) -> None:
        self.database.write(lambda s: claims.release(s, instance_id, fence))
        for key in self._up_to(instance_id, fence):
            del self.state[key]

    @rule(instance_id=INSTANCES, fence=FENCES)
    def give_up(self, instance_id: str, fence: int) -> None:
        self.database.write(lambda s: claims.give_up(s, instance_id, fence))
        for key in self._up_to(instance_id, fence):
            self.state[key] = ClaimState.RELEASING

    @rule(host_id=st.sampled_from(sorted(HOSTS)), running=st.sets(st.tuples(INSTANCES, FENCES)))
    def confirm_gone(self, host_id: str, running: set[Key]) -> None:
        refs = {EngineRef(instance_id=i, fence=f) for i, f in running}
        self.database.write(lambda s: claims.confirm_gone(s, host_id, refs))
        for key, state in list(self.state.items()):
            if state is ClaimState.RELEASING and self.placed[key].host_id == host_id and key not in running:
                del self.state[key]

    @rule()
    def expire(self) -> None:
        late = datetime.now(UTC) + timedelta(hours=1)
        self.database.write(lambda s: claims.expire(s, late))
        self.state = {key: state for key, state in self.state.items() if state is not ClaimState.HELD}

    @rule(host_id=st.sampled_from(sorted(HOSTS)))
    def recount(self, host_id: str) -> None:
        self.database.write(lambda s: claims.recount(s, host_id))

    @invariant()
    def books_are_right(self) -> None:
        ledger.assert_the_books_are_right(self.database)

    @invariant()
    def claims_are_those_of_the_model(self) -> None:
        found = {(i, f): state for (i, f, _), state in ledger.rows(self.database).items()}
        assert found == self.state

    @invariant()
    def legitimate_engines_are_those_of_the_model(self) -> None:
        for host_id in HOSTS:
            expected = {
                EngineRef(instance_id=i, fence=f)
                for (i, f), state in self.state.items()
                if state is not ClaimState.RELEASING and self.placed[i, f].host_id == host_id
            }
            found = self.database.read(lambda s, host_id=host_id: claims.legitimate(s, host_id))  # type: ignore[misc]
            assert found == expected

    def _up_to(self, instance_id: str, fence: int) -> list[Key]:
        return [(i, f) for i, f in self.state if i == instance_id and f <= fence]

    def _fits(self, placement: Placement) -> bool:
        taken: dict[str, int] = {}
        for key in self.state:
            for place in self.placed[key].gpu_uuids or (self.placed[key].host_id,):
                taken[place] = taken.get(place, 0) + self.placed[key].memory_bytes
        places = placement.gpu_uuids or (placement.host_id,)
        return all(taken.get(place, 0) + placement.memory_bytes <= 100 for place in places)


def test_counters_are_the_sum_of_claims_whatever_happens(database: Database) -> None:
    machine = type("OnThisDatabase", (Ledger,), {"database": database})
    quick = settings(
        max_examples=25,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    run_state_machine_as_test(machine, settings=quick)
