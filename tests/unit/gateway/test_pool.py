"""The replicas of one target, and who waits for them."""

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from api.gateway.pool import Pool, Refused, Ticket
from fleet.policy.ask import Ask
from fleet.policy.outlier import OFF_S, Fate, Outcome
from fleet.policy.replica import EngineLoad
from fleet.routes import Balancing, PolicyName, QueueSpec
from tests.unit.policy.replicas import FakeReplica, several

GOOD, BAD, UNUSED = Outcome(Fate.ANSWERED), Outcome(Fate.FAILED), Outcome(Fate.UNUSED)
ASK = Ask("t", 0, 100, 50)


def pool(there: tuple[FakeReplica, ...], **update: Any) -> Pool[FakeReplica]:
    made: Pool[FakeReplica] = Pool(random.Random(1).random)
    made.update(there, 0.0, **update)
    return made


@dataclass
class Waiter:
    """What a caller that waits hears."""

    got: list[FakeReplica] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)

    def enqueue(self, into: Pool[FakeReplica], ask: Ask = ASK, now: float = 0.0, **more: Any) -> Ticket[FakeReplica]:
        return into.enqueue(ask, self.got.append, self.refused.append, now, **more)


def fill(there: Pool[FakeReplica]) -> list[FakeReplica]:
    taken = []
    while (upstream := there.take(ASK, (), 0.0)) is not None:
        taken.append(upstream)
    return taken


def test_nobody_gets_more_than_its_places_and_the_next_waits_for_the_first_that_frees() -> None:
    one, two = several(2, capacity=3)
    target = pool((one, two))
    assert Counter(r.instance_id for r in fill(target)) == {one.instance_id: 3, two.instance_id: 3}
    first, second = Waiter(), Waiter()
    first.enqueue(target)
    second.enqueue(target)
    assert target.waiting == 2
    target.give_back(two, ASK, GOOD, 1.0)
    target.give_back(one, ASK, GOOD, 1.0)
    assert (first.got, second.got) == ([two], [one])
    assert (one.in_flight, two.in_flight, target.in_flight, target.waiting) == (3, 3, 6, 0)


def test_a_limit_that_somebody_set_wins() -> None:
    target = pool(several(2, capacity=3), queue=QueueSpec(in_flight=5))
    assert len(fill(target)) == 10


def test_waiters_go_by_priority_and_all_tenants_in_turn() -> None:
    target = pool(several(1, capacity=1))
    fill(target)
    order: list[str] = []
    for tenant, priority in (("a", 0), ("a", 0), ("b", 0), ("c", 1)):
        target.enqueue(Ask(tenant, priority, 10, 10), lambda _, t=tenant: order.append(t), pytest.fail, 0.0)  # type: ignore[misc]
    for _ in range(4):
        target.give_back(target.upstreams[0], Ask(), GOOD, 1.0)
    assert order == ["c", "a", "b", "a"]


def test_who_does_not_fit_or_waits_too_long_is_told_when_to_come_back() -> None:
    target = pool(several(1, capacity=1), queue=QueueSpec(max_waiting=1, max_wait_s=5))
    fill(target)
    waits, late = Waiter(), Waiter()
    waits.enqueue(target)
    late.enqueue(target)
    assert [(r.reason, r.status) for r in late.refused] == [("full", 429)]
    assert late.refused[0].retry_after_s >= 1
    target.sweep(4.9)
    assert not waits.refused
    target.sweep(5.0)
    assert [(r.reason, r.status) for r in waits.refused] == [("too_long", 503)]
    assert target.waiting == 0


def test_of_a_full_queue_somebody_less_important_goes() -> None:
    target = pool(several(1, capacity=1), queue=QueueSpec(max_waiting=1))
    fill(target)
    low, high = Waiter(), Waiter()
    low.enqueue(target)
    high.enqueue(target, Ask(priority=3))
    assert [r.reason for r in low.refused] == ["full"]
    assert not high.refused


def test_what_matters_least_is_shed_while_others_wait() -> None:
    target = pool(several(1, capacity=1))
    fill(target)
    for _ in range(3):
        Waiter().enqueue(target)
    shed = Waiter()
    shed.enqueue(target, Ask(priority=-1))
    assert [(r.reason, r.status) for r in shed.refused] == [("shed", 429)]


