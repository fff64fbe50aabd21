"""How much of a GPU may be claimed."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.placement.room import gpu_room

sizes = st.integers(0, 1 << 40)


@given(sizes, sizes, sizes)
def test_never_more_than_what_nobody_else_has(memory: int, foreign: int, reserved: int) -> None:
    room = gpu_room(memory, foreign, reserved)
    assert 0 <= room <= memory
    assert room == 0 or (room + foreign <= memory and room + reserved <= memory)


@given(sizes, sizes, sizes, sizes)
def test_more_that_is_taken_never_makes_more_room(memory: int, foreign: int, reserved: int, more: int) -> None:
    room = gpu_room(memory, foreign, reserved)
    assert gpu_room(memory, foreign + more, reserved) <= room
    assert gpu_room(memory, foreign, reserved + more) <= room


def test_what_others_use_counts_against_what_is_reserved_for_them() -> None:
    assert gpu_room(100, 10, 30) == 70
    assert gpu_room(100, 30, 10) == 70
    assert gpu_room(100, 0, 0) == 100
    assert gpu_room(100, 200, 0) == 0
