"""How many requests of batches go at once is found out by asking, and nobody is pressed."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.policy.batch_answers import MOST_ATTEMPTS, Verdict, pause, retry_after, verdict
from fleet.policy.spare import FIRST, LONGEST_PAUSE_S, MOST, Spare


def test_it_grows_by_one_a_round_and_halves_when_refused() -> None:
    spare = Spare()
    for _ in range(int(FIRST)):
        spare.answered()
    assert FIRST + 0.8 < spare.limit <= FIRST + 1
    before = spare.limit
    spare.refused(10.0, 2.0)
    assert spare.limit == before / 2
    assert spare.wait(10.5) == 1.5
    assert spare.wait(12.0) == 0


def test_refusals_of_requests_that_were_sent_together_count_once() -> None:
    spare = Spare(limit=32)
    for at in (1.0, 1.1, 1.2):
        spare.refused(at, 5.0)
    assert spare.limit == 16


def test_without_a_word_how_long_it_waits_longer_each_time() -> None:
    spare, at, pauses = Spare(), 0.0, []
    for _ in range(9):
        spare.refused(at, None)
        pauses.append(spare.not_before - at)
        at = spare.not_before
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    spare.answered()
    spare.refused(at, None)
    assert spare.not_before - at == 1


def test_at_the_limit_the_next_one_waits_for_another_to_end() -> None:
    spare = Spare(limit=1.9)
    spare.begin()
    assert spare.wait(0) is None
    spare.end()
    assert spare.wait(0) == 0


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100), st.none() | st.floats(0, 1e6)), max_size=200))
def test_there_is_always_one_and_never_too_many(events: list[tuple[bool, float, float | None]]) -> None:
    spare, now = Spare(), 0.0
    for good, later, said in events:
        now += later
        spare.answered() if good else spare.refused(now, said)
        assert 1 <= spare.limit <= MOST
        assert spare.not_before <= now + LONGEST_PAUSE_S


def test_what_an_answer_means() -> None:
    assert [verdict(s) for s in (200, 204)] == [Verdict.GOOD] * 2
    assert [verdict(s) for s in (408, 429, 503, 529)] == [Verdict.BUSY] * 4
    assert [verdict(s) for s in (500, 502, 504)] == [Verdict.FAULT] * 3
    assert [verdict(s) for s in (301, 400, 401, 404, 413, 422)] == [Verdict.WRONG] * 6


def test_pauses_between_faults_grow_and_are_bounded() -> None:
    pauses = [pause(n) for n in range(1, MOST_ATTEMPTS + 20)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.5, 30.0)


def test_only_what_is_a_number_of_seconds_is_believed() -> None:
    assert [retry_after(v) for v in ("3", "0.5", "0")] == [3, 0.5, 0]
    assert [retry_after(v) for v in (None, "", "soon", "-1", "nan", "1e9", "inf")] == [None] * 7