def test_one_that_cancels_is_not_called() -> None:
    target = pool(several(1, capacity=1))
    (taken,) = fill(target)
    left, stays = Waiter(), Waiter()
    ticket = left.enqueue(target)
    stays.enqueue(target)
    assert target.cancel(ticket)
    assert not target.cancel(ticket)
    target.give_back(taken, ASK, GOOD, 1.0)
    assert (left.got, left.refused, stays.got) == ([], [], [taken])


def test_a_callback_may_give_back_at_once() -> None:
    target = pool(several(1, capacity=1))
    (taken,) = fill(target)
    served: list[int] = []

    def at_once(number: int) -> None:
        served.append(number)
        target.give_back(taken, ASK, UNUSED, 1.0)

    for number in range(500):
        target.enqueue(ASK, lambda _, n=number: at_once(n), pytest.fail, 0.0)  # type: ignore[misc]
    target.give_back(taken, ASK, GOOD, 1.0)
    assert served == list(range(500))
    assert (taken.in_flight, taken.tokens) == (0, 0)


def test_a_new_replica_serves_those_that_wait_and_so_does_the_first_of_all() -> None:
    target = pool(())
    waiter = Waiter()
    waiter.enqueue(target)
    assert target.take(ASK, (), 0.0) is None
    there = several(1)
    target.update(there, 1.0)
    assert waiter.got == list(there)


def test_a_retry_goes_elsewhere_and_waits_for_elsewhere() -> None:
    one, two = several(2, capacity=1)
    target = pool((one, two))
    assert target.others((one,))
    assert not target.others((one, two))
    assert target.take(ASK, (one,), 0.0) is two
    assert target.take(ASK, (one,), 0.0) is None
    waiter, other = Waiter(), Waiter()
    waiter.enqueue(target, tried=(one,))
    other.enqueue(target)  # is not held up by it
    assert (waiter.got, other.got) == ([], [one])
    target.give_back(two, ASK, GOOD, 1.0)
    assert waiter.got == [two]


def test_suspects_and_those_without_weight_serve_only_when_there_is_no_other() -> None:
    ready, suspect, unweighted = several(3, capacity=1)
    suspect.suspect, suspect.launch, ready.launch, unweighted.launch = True, 1, 1, 2
    target = pool((ready, suspect, unweighted), traffic={1: 100})
    assert fill(target) == [ready]
    assert target.take(ASK, (ready,), 0.0) is suspect
    target.update((unweighted,), 1.0, traffic={1: 100})
    assert target.take(ASK, (), 1.0) is unweighted


def test_requests_are_split_exactly_and_each_launch_has_turns_of_its_own() -> None:
    there = several(4, capacity=64)
    for number, replica in enumerate(there):
        replica.launch = 1 if number < 2 else 2
    target = pool(there, traffic={1: 50, 2: 50})
    had: Counter[str] = Counter()
    for _ in range(40):
        upstream = target.take(ASK, (), 0.0)
        assert upstream is not None
        had[upstream.instance_id] += 1
        target.give_back(upstream, ASK, GOOD, 0.0)
    assert set(had.values()) == {10}


def test_one_that_cannot_be_reached_is_left_alone_until_it_can() -> None:
    one, two = several(2, capacity=64)
    target = pool((one, two))
    one.avoided_until = 10.0
    for now in (1.0, 2.0, 9.9):
        assert target.take(ASK, (), now) is two
    assert {target.take(ASK, (), 10.0) for _ in range(2)} >= {one}
    assert one.trials >= 1
    one.avoided_until = 15.0
    assert target.take(ASK, (), 10.1) is two
    one.avoided_until = 0.0  # a connection was made after all
    target.give_back(one, ASK, GOOD, 10.2)
    assert one in {target.take(ASK, (), 10.3) for _ in range(2)}


def test_when_all_are_avoided_they_are_asked_anyway() -> None:
    there = several(2)
    target = pool(there)
    for replica in there:
        replica.avoided_until = 10.0
    assert {target.take(ASK, (), 1.0) for _ in range(2)} == set(there)


