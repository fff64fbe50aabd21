"""Which replica gets a request."""

import random
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.policy.ask import Ask
from fleet.policy.balancing import Balancer, PowerOfTwo, RoundRobin, Weighted, make_balancer
from fleet.policy.bounded_load import bound, level
from fleet.policy.consistent_hash import Roster, key_of
from fleet.policy.least_load import LOOKED_AT, LeastLoad
from fleet.policy.prefix import hashes
from fleet.policy.prefix_affinity import PATIENCE_S, PrefixAffinity
from fleet.policy.prefix_index import PrefixIndex
from fleet.policy.replica import EngineLoad
from fleet.policy.session_affinity import SessionAffinity
from fleet.routes import Balancing, PolicyName
from tests.unit.policy.replicas import FakeReplica, several

POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
FACTOR = 1.25


def ask(text: str = "", session: str = "", tokens: int = 100) -> Ask:
    return Ask(prompt_tokens=tokens, prefix=hashes({"prompt": text}, "completions"), session=session)


def send(replica: FakeReplica, ask: Ask) -> None:
    replica.in_flight += 1
    replica.tokens += ask.tokens


replicas = st.lists(
    st.tuples(st.integers(0, 16), st.integers(0, 30), st.integers(0, 9000), st.sampled_from([0.5, 1.0, 2.0])),
    min_size=1,
    max_size=40,
).map(
    lambda rows: tuple(
        FakeReplica(f"m/{n}", capacity, in_flight, tokens if in_flight else 0, speed)
        for n, (capacity, in_flight, tokens, speed) in enumerate(rows)
    )
)
asks = st.lists(
    st.builds(ask, st.sampled_from(["", "short", "a" * 700, "a" * 700 + "b" * 900]), st.sampled_from(["", "s", "t"])),
    min_size=1,
    max_size=20,
)


@given(st.sampled_from(POLICIES), replicas, asks, st.integers())
def test_equal_input_is_answered_alike_by_one_of_those_given(
    policy: PolicyName, there: tuple[FakeReplica, ...], wanted: list[Ask], seed: int
) -> None:
    def chosen() -> list[str]:
        balancer = make_balancer(Balancing(policy=policy), random.Random(seed).random)
        return [balancer.choose(there, one, float(n)).instance_id for n, one in enumerate(wanted)]

    first = chosen()
    assert first == chosen()
    assert set(first) <= {r.instance_id for r in there}


@pytest.mark.parametrize("policy", POLICIES)
def test_idle_equals_all_get_some(policy: PolicyName) -> None:
    balancer = make_balancer(Balancing(policy=policy), random.Random(1).random)
    there = several(4)
    had = Counter(balancer.choose(there, ask(f"{n} " * 300, f"s{n}"), 0.0).instance_id for n in range(400))
    assert min(had[r.instance_id] for r in there) > 50


