"""Lines of batches take turns: as many at once as there is room for, nobody is forgotten."""

import asyncio

import pytest

from activities.turns import Turns
from fleet.policy.spare import FIRST


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Lines:
    def __init__(self, turns: Turns, count: int, model: str = "m") -> None:
        self.begun: list[int] = []
        self.gates = [asyncio.Event() for _ in range(count)]
        self.tasks = [asyncio.create_task(self._one(turns, model, n)) for n in range(count)]

    async def _one(self, turns: Turns, model: str, n: int) -> None:
        async with turns.turn(model):
            self.begun.append(n)
            await self.gates[n].wait()

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_they_come_in_order_and_only_so_many_at_once() -> None:
    lines = Lines(Turns(), 10)
    await settle()
    assert lines.begun == list(range(int(FIRST)))
    lines.gates[1].set()
    await settle()
    assert lines.begun == list(range(int(FIRST) + 1))
    for gate in lines.gates:
        gate.set()
    await asyncio.wait_for(asyncio.gather(*lines.tasks), 5)
    assert lines.begun == list(range(10))


async def test_ends_at_the_same_moment_let_in_those_who_are_next() -> None:
    lines = Lines(Turns(), 12)
    await settle()
    for n in range(4):
        lines.gates[n].set()
    await settle()
    assert lines.begun == list(range(8))
    for n in range(4, 8):
        lines.gates[n].set()
    await settle()
    assert lines.begun == list(range(12)), "nobody has lost its place"
    await lines.end()


async def test_a_pause_that_begins_while_they_wait_ends_for_all_of_them() -> None:
    turns = Turns()
    lines = Lines(turns, 12)
    await settle()
    turns.refused("m", 0.05)
    for gate in lines.gates:
        gate.set()
    await settle()
    assert lines.begun == list(range(4)), "no new one for now"
    await asyncio.wait_for(asyncio.gather(*lines.tasks), 5)
    assert lines.begun == list(range(12))


async def test_one_model_does_not_wait_for_another() -> None:
    turns = Turns()
    first, second = Lines(turns, 8), Lines(turns, 1, "other")
    await settle()
    assert second.begun == [0]
    await asyncio.gather(first.end(), second.end())


async def test_those_who_leave_the_queue_hold_nobody_up() -> None:
    lines = Lines(Turns(), 8)
    await settle()
    lines.gates[0].set()  # the next one is woken, and leaves before it begins
    await asyncio.sleep(0)
    for n in range(4, 7):
        lines.tasks[n].cancel()
    lines.gates[1].set()
    lines.gates[2].set()
    lines.gates[3].set()
    await settle()
    assert 7 in lines.begun
    await lines.end()


async def test_after_a_refusal_they_wait_as_long_as_it_says() -> None:
    now = 100.0
    turns = Turns(clock=lambda: now)
    turns.refused("m", 0.05)
    lines = Lines(turns, 3)
    await settle()
    assert lines.begun == []
    now = 101.0
    async with asyncio.timeout(5):
        while len(lines.begun) < 2:
            await asyncio.sleep(0.01)
    assert turns.limit("m") == 2
    await lines.end()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_turn_is_given_back_however_it_ends(cancelled: bool) -> None:
    turns = Turns()
    for _ in range(20):
        lines = Lines(turns, 1)
        await settle()
        assert lines.begun == [0]
        if cancelled:
            await lines.end()
        else:
            lines.gates[0].set()
            await lines.tasks[0]
