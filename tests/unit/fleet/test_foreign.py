"""How much of a card others use, as placement hears of it."""

from hypothesis import example, given
from hypothesis import strategies as st

from fleet.placement.room import gpu_room
from fleet.policy.foreign import settled, slack

GiB = 1 << 30
memory = st.integers(0, 1 << 45)


@st.composite
def cards(draw: st.DrawFn) -> tuple[int, int, int]:
    """(memory, noted, seen) in bytes; what is noted was settled before."""
    whole = draw(memory)
    noted = settled(0, draw(st.integers(0, 2 * whole + 1)), whole)
    return whole, noted, draw(st.integers(0, 2 * whole + 1))


@given(cards())
def test_what_is_noted_is_never_far_from_what_is_there_nor_more_than_the_card(card: tuple[int, int, int]) -> None:
    whole, noted, seen = card
    after = settled(noted, seen, whole)
    assert 0 <= after <= whole
    assert abs(after - min(seen, whole)) <= slack(whole)


@given(cards())
def test_same_report_again_changes_nothing(card: tuple[int, int, int]) -> None:
    whole, noted, seen = card
    after = settled(noted, seen, whole)
    assert settled(after, seen, whole) == after


@given(cards(), st.lists(st.floats(-0.005, 0.005), min_size=1, max_size=20))
def test_noise_of_a_percent_moves_it_at_most_once(card: tuple[int, int, int], noise: list[float]) -> None:
    whole, noted, seen = card
    after, moves = noted, 0
    for share in noise:
        before, after = after, settled(after, max(0, int(seen + share * whole)), whole)
        moves += before != after
    assert moves <= 1


@given(memory, st.integers(0, 1 << 45))
def test_memory_that_was_given_back_is_free_again(whole: int, seen: int) -> None:
    assert settled(settled(0, seen, whole), 0, whole) == 0


@given(memory, memory, memory, memory)
@example(24 * GiB, 23 * GiB, 0, 0)
def test_more_foreign_memory_never_makes_more_room(whole: int, foreign: int, more: int, reserved: int) -> None:
    room = gpu_room(whole, foreign, reserved)
    assert 0 <= gpu_room(whole, foreign + more, reserved) <= room <= max(0, whole - foreign)


def test_little_is_nothing_and_much_is_what_it_is() -> None:
    assert settled(0, 200 << 20, 24 * GiB) == 0
    assert settled(0, 23 * GiB, 24 * GiB) == 23 * GiB
    assert settled(23 * GiB, 23 * GiB + (100 << 20), 24 * GiB) == 23 * GiB
    assert settled(23 * GiB, 20 * GiB, 24 * GiB) == 20 * GiB


def test_card_that_became_smaller_has_no_more_foreign_memory_than_it_is_large() -> None:
    assert settled(80 * GiB, 80 * GiB, 40 * GiB) == 40 * GiB