class TestLeastLoad:
    def test_fewest_tokens_for_capacity_and_speed(self) -> None:
        small, large, fast = FakeReplica("a", 4), FakeReplica("b", 8), FakeReplica("c", 4, speed=4.0)
        small.tokens, large.tokens, fast.tokens = 400, 700, 1500
        small.in_flight = large.in_flight = fast.in_flight = 1
        assert LeastLoad().choose((small, large, fast), ask(), 0) is large
        fast.tokens = 1300
        assert LeastLoad().choose((small, large, fast), ask(), 0) is fast

    def test_then_fewest_requests_then_turns(self) -> None:
        busy, *idle = several(3)
        busy.in_flight = 1
        balancer = LeastLoad()
        assert Counter(balancer.choose((busy, *idle), ask(), 0).instance_id for _ in range(10)) == {
            r.instance_id: 5 for r in idle
        }

    def test_requests_of_other_gateways_count_while_that_is_news(self) -> None:
        busy, idle = several(2)
        idle.in_flight, idle.tokens = 1, 100
        busy.load = EngineLoad(at=10.0, in_flight=3)
        assert LeastLoad().choose((busy, idle), ask(), 11.9) is idle
        assert LeastLoad().choose((busy, idle), ask(), 12.1) is busy

    def test_of_very_many_the_idle_ones_are_found_within_some_turns(self) -> None:
        there = several(64)
        for replica in there[:-4]:
            replica.in_flight, replica.tokens = 2, 200
        balancer = LeastLoad()
        found = [balancer.choose(there, ask(), 0) for _ in range(64 // LOOKED_AT)]
        assert any(r in there[-4:] for r in found)


class TestWeighted:
    def test_shares_are_exact_and_even(self) -> None:
        there = (FakeReplica("a", 9), FakeReplica("b", 1), FakeReplica("c", 3, speed=2.0))
        balancer = Weighted()
        first = Counter(balancer.choose(there, ask(), 0).instance_id for _ in range(32))
        assert abs(first["a"] - 18) <= 1
        assert abs(first["c"] - 12) <= 1
        rest = Counter(balancer.choose(there, ask(), 0).instance_id for _ in range(16_000 - 32))
        assert all(abs((first + rest)[name] - 1000 * share) <= 1 for name, share in (("a", 9), ("b", 1), ("c", 6)))

    def test_one_that_was_away_does_not_get_what_it_missed(self) -> None:
        one, two = several(2)
        balancer = Weighted()
        for there in ((one, two), (one,), (one, FakeReplica("other"))):
            for _ in range(100):
                balancer.choose(there, ask(), 0)
        back = Counter(balancer.choose((one, two), ask(), 0).instance_id for _ in range(20))
        assert abs(back[two.instance_id] - 10) <= 1


class TestOthers:
    def test_round_robin_is_in_turn(self) -> None:
        balancer, there = RoundRobin(), several(3)
        assert [balancer.choose(there, ask(), 0) for _ in range(6)] == [*there, *there]

    @given(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
    def test_power_of_two_takes_the_better_of_two_that_differ(self, one: float, other: float) -> None:
        there = several(5)
        for load, replica in enumerate(there):
            replica.in_flight, replica.tokens = load, load * 100
        chances = iter((one, other))
        assert PowerOfTwo(lambda: next(chances)).choose(there, ask(), 0) is not there[-1]


class TestSessions:
    @given(st.integers(2, 12), st.data())
    def test_going_of_one_moves_only_its_sessions(self, count: int, data: st.DataObject) -> None:
        there = several(count)
        gone = data.draw(st.sampled_from(there))
        left = tuple(r for r in there if r is not gone)
        balancer = SessionAffinity(FACTOR)
        for number in range(50):
            wanted = ask(session=f"s{number}")
            before = balancer.choose(there, wanted, 0)
            assert before is gone or balancer.choose(left, wanted, 0) is before

    def test_another_process_sends_a_session_to_the_same_place(self) -> None:
        roster = Roster()
        roster.read(several(5))
        assert [roster.home(key_of(f"s{n}")) for n in range(8)] == EXPECTED_HOMES

    @given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=200), st.integers(2, 8))
    def test_nobody_gets_more_than_the_bound(self, steps: list[tuple[int, bool]], count: int) -> None:
        there, balancer, sent = several(count), SessionAffinity(FACTOR), list[FakeReplica]()
        for session, ends in steps:
            wanted = ask(session=f"s{session}")
            limit = level(there, FACTOR)
            chosen = balancer.choose(there, wanted, 0)
            assert chosen.in_flight + 1 <= bound(chosen, limit)
            send(chosen, wanted)
            sent.append(chosen)
            if ends:
                back = sent.pop(0)
                back.in_flight -= 1
                back.tokens -= wanted.tokens


EXPECTED_HOMES = [4, 0, 3, 1, 0, 3, 3, 2]


class TestPrefixes:
    def test_turns_of_a_conversation_meet_their_replica_again(self) -> None:
        there, balancer = several(4), PrefixAffinity(FACTOR)
        for conversation in range(40):
            text = f"{conversation} " * 200
            first = balancer.choose(there, ask(text), 0)
            for turn in range(1, 6):
                assert balancer.choose(there, ask(text + "more " * 200 * turn), turn) is first

    @given(st.integers(2, 12), st.data())
    def test_going_of_one_moves_only_its_prefixes(self, count: int, data: st.DataObject) -> None:
        there, balancer = several(count), PrefixAffinity(FACTOR)
        gone = data.draw(st.sampled_from(there))
        left = tuple(r for r in there if r is not gone)
        texts = [f"{number} " * 300 for number in range(30)]
        before = [balancer.choose(there, ask(text), 0) for text in texts]
        after = [balancer.choose(left, ask(text), 1) for text in texts]
        assert all(a is b for a, b in zip(after, before, strict=True) if b is not gone)

    def test_gateways_that_know_nothing_of_each_other_agree_while_replicas_are_idle(self) -> None:
        there, one, other = several(6), PrefixAffinity(FACTOR), PrefixAffinity(FACTOR)
        wanted = [ask(f"{number} " * 300) for number in range(30)]
        backwards = [other.choose(there, w, 0) for w in reversed(wanted)]
        assert [one.choose(there, w, 0) for w in wanted] == backwards[::-1]

    def test_a_saturated_one_is_left_once_another_is_sooner_by_more_than_the_bound(self) -> None:
        there, balancer = several(3, capacity=64), PrefixAffinity(10.0)
        wanted = ask("same " * 400, tokens=500)
        first = balancer.choose(there, wanted, 0)
        for replica in there:
            replica.prefill_rate, replica.in_flight = 1000.0, 1
        saved_s = wanted.prompt_tokens / 1000
        first.tokens = int(1000 * (PATIENCE_S + saved_s)) - 1
        assert balancer.choose(there, wanted, 1) is first
        first.tokens += 2
        other = balancer.choose(there, wanted, 2)
        assert other is not first
        first.tokens, other.tokens = 0, 1
        assert balancer.choose(there, wanted, 3) is first  # the less loaded of both that have it by now
        other.tokens = first.tokens = int(1000 * (PATIENCE_S + 2))
        next(r for r in there if r not in (first, other)).tokens = other.tokens
        assert balancer.choose(there, wanted, 4) in (first, other)  # nobody is sooner

    def test_a_few_common_words_bind_nobody(self) -> None:
        there, balancer = several(4), PrefixAffinity(FACTOR)
        sent = Counter[str]()
        for number in range(40):
            wanted = ask("You are a helpful assistant. " * 10 + f"{number} " * 2000)
            chosen = balancer.choose(there, wanted, 0)
            send(chosen, wanted)
            sent[chosen.instance_id] += 1
        assert max(sent.values()) <= 11

    def test_unique_prompts_are_as_by_least_load(self) -> None:
        def spread(balancer: Balancer) -> int:
            there, rng, most = several(8, capacity=64), random.Random(3), 0
            sent: list[tuple[FakeReplica, Ask]] = []
            for number in range(2000):
                wanted = ask(f"{number} " * 200, tokens=rng.randrange(50, 4000))
                chosen = balancer.choose(there, wanted, 0)
                send(chosen, wanted)
                sent.append((chosen, wanted))
                if len(sent) > 100:
                    back, old = sent.pop(rng.randrange(len(sent)))
                    back.in_flight -= 1
                    back.tokens -= old.tokens
                    most += max(r.tokens for r in there)
            return most

        assert spread(PrefixAffinity(FACTOR)) <= 1.03 * spread(LeastLoad())

    @given(st.lists(st.sampled_from(["", "x" * 600, "y" * 600, "x" * 2000]), max_size=120), st.integers(2, 6))
    def test_nobody_gets_more_than_the_bound_for_affinitys_sake(self, texts: list[str], count: int) -> None:
        there, balancer, least = several(count), PrefixAffinity(FACTOR), LeastLoad()
        for text in texts:
            wanted = ask(text)
            limit = level(there, FACTOR)
            chosen = balancer.choose(there, wanted, 0)
            freest = least.choose(there, wanted, 0)
            assert chosen.in_flight + 1 <= max(bound(chosen, limit), freest.in_flight + 1)
            send(chosen, wanted)


class TestIndex:
    @given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 30), st.floats(0, 500)), max_size=200))
    def test_never_holds_more_than_it_may(self, prompts: list[tuple[int, int, float]]) -> None:
        index, now = PrefixIndex(most=64, keep_s=60), 0.0
        for start, blocks, pause in prompts:
            now += pause
            prefix = tuple(start * 100 + n for n in range(blocks))
            had, _ = index.find(prefix, {"a": 0}, now)
            index.add(prefix, "a", had)
            assert len(index) <= 64 + 2 * 30

    def test_forgets_what_is_not_met_again(self) -> None:
        index = PrefixIndex(keep_s=60)
        assert index.find((1, 2), {"a": 0}, 0.0) == (0, [])
        index.add((1, 2), "a", 0)
        for now in (50.0, 100.0, 150.0, 200.0):
            assert index.find((1, 2, 3), {"a": 0}, now) == (2, ["a"])
            index.add((1, 2), "a", 2)
        assert index.find((1, 2), {"a": 0}, 330.0) == (0, [])

    def test_says_who_has_most_of_those_that_are_there(self) -> None:
        index = PrefixIndex()
        index.add((1, 2, 3), "a", 0)
        index.add((1, 2), "b", 2)
        assert index.find((1, 2, 3, 4), {"a": 0, "b": 1}, 0.0) == (3, ["a"])
        assert index.find((1, 2, 3, 4), {"b": 1}, 0.0) == (2, ["b"])
        assert index.find((1, 2, 3, 4), {"c": 1}, 0.0) == (0, [])
