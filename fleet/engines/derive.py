"""From what a person asks for to what an engine is told. Pure."""

from fleet.engines.spec import EngineSpec
from fleet.rollouts import Template


def engine_spec(name: str, template: Template) -> EngineSpec:
    """``name``: of the deployment, by which its engines know the model."""
    spec = template.spec
    return EngineSpec(
        engine=template.engine,
        engine_version=template.engine_version,
        model_path=spec.model.path or "",
        served_name=name,
        args=tuple(spec.engine_args),
        env_sealed=spec.env,
        max_model_len=spec.max_model_len,
        concurrency=spec.concurrency,
        cpu_threads=spec.resources.cpu_threads,
        memory_bytes=spec.resources.memory_bytes,
        start_timeout_s=spec.health.start_timeout_s,
        unresponsive_timeout_s=spec.health.unresponsive_timeout_s,
        stall_timeout_s=spec.health.stall_timeout_s,
        idle_probe_s=spec.health.idle_probe_s,
        runtime=spec.runtime,
        container=spec.container,
        ram_bytes=spec.resources.ram_bytes,
        placement=spec.placement,
        kv_cache=spec.kv_cache,
        speculative=spec.speculative,
        lora=tuple(spec.lora),
        custom=spec.custom,
    )
