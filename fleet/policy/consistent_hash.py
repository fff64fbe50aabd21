"""Which replica a key belongs to, the same in every process, and moved by nothing but its own replica's going.

Each key orders all replicas by a hash of both (rendezvous); it belongs to the first that is there. So a replica that
goes away leaves its keys to the others, about evenly, and no other key moves; one that comes takes its own only.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b

from fleet.policy.replica import Replica

_MASK = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: multiplied by it, near numbers are far apart in the upper bits."""


@lru_cache(maxsize=8192)
def key_of(text: str) -> int:
    """64 bits that are the same in every process."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def spread(key: int) -> int:
    """A small number as a key: its bits reach everywhere."""
    key = (key ^ (key >> 31)) * 0xBF58476D1CE4E5B9 & _MASK
    return (key ^ (key >> 29)) * 0x94D049BB133111EB & _MASK


class Roster:
    """Replicas by id, and their seeds. A tuple that comes again is recognised, and costs nothing."""

    __slots__ = ("_of", "positions", "seeds")

    def __init__(self) -> None:
        self._of: Sequence[Replica] = ()
        self.positions: dict[str, int] = {}
        """In what was read last, by instance id."""
        self.seeds: list[int] = []

    def read(self, replicas: Sequence[Replica]) -> None:
        if replicas is self._of and type(replicas) is tuple:
            return
        self._of = replicas
        ids = [replica.instance_id for replica in replicas]
        self.positions = {id_: position for position, id_ in enumerate(ids)}
        self.seeds = [key_of(id_) for id_ in ids]

    def home(self, key: int) -> int:
        """The position of the replica that ``key`` belongs to."""
        return next(self.order(key))

    def order(self, key: int) -> Iterator[int]:
        """Positions: of its home, then of where it would belong if those before were gone."""
        ranks = [(seed ^ key) * _ODD & _MASK for seed in self.seeds]
        for _ in ranks:
            position = ranks.index(max(ranks))
            yield position
            ranks[position] = -1
