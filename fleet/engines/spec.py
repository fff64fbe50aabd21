"""What an engine is told to do, independent of which engine it is."""

from fleet.model import Record
from fleet.specs import ContainerSpec, CustomEngine, KvCacheSpec, LoraSpec, PlacementSpec, SpeculativeSpec


class EngineSpec(Record):
    """One replica's engine, as derived from its deployment's revision. No secret in clear."""

    engine: str
    engine_version: str
    model_path: str
    served_name: str
    args: tuple[str, ...] = ()
    env_sealed: dict[str, str] = {}
    """Values sealed for the control plane (``fleet.access.sealing``)."""
    max_model_len: int | None = None
    concurrency: int | None = None
    cpu_threads: int | None = None
    memory_bytes: int | None = None
    start_timeout_s: int = 1800
    unresponsive_timeout_s: int = 15
    stall_timeout_s: int = 300
    """0: never."""
    idle_probe_s: int = 60
    """0: never."""
    runtime: str = "auto"
    container: ContainerSpec = ContainerSpec()
    ram_bytes: int | None = None
    """Of host RAM besides GPUs; None: what sizing says."""
    placement: PlacementSpec = PlacementSpec()
    kv_cache: KvCacheSpec = KvCacheSpec()
    speculative: SpeculativeSpec | None = None
    lora: tuple[LoraSpec, ...] = ()
    custom: CustomEngine | None = None
