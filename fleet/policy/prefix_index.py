"""Which replica got which beginning of a prompt lately: a guess at what engines still have of it."""

from collections.abc import Mapping

HOLDERS = 4
"""Of one block, the last ones that got it."""
Holders = tuple[str, ...]


class PrefixIndex:
    """Bounded in memory, and forgetful: what was not met again for ``keep_s`` to twice that is gone.

    Two generations: what is used goes to the young one; when that is full or old, it becomes the old one, and
    what was the old one is dropped. So nothing has to be kept in order.
    """

    __slots__ = ("_born", "_keep_s", "_most", "_old", "_young")

    def __init__(self, most: int = 1 << 16, keep_s: float = 300.0) -> None:
        """``most``: blocks that are known at a time."""
        self._most = most // 2
        self._keep_s = keep_s
        self._born: float | None = None
        self._young: dict[int, Holders] = {}
        self._old: dict[int, Holders] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def find(self, prefix: tuple[int, ...], among: Mapping[str, int], now: float) -> tuple[int, list[str]]:
        """How many blocks somebody of ``among`` has, and who; 0: nobody has the first."""
        self._age(now)
        for blocks in range(self._known(prefix), 0, -1):
            block = prefix[blocks - 1]
            holders = self._young.get(block) or self._old.get(block) or ()
            there = [id_ for id_ in holders if id_ in among]
            if there:
                return blocks, there
        return 0, []

    def add(self, prefix: tuple[int, ...], instance_id: str, had: int) -> None:
        """``instance_id`` gets all of it; ``had``: blocks of it that somebody had, as ``find`` said."""
        young = self._young
        if not had:  # mostly a prompt that nobody has seen
            young.update(dict.fromkeys(prefix, (instance_id,)))
        elif instance_id in young.get(prefix[had - 1], ()):
            young.update(dict.fromkeys(prefix[had:], (instance_id,)))
        else:
            for block in prefix:
                holders = young.get(block) or self._old.get(block) or ()
                young[block] = (instance_id, *[id_ for id_ in holders if id_ != instance_id][: HOLDERS - 1])
        if len(young) > self._most:
            self._turn_over()

    def _known(self, prefix: tuple[int, ...]) -> int:
        """Who knows a block knows those before it, so that halving finds the last one."""
        low, high = 0, len(prefix)
        young, old = self._young, self._old
        while low < high:
            middle = (low + high + 1) >> 1
            if prefix[middle - 1] in young or prefix[middle - 1] in old:
                low = middle
            else:
                high = middle - 1
        return low

    def _age(self, now: float) -> None:
        if self._born is None:
            self._born = now
        elif now - self._born >= self._keep_s:
            unused = now - self._born >= 2 * self._keep_s
            self._turn_over()
            self._born = now
            if unused:
                self._old = {}

    def _turn_over(self) -> None:
        self._old, self._young = self._young, {}
