"""What engines measured at their start against what was predicted. Pure."""

from fleet.sizing.cards import GIB, MIB
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import Sizing

_WORTH_TELLING = 64 * MIB
_TERMS = {
    "weights": "weights_bytes",
    "activation": "activation_bytes",
    "non_torch": "non_torch_bytes",
    "cuda_graphs": "graph_bytes",
    "compute": "compute_bytes",
    "kv_cache": "kv_bytes",
}


def differs(sizing: Sizing, measured: Measured) -> str:
    """For people: by how much each term was off, largest first; empty: by nothing worth telling."""
    off = [(name, sizing.terms.get(name, 0), _of(measured, field)) for name, field in _TERMS.items()]
    told = [(name, said, found) for name, said, found in off if found is not None and _matters(said, found)]
    told.sort(key=lambda term: -abs(term[2] - term[1]))
    return "; ".join(f"{name.replace('_', ' ')} {_gib(found)}, not {_gib(said)}" for name, said, found in told)


def _of(measured: Measured, field: str) -> int | None:
    value: int | None = getattr(measured, field)
    return value


def _matters(said: int, found: int) -> bool:
    return abs(found - said) > max(_WORTH_TELLING, said // 100)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
