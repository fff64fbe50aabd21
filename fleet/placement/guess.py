"""What a replica needs where a person says so, or all that is known of its model is the size of its file. Pure."""

from fleet.engines.catalog import resolve
from fleet.engines.spec import EngineSpec
from fleet.placement.needs import Needs
from fleet.sizing.estimate import replica_memory


def guessed(spec: EngineSpec, file_bytes: int) -> Needs:
    """The same on cards of any class, divided among those that are asked for."""
    gpus = spec.placement.gpus_per_replica
    return Needs.constant(_bytes(spec, file_bytes), gpus, spec.ram_bytes or 0)


def _bytes(spec: EngineSpec, file_bytes: int) -> int:
    if spec.memory_bytes is not None:
        return spec.memory_bytes
    adapter = resolve(spec.engine)
    whole = replica_memory(
        file_bytes, spec.max_model_len or adapter.default_context, spec.concurrency or adapter.default_concurrency
    )
    return -(-whole // max(1, spec.placement.gpus_per_replica or 1))
