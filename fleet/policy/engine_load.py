"""What the proxy of a host says of an engine's load with each answer. Pure."""

from fleet.policy.replica import EngineLoad

_LONGEST = 32
"""Bytes."""


def parse(value: bytes, now: float, ours: int = 0) -> EngineLoad | None:
    """From ``<in flight>;<waiting>;<KV cache in use, permille>``, the last two together optional; None: it is none.

    ``now`` becomes ``EngineLoad.at``; ``ours``: how many are in it of who hears this.
    """
    parts = value.split(b";") if len(value) <= _LONGEST else []
    if len(parts) not in (1, 3) or not all(map(bytes.isdigit, parts)):
        return None
    if len(parts) == 1:
        return EngineLoad(now, int(parts[0]), ours=ours)
    return EngineLoad(now, int(parts[0]), int(parts[1]), min(int(parts[2]), 1000) / 1000, ours)
