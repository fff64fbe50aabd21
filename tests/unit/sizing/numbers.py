"""Cards and quantised variants of models, for tests that hold the memory model against known numbers."""

from fleet.inventory import AcceleratorKind
from fleet.sizing.cards import GIB, MIB
from fleet.sizing.facts import ModelFacts
from fleet.sizing.sizing import GpuClass
from tests.unit.sizing.checkpoints import facts_of


def card(name: str, mib: int, capability: str) -> GpuClass:
    return GpuClass(kind=AcceleratorKind.NVIDIA, name=name, memory_bytes=mib * MIB, compute_capability=capability)


RTX_4090 = card("NVIDIA GeForce RTX 4090", 24_564, "8.9")
L40S = card("NVIDIA L40S", 46_068, "8.9")
A100 = card("NVIDIA A100-SXM4-80GB", 81_920, "8.0")
H100 = card("NVIDIA H100 80GB HBM3", 81_559, "9.0")
H200 = card("NVIDIA H200", 143_771, "9.0")
CPUS = GpuClass(kind=AcceleratorKind.CPU, memory_bytes=64 * GIB)


def stored_in(repo: str, gib: float | None = None, *, context: int | None = None) -> ModelFacts:
    """The model with its text weights scaled to so many GiB, as if its tensors were stored in another format."""
    facts = facts_of(repo)
    if context is not None:
        facts = facts.model_copy(update={"context": context})
    if gib is None:
        return facts
    by = gib * GIB / sum(w.bytes for w in facts.weights if w.role not in ("mtp", "vision"))
    weights = tuple(w.model_copy(update={"bytes": int(w.bytes * by)}) for w in facts.weights)
    return facts.model_copy(update={"weights": weights, "quantization": None})