def test_one_whose_answers_fail_is_off_and_then_tried_by_one_request_at_a_time() -> None:
    one, two = several(2, capacity=64)
    target = pool((one, two))
    for _ in range(5):
        assert target.take(ASK, (two,), 0.0) is one
        target.give_back(one, ASK, BAD, 0.0)
    assert {target.take(ASK, (), now) for now in (0.1, 1.0, OFF_S - 0.1)} == {two}
    for round_ in range(3):
        now = OFF_S + round_
        taken = [target.take(ASK, (), now) for _ in range(6)]
        assert taken.count(one) == 1
        target.give_back(one, ASK, GOOD, now)
    assert [target.take(ASK, (), 9.0) for _ in range(6)].count(one) > 1


def test_a_lone_replica_is_never_shut_out() -> None:
    (one,) = several(1)
    target = pool((one,))
    for _ in range(50):
        assert target.take(ASK, (), 0.0) is one
        target.give_back(one, ASK, BAD, 0.0)


def test_an_engine_that_refuses_is_given_its_time() -> None:
    one, two = several(2, capacity=64)
    target = pool((one, two))
    assert target.take(ASK, (two,), 0.0) is one
    target.give_back(one, ASK, Outcome(Fate.OVERLOADED, 20.0), 0.0)
    assert {target.take(ASK, (), now) for now in (1.0, 10.0, 19.9)} == {two}
    assert one in {target.take(ASK, (), 20.0) for _ in range(4)}


def test_what_an_engine_says_lowers_what_it_is_given() -> None:
    (one,) = several(1, capacity=100)
    target = pool((one,))
    taken = fill(target)
    for _ in range(30):
        target.heard(one, EngineLoad(0.0, in_flight=100, waiting=90), 0.0)
    for _ in taken[:90]:
        target.give_back(one, ASK, GOOD, 1.0)
    assert target.take(ASK, (), 1.0) is None
    target.give_back(one, ASK, GOOD, 1.0)
    assert target.take(ASK, (), 1.0) is one


def test_speeds_are_learned_from_first_bytes() -> None:
    slow, fast = several(2)
    target = pool((slow, fast))
    for upstream, seconds in ((slow, 4.0), (fast, 0.5)):
        target.first_byte(upstream, Ask(prompt_tokens=1000), seconds, 1.0)
    target.sweep(2.0)
    assert fast.speed >= 2.0 > 1.0 > slow.speed
    assert fast.prefill_rate == 2000


def test_room_in_a_shared_replica_serves_whoever_waits_for_it_in_turn() -> None:
    (shared,) = there = several(1, capacity=2)
    one, other = pool(there), pool(there)
    assert one.take(ASK, (), 0.0) is shared
    assert other.take(ASK, (), 0.0) is shared
    assert one.take(ASK, (), 0.0) is None
    assert other.take(ASK, (), 0.0) is None
    order: list[str] = []
    for target, name in ((one, "one"), (other, "other")):
        for _ in range(5):
            target.enqueue(ASK, lambda _, n=name: order.append(n), pytest.fail, 0.0)  # type: ignore[misc]
    for _ in range(10):
        one.give_back(shared, ASK, GOOD, 1.0)
    assert all(a != b for a, b in pairwise(order))
    assert len(order) == 10
    one.close()
    assert shared.standing.interested == [other]


def test_retries_are_a_share_of_requests() -> None:
    target = pool(several(2))
    assert sum(target.may_retry(0.0) for _ in range(50)) == 10


