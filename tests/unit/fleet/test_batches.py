"""What is the next step of a batch, and how it ends."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from fleet.batches import (
    WINDOWS_AT_ONCE,
    AssembledBatch,
    Batch,
    BatchStatus,
    CheckedBatch,
    EndReason,
    Step,
    WindowDone,
    assembled,
    begun,
    checked,
    describe,
    ending,
    finalizing,
    left,
    next_step,
    next_windows,
    paused,
    rate,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NEW = Batch(batch_id="b", endpoint="/v1/embeddings", created_at=NOW, expires_at=NOW + timedelta(hours=24))


def going(windows: int = 3) -> Batch:
    return checked(NEW, CheckedBatch(total=10 * windows, windows=windows, model="m"), NOW)


def done(window: int, **more: object) -> WindowDone:
    return WindowDone.model_validate({"window": window, "completed": 10} | more)


def test_it_begins_with_a_look_at_its_input() -> None:
    assert next_step(NEW, NOW) is Step.VALIDATE
    assert next_step(paused(NEW, True), NOW) is Step.WAIT


def test_cancelled_before_it_began_it_asks_nothing() -> None:
    b = ending(NEW, EndReason.CANCELLED, NOW)
    assert (b.status, next_step(b, NOW)) == (BatchStatus.CANCELLING, Step.FINALIZE)
    late = checked(b, CheckedBatch(total=1, windows=1), NOW)
    assert (late.status, next_step(late, NOW)) == (BatchStatus.CANCELLING, Step.FINALIZE)


def test_an_empty_window_is_through_and_a_full_one_is_gone_on_with() -> None:
    b = begun(begun(going(2), 0), 1)
    assert next_step(b, NOW) is Step.WAIT
    b = left(b, done(0, completed=9, failed=1), NOW)
    assert (b.completed, b.failed, b.through) == (9, 1, False)
    b = left(b, done(1, completed=3, left=7), NOW)
    assert (b.completed, next_windows(b)) == (9, (1,))
    b = left(begun(b, 1), done(1), NOW)
    assert (b.completed, b.through, next_step(b, NOW)) == (19, True, Step.FINALIZE)


def test_new_windows_go_first_so_that_one_that_is_stuck_holds_nobody_up() -> None:
    b = left(begun(going(3), 0), done(0, left=1), NOW)
    assert next_windows(b) == (1, 2)
    assert next_windows(begun(b, 1)) == (2,)


def test_the_first_reason_counts() -> None:
    b = ending(going(), EndReason.EXPIRED, NOW, "late")
    assert ending(b, EndReason.CANCELLED, NOW) is b
    assert ending(finalizing(going(0), NOW), EndReason.CANCELLED, NOW).end_reason is EndReason.NONE


def test_out_of_time_it_calls_back_what_is_under_way_and_says_that_it_expired() -> None:
    b, late = begun(going(), 0), NOW + timedelta(hours=24)
    assert next_step(b, late) is Step.CALL_BACK
    back = left(b, done(0, left=10, completed=0), late)
    assert next_step(back, late) is Step.FINALIZE
    ended = assembled(finalizing(back, late), AssembledBatch(failed=30, error_file_id="e"), late)
    assert (ended.status, ended.failed, ended.error_file_id) == (BatchStatus.EXPIRED, 30, "e")


def test_what_was_answered_just_in_time_is_completed() -> None:
    b = left(begun(going(1), 0), done(0), NOW)
    late = NOW + timedelta(hours=25)
    assert assembled(finalizing(b, late), AssembledBatch(completed=10), late).status is BatchStatus.COMPLETED


def test_a_cancelled_one_stays_cancelling_until_its_files_are_there() -> None:
    b = ending(going(), EndReason.CANCELLED, NOW)
    assert finalizing(b, NOW).status is BatchStatus.CANCELLING
    assert assembled(finalizing(b, NOW), AssembledBatch(), NOW).status is BatchStatus.CANCELLED


@given(st.data())
def test_however_windows_come_back_each_line_is_counted_once(data: st.DataObject) -> None:
    windows = data.draw(st.integers(0, 8))
    b, answered = going(windows), dict.fromkeys(range(windows), 0)
    for _ in range(200):
        step = next_step(b, NOW)
        if step is Step.FINALIZE:
            break
        if step is Step.BEGIN:
            for window in next_windows(b):
                b = begun(b, window)
            assert len(b.under_way) <= WINDOWS_AT_ONCE
        if data.draw(st.booleans()):
            b = paused(b, not b.paused)
        if b.under_way:
            window = data.draw(st.sampled_from(b.under_way))
            answered[window] = data.draw(st.integers(answered[window], 10))
            b = left(b, done(window, completed=answered[window], left=10 - answered[window]), NOW)
        if not any(n < 10 for n in answered.values()) and not b.again:
            b = paused(b, False)
    if b.through:
        assert (b.completed, set(answered.values()) - {10}) == (10 * windows, set())
    assert b.completed == sum(
        n for w, n in answered.items() if w < b.next_window and w not in b.again and w not in b.under_way
    )


def test_a_person_reads_how_far_it_is() -> None:
    b = left(begun(begun(going(), 0), 1), done(0, last_error="429 overloaded"), NOW)
    text = describe(b, NOW + timedelta(seconds=20))
    assert "10 of 30 lines answered" in text
    assert "0.5 lines/s" in text
    assert "window 2 of 3" in text
    assert "429 overloaded" in text
    assert rate(NEW, NOW) == 0
