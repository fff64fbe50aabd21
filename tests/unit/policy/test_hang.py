"""Dead is found in time, and busy is never taken for dead."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.policy.hang import (
    LONGEST_GAP_S,
    SUSPECT_AFTER_S,
    UNKNOWN_FOR_STALLS,
    Level,
    Look,
    Patience,
    Reading,
    Verdict,
    begin,
    judge,
)

PATIENCE = Patience(unresponsive_s=15, stall_s=300, idle_probe_s=60)
IDLE = Reading(busy=0, progress=7)
UNKNOWN = Reading(busy=None, progress=None)


def judged(looks: list[Look], patience: Patience = PATIENCE, *, suspect: bool = False) -> list[Verdict]:
    """One verdict for each look; the looking began at 0."""
    watch, verdicts = begin(0.0, suspect=suspect), []
    for look in looks:
        watch, verdict = judge(watch, look, patience)
        verdicts.append(verdict)
    return verdicts


def each_second(seconds: int, *, answered: bool = True, reading: Reading | None = None, since: int = 0) -> list[Look]:
    return [Look(float(since + s), answered, reading) for s in range(1, seconds + 1)]


def test_engine_that_answers_is_well() -> None:
    assert set(judged(each_second(1000))) == {Verdict(Level.OK)}


def test_silent_engine_is_suspect_within_seconds_and_hung_when_patience_ends() -> None:
    levels = [v.level for v in judged(each_second(16, answered=False))]
    assert levels == [Level.OK] * 2 + [Level.SUSPECT] * 12 + [Level.HUNG] * 2
    assert "not answered its health check for 15 s" in judged(each_second(15, answered=False))[-1].reason


def test_engine_that_answers_again_is_well_again() -> None:
    looks = [*each_second(14, answered=False), *each_second(1, since=14), *each_second(2, answered=False, since=15)]
    assert [v.level for v in judged(looks)][-4:] == [Level.SUSPECT, Level.OK, Level.OK, Level.OK]


def test_few_looks_prove_nothing_however_long_they_take() -> None:
    looks = [Look(4.0 * n, answered=False) for n in range(1, 6)]
    assert [v.level for v in judged(looks)] == [Level.OK, *[Level.SUSPECT] * 3, Level.HUNG]


def test_pause_of_the_looker_starts_all_clocks_anew() -> None:
    looks = [*each_second(14, answered=False), Look(3600, answered=False), *each_second(14, answered=False, since=3600)]
    levels = [v.level for v in judged(looks)]
    assert levels[14:] == [Level.SUSPECT] * 15, "still suspect, not hung"
    assert judged([*looks, Look(3615, answered=False)])[-1].level is Level.HUNG


def test_suspicion_of_a_looker_before_us_holds_until_it_answers() -> None:
    verdicts = judged([Look(1, answered=False), Look(2, answered=True)], suspect=True)
    assert [v.level for v in verdicts] == [Level.SUSPECT, Level.OK]


def test_requests_that_do_not_get_on_are_a_stall() -> None:
    stuck = Reading(busy=1, progress=7)
    verdicts = judged(each_second(301, reading=stuck))
    assert [v.level for v in verdicts] == [Level.OK] * 300 + [Level.HUNG]
    assert "have not got on for 300 s" in verdicts[-1].reason


def test_stall_is_never_looked_for_when_told_so() -> None:
    verdicts = judged(each_second(5000, reading=Reading(busy=1, progress=7)), Patience(15, stall_s=0, idle_probe_s=0))
    assert {v.level for v in verdicts} == {Level.OK}


def test_unknown_metrics_stop_the_clock_of_a_stall() -> None:
    stuck = Reading(busy=1, progress=7)
    looks = [
        *each_second(200, reading=stuck),
        *each_second(900, reading=UNKNOWN, since=200),
        *each_second(90, reading=stuck, since=1100),
    ]
    assert {v.level for v in judged(looks)} == {Level.OK}
    assert judged([*looks, *each_second(20, reading=stuck, since=1190)])[-1].level is Level.HUNG


def test_engine_stuck_inside_one_step_is_found_after_a_very_long_while() -> None:
    """Its health check is answered by another thread, and its metrics come never."""
    looks = [*each_second(10, reading=Reading(busy=1, progress=7)), *each_second(1199, reading=UNKNOWN, since=10)]
    assert {v.level for v in judged(looks)} == {Level.OK}
    verdict = judged([*looks, *each_second(2, reading=UNKNOWN, since=1209)])[-1]
    assert verdict.level is Level.HUNG
    assert "has not said for" in verdict.reason


def test_engine_that_never_said_what_it_does_is_not_expected_to() -> None:
    assert {v.level for v in judged(each_second(9000, reading=UNKNOWN))} == {Level.OK}


def test_rounded_progress_is_believed_when_it_moves_and_doubted_for_long_when_it_does_not() -> None:
    moving = [
        *each_second(900, reading=Reading(1, 1.00001e6, exact=False)),
        *each_second(900, reading=Reading(1, 1.00002e6, exact=False), since=900),
    ]
    assert {v.level for v in judged(moving)} == {Level.OK}
    standing = each_second(1202, reading=Reading(1, 1e6, exact=False))
    assert [v.level for v in judged(standing)] == [Level.OK] * 1200 + [Level.HUNG] * 2


def test_getting_on_while_nobody_could_see_it_counts() -> None:
    looks = [
        *each_second(290, reading=Reading(busy=1, progress=7)),
        Look(291, answered=True, reading=UNKNOWN),
        *each_second(250, reading=Reading(busy=1, progress=8), since=291),
    ]
    assert {v.level for v in judged(looks)} == {Level.OK}


def test_idle_engine_is_asked_for_one_token_once_in_a_while() -> None:
    verdicts = judged(each_second(60, reading=IDLE))
    assert [n for n, v in enumerate(verdicts, start=1) if v.send_probe] == [60]


def test_engine_that_got_on_by_itself_needs_no_probe() -> None:
    looks = [Look(float(s), answered=True, reading=Reading(0, s // 50)) for s in range(1, 300)]
    assert not any(v.send_probe for v in judged(looks))


@pytest.mark.parametrize("patience", [Patience(15, 300, idle_probe_s=0), PATIENCE])
@pytest.mark.parametrize("reading", [Reading(1, 7), UNKNOWN, Reading(None, 7), None])
def test_engine_that_may_be_busy_is_not_probed(reading: Reading | None, patience: Patience) -> None:
    assert not any(v.send_probe for v in judged(each_second(200, reading=reading), patience))


def after_probes(*between: Reading, results: tuple[bool, ...]) -> Verdict:
    """An idle engine is probed, each result followed by what its metrics say then."""
    looks = [Look(1.0, answered=True, reading=IDLE)]
    for result, reading in zip(results, between, strict=True):
        looks.append(Look(looks[-1].now + 1, answered=True, probe=result))
        looks.append(Look(looks[-1].now + 1, answered=True, reading=reading))
    return judged(looks)[-1]


def test_two_probes_that_fail_on_an_idle_engine_prove_that_it_hangs() -> None:
    assert after_probes(IDLE, results=(False,)) == Verdict(Level.OK, send_probe=True), "at once again"
    verdict = after_probes(IDLE, IDLE, results=(False, False))
    assert verdict.level is Level.HUNG
    assert "2 one-token requests" in verdict.reason


@pytest.mark.parametrize("reading", [Reading(1, 7), UNKNOWN, Reading(0, 8)])
def test_probe_that_failed_while_others_may_have_kept_it_busy_proves_nothing(reading: Reading) -> None:
    assert after_probes(reading, IDLE, results=(False, False)).level is Level.OK
    assert after_probes(IDLE, reading, results=(False, False)).level is Level.OK


def test_probe_that_is_answered_clears_it() -> None:
    assert after_probes(IDLE, IDLE, IDLE, results=(False, True, False)).level is Level.OK


# -- whatever it is that is seen ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    pause: float
    answered: bool
    reading: Reading | None
    probe: bool | None


readings = st.builds(Reading, st.sampled_from([None, 0, 1, 3]), st.sampled_from([None, 1.0, 2.0]))
steps = st.builds(
    Step,
    st.floats(0.01, 2 * LONGEST_GAP_S),
    st.booleans(),
    st.none() | readings,
    st.sampled_from([None, None, True, False]),
)
patiences = st.builds(Patience, st.sampled_from([5.0, 15.0]), st.sampled_from([0, 5, 20]), st.sampled_from([0, 5, 60]))


def looks_of(made: list[Step]) -> list[Look]:
    now, looks = 0.0, []
    for step in made:
        now += step.pause
        looks.append(Look(now, step.answered, step.reading, step.probe))
    return looks


@given(st.lists(steps, max_size=60), patiences)
def test_nothing_is_hung_without_evidence(made: list[Step], patience: Patience) -> None:
    looks = looks_of(made)
    for number, verdict in enumerate(judged(looks, patience), start=1):
        seen = looks[:number]
        if verdict.level is Level.HUNG:
            evidence = (is_silent(seen, patience), is_stalled(seen, patience), is_mute(seen, patience))
            assert any(evidence) or has_failed_probes(seen)
        if verdict.level is Level.SUSPECT:
            assert not seen[-1].answered or seen[-1].now - ([0.0] + [s.now for s in seen])[-2] > LONGEST_GAP_S
        if verdict.send_probe:
            assert seen[-1].answered
            assert seen[-1].reading is not None
            assert seen[-1].reading.busy == 0


def is_silent(seen: list[Look], patience: Patience) -> bool:
    """At least 5 looks in a row unanswered, over the whole of the patience."""
    silent = 0
    for look in reversed(seen):
        if look.answered:
            break
        silent += 1
    before = seen[-silent - 1].now if len(seen) > silent else 0.0
    return silent >= 5 and seen[-1].now - before >= patience.unresponsive_s


def is_stalled(seen: list[Look], patience: Patience) -> bool:
    """Since the counter last moved or nothing ran, there has been time enough."""
    known = [(s.now, s.reading) for s in seen if s.reading is not None]
    stuck = [known[-1]]
    for now, reading in reversed(known[:-1]):
        if reading.busy == 0 or (reading.progress is not None and reading.progress != known[-1][1].progress):
            break
        stuck.append((now, reading))
    return 0 < patience.stall_s <= stuck[0][0] - stuck[-1][0] and bool(known[-1][1].busy)


def is_mute(seen: list[Look], patience: Patience) -> bool:
    """Nothing for very long that says whether it gets on, after it once did."""
    known = [(s.now, s.reading) for s in seen if s.reading is not None]
    told = [now for now, r in known if r.progress is not None or r.busy == 0]
    return bool(told) and 0 < UNKNOWN_FOR_STALLS * patience.stall_s <= seen[-1].now - told[-1]


def has_failed_probes(seen: list[Look]) -> bool:
    return [s.probe for s in seen if s.probe is not None][-2:] == [False, False]


@given(
    st.lists(st.tuples(st.floats(0.5, 4.5), st.integers(1, 9), st.booleans()), min_size=1, max_size=200),
    patiences,
)
def test_busy_engine_that_gets_on_is_never_hung(made: list[tuple[float, int, bool]], patience: Patience) -> None:
    now, looks, known_at = 0.0, [], 0.0
    for number, (pause, busy, late) in enumerate(made):
        now += pause
        told = not late or now - known_at >= patience.stall_s  # no longer than an engine may keep silent
        known_at = now if told else known_at
        looks.append(Look(now, answered=True, reading=Reading(busy, float(number)) if told else UNKNOWN))
    assert {v.level for v in judged(looks, patience)} == {Level.OK}


@given(st.lists(st.floats(0.1, 2.5), min_size=150, max_size=150), st.integers(0, 20), patiences)
def test_stopped_engine_is_suspect_and_hung_in_time(pauses: list[float], stopped: int, patience: Patience) -> None:
    now, looks = 0.0, []
    for number, pause in enumerate(pauses):
        now += pause
        looks.append(Look(now, answered=number < stopped))
    last_answer = looks[stopped - 1].now if stopped else 0.0
    for number, verdict in enumerate(judged(looks, patience)):
        silent_s, silent_looks = looks[number].now - last_answer, number - stopped + 1
        if silent_s >= SUSPECT_AFTER_S and silent_looks >= 2:
            assert verdict.level is not Level.OK
        if silent_s >= patience.unresponsive_s and silent_looks >= 5:
            assert verdict.level is Level.HUNG
