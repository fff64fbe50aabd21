"""Who is next."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.policy.fair_queue import Entry, FairQueue
from fleet.policy.shedding import is_shed, saturation, shed_probability

tenants = st.sampled_from(["a", "b", "c"])
entries = st.lists(st.tuples(tenants, st.integers(-1, 2), st.integers(0, 3000)), max_size=60)


def anyone(_: Entry[int]) -> bool:
    return True


def filled(rows: list[tuple[str, int, int]]) -> tuple[FairQueue[int], list[Entry[int]]]:
    queue: FairQueue[int] = FairQueue(1000)
    pushed = [Entry(n, tenant, priority, tokens) for n, (tenant, priority, tokens) in enumerate(rows)]
    assert all(queue.push(entry) for entry in pushed)
    return queue, pushed


def emptied(queue: FairQueue[int]) -> list[Entry[int]]:
    out = []
    while (entry := queue.pop(anyone)) is not None:
        out.append(entry)
    return out


@given(entries)
def test_all_come_out_once_by_priority_and_each_tenants_in_turn(rows: list[tuple[str, int, int]]) -> None:
    queue, pushed = filled(rows)
    out = emptied(queue)
    assert sorted(e.what for e in out) == [e.what for e in pushed]
    assert [e.priority for e in out] == sorted((e.priority for e in pushed), reverse=True)
    for tenant in "abc":
        for priority in range(-1, 3):
            mine = [e.what for e in out if (e.tenant, e.priority) == (tenant, priority)]
            assert mine == sorted(mine)
    assert len(queue) == 0


@given(st.lists(st.tuples(tenants, st.just(0), st.integers(1, 3000)), min_size=2, max_size=60))
def test_while_two_wait_neither_gets_more_than_its_share_and_one_request(rows: list[tuple[str, int, int]]) -> None:
    queue, pushed = filled(rows)
    left = Counter(e.tenant for e in pushed)
    had: Counter[str] = Counter()
    largest = max(tokens for _, _, tokens in rows)
    for entry in emptied(queue):
        had[entry.tenant] += entry.tokens
        left[entry.tenant] -= 1
        waiting = [tenant for tenant in left if left[tenant]]
        for tenant in waiting:
            assert all(had[other] - had[tenant] <= 2 * largest for other in had)


def test_a_flood_of_one_tenant_does_not_delay_another() -> None:
    queue, _ = filled([("flood", 0, 100)] * 200)
    queue.push(Entry(999, "quiet", 0, 100))
    assert 999 in [e.what for e in emptied(queue)[:2]]


@given(st.lists(st.tuples(tenants, st.sampled_from(["push", "pop"])), min_size=1, max_size=300))
def test_nobody_starves(steps: list[tuple[str, str]]) -> None:
    queue: FairQueue[int] = FairQueue(1000)
    waited: Counter[int] = Counter()
    for number, (tenant, step) in enumerate(steps):
        if step == "push":
            queue.push(Entry(number, tenant, 0, 100))
            waited[number] = 0
        elif (entry := queue.pop(anyone)) is not None:
            del waited[entry.what]
            for other in waited:
                waited[other] += 1
                ahead = sum(steps[n] == (steps[other][0], "push") for n in range(other))
                assert waited[other] <= 3 * (ahead + 1) + 3


def test_one_that_was_away_gets_no_more_for_it() -> None:
    queue, _ = filled([("a", 0, 100)] * 50)
    for _ in range(30):
        queue.pop(anyone)
    for number in range(30):
        queue.push(Entry(100 + number, "b", 0, 100))
    assert Counter(e.tenant for e in emptied(queue)[:20]) == {"a": 10, "b": 10}


def test_one_that_cancels_is_not_charged() -> None:
    queue, _ = filled([("a", 0, 100)] * 10)
    gone = [Entry(50 + n, "b", 0, 10_000) for n in range(10)]
    for entry in gone:
        queue.push(entry)
    assert all(queue.remove(entry) for entry in gone)
    queue.push(Entry(99, "b", 0, 100))
    assert 99 in [e.what for e in emptied(queue)[:2]]


@given(entries, st.data())
def test_who_cannot_go_holds_up_nobody(rows: list[tuple[str, int, int]], data: st.DataObject) -> None:
    queue, pushed = filled(rows)
    barred = set(data.draw(st.lists(st.sampled_from(range(60)), max_size=8)))
    out = []
    while (entry := queue.pop(lambda e: e.what not in barred)) is not None:
        out.append(entry)
    assert {e.what for e in out} == {e.what for e in pushed} - barred
    assert [e.priority for e in out] == sorted((e.priority for e in out), reverse=True)
    assert {e.what for e in emptied(queue)} == {e.what for e in pushed} & barred


@given(st.lists(st.tuples(st.sampled_from(["push", "pop", "remove", "expire", "yield"]), st.integers(0, 9))))
def test_length_is_what_waits_and_never_above_the_bound(steps: list[tuple[str, int]]) -> None:
    queue: FairQueue[int] = FairQueue(5)
    waiting: dict[int, Entry[int]] = {}
    for now, (step, number) in enumerate(steps):
        match step:
            case "push":
                entry = Entry(now, str(number % 3), number % 4, number, expires=now + number)
                assert queue.push(entry) == (len(waiting) < 5)
                if entry.waits:
                    waiting[now] = entry
            case "pop":
                popped = queue.pop(anyone)
                assert (popped is None) == (not waiting)
                if popped is not None:
                    assert popped.priority == max(e.priority for e in waiting.values())
                    del waiting[popped.what]
            case "remove":
                for entry in list(waiting.values())[:1]:
                    assert queue.remove(entry)
                    assert not queue.remove(entry)
                    del waiting[entry.what]
            case "expire":
                over = {e.what for e in queue.expire(now)}
                assert over == {e.what for e in waiting.values() if e.expires <= now}
                for what in over:
                    del waiting[what]
            case _:
                lost = queue.yield_place(number)
                lower = [e for e in waiting.values() if e.priority < number]
                assert (lost is None) == (not lower)
                if lost is not None:
                    lowest = min(e.priority for e in lower)
                    assert lost.what == max(e.what for e in lower if e.priority == lowest)
                    del waiting[lost.what]
        assert len(queue) == len(waiting)
        assert all(e.waits for e in waiting.values())


def test_tenants_that_come_once_are_forgotten() -> None:
    queue: FairQueue[int] = FairQueue(10)
    queue.push(Entry(-1, "always", 0, 1))
    for number in range(20_000):
        queue.push(Entry(number, f"t{number}", 0, 100))
        queue.pop(anyone)
    assert sum(len(c._tenants) for c in queue._classes.values()) < 5000


@pytest.mark.parametrize(("at", "shed"), [(0.0, 0.0), (0.15, 0.0228), (0.34, 1.0), (1.0, 1.0)])
def test_shedding_is_steep(at: float, shed: float) -> None:
    assert shed_probability(at) == pytest.approx(shed, abs=0.001)


def test_only_what_matters_least_is_shed() -> None:
    assert is_shed(-1, waiting=60, in_flight=40, chance=0.999)
    assert not is_shed(0, waiting=60, in_flight=40, chance=0.0)
    assert not is_shed(-1, waiting=0, in_flight=0, chance=0.0)
    assert saturation(15, 85) == 0.15