class Machine(RuleBasedStateMachine):
    """Everything that can happen to a pool, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.known = several(5, capacity=3)
        self.out: list[tuple[FakeReplica, Ask]] = []
        self.tickets: list[tuple[Ticket[FakeReplica], list[object]]] = []
        self.fixed: int | None = None
        self.pool: Pool[FakeReplica] = Pool(random.Random(1).random)
        self.pool.update(self.known[:3], 0.0, queue=QueueSpec(max_waiting=8))
        self.most = 8

    asks = st.builds(
        Ask,
        tenant=st.sampled_from("ab"),
        priority=st.integers(0, 2),
        prompt_tokens=st.integers(0, 2000),
        new_tokens=st.integers(0, 500),
        prefix=st.sampled_from([(), (1,), (1, 2, 3), (4, 5)]),
        session=st.sampled_from(["", "s", "t"]),
    )

    @rule(ask=asks, tried=st.lists(st.integers(0, 4), max_size=2))
    def take(self, ask: Ask, tried: list[int]) -> None:
        barred = [self.known[n] for n in tried]
        upstream = self.pool.take(ask, barred, self.now)
        if upstream is not None:
            assert upstream not in barred
            self.hand_out(upstream, ask)

    @rule(ask=asks, tried=st.lists(st.integers(0, 4), max_size=1))
    def wait(self, ask: Ask, tried: list[int]) -> None:
        heard: list[object] = []

        def ready(upstream: FakeReplica) -> None:
            heard.append(upstream)
            self.hand_out(upstream, ask)

        ticket = self.pool.enqueue(ask, ready, heard.append, self.now, [self.known[n] for n in tried])
        self.tickets.append((ticket, heard))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), fate=st.sampled_from(list(Fate)))
    def end(self, data: st.DataObject, fate: Fate) -> None:
        upstream, ask = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        self.pool.give_back(upstream, ask, Outcome(fate, 3.0), self.now)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket, heard = data.draw(st.sampled_from(self.tickets))
        if self.pool.cancel(ticket):
            heard.append("cancelled")

    @rule(
        there=st.lists(st.integers(0, 4), unique=True),
        suspects=st.lists(st.integers(0, 4)),
        policy=st.sampled_from(get_args(PolicyName)),
        traffic=st.sampled_from([{}, {0: 3, 1: 1}]),
        most=st.integers(0, 8),
    )
    def update(
        self, there: list[int], suspects: list[int], policy: PolicyName, traffic: dict[int, int], most: int
    ) -> None:
        for number, replica in enumerate(self.known):
            replica.suspect = number in suspects
            replica.launch = number % 2
        self.most = max(most, self.pool.waiting)
        spec = QueueSpec(max_waiting=most, max_wait_s=20)
        self.pool.update(
            [self.known[n] for n in there], self.now, traffic=traffic, balancing=Balancing(policy=policy), queue=spec
        )

    @rule(seconds=st.floats(0, 12))
    def sweep(self, seconds: float) -> None:
        self.now += seconds
        self.pool.sweep(self.now)

    @rule(number=st.integers(0, 4), seconds=st.floats(0, 12))
    def avoid(self, number: int, seconds: float) -> None:
        self.known[number].avoided_until = self.now + seconds

    def hand_out(self, upstream: FakeReplica, ask: Ask) -> None:
        assert upstream in self.pool.upstreams
        assert not upstream.suspect or upstream.in_flight <= 3
        self.out.append((upstream, ask))

    @invariant()
    def books_are_right_and_bounds_kept(self) -> None:
        for replica in self.known:
            mine = [ask for upstream, ask in self.out if upstream is replica]
            assert replica.in_flight == len(mine) <= 3
            assert replica.tokens == sum(ask.tokens for ask in mine)
        assert self.pool.in_flight == len(self.out)

    @invariant()
    def each_that_waits_is_called_once(self) -> None:
        assert all(len(heard) == (not ticket.waits) for ticket, heard in self.tickets)
        assert self.pool.waiting == sum(ticket.waits for ticket, _ in self.tickets) <= self.most

    def teardown(self) -> None:
        """In the end, when all replicas are there and well, nobody who may go anywhere is left waiting."""
        self.pool.update(self.known, self.now)
        while self.out:
            upstream, ask = self.out.pop()
            self.pool.give_back(upstream, ask, GOOD, self.now)
        for _ in range(60):
            self.now += 0.01
            self.pool.sweep(self.now)
            while self.out:
                upstream, ask = self.out.pop()
                self.pool.give_back(upstream, ask, GOOD, self.now)
        assert self.pool.waiting == 0
        assert all(len(heard) == 1 for _, heard in self.tickets)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
