"""Any server with an OpenAI-compatible port, as a deployment describes it."""

import re
from collections.abc import Sequence

from fleet.engines.adapter import NO_CARD, Command, Install, Probe, Progress, Queue, Start, Unstartable
from fleet.engines.environment import visible_devices
from fleet.engines.spec import EngineSpec
from fleet.engines.speculation import draft_of
from fleet.inventory import AcceleratorKind
from fleet.placement.request import ModelCard
from fleet.sizing.facts import Format, ModelFacts
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import GpuClass, Workload
from fleet.specs import CustomEngine

PLACEHOLDERS = ("model_path", "model_name", "host", "port", "gpu_count", "max_model_len", "concurrency")
_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}")


def unknown_placeholders(command: Sequence[str]) -> dict[int, str]:
    """Index → what to do, of arguments with a placeholder that nothing is known to fill in with."""
    listed = ", ".join(f"{{{{{name}}}}}" for name in PLACEHOLDERS)
    found = {}
    for index, argument in enumerate(command):
        unknown = [name for name in _PLACEHOLDER.findall(argument) if name.strip() not in PLACEHOLDERS]
        if unknown:
            found[index] = f"{{{{{unknown[0]}}}}} is not known; use {listed}"
    return found


class Custom:
    """Of one deployment. Without its description it knows only what all custom engines share."""

    name = "custom"
    names_program = False
    follower_programs: tuple[str, ...] = ()
    followers_accept = False
    default_version = ""
    default_context = 4096
    default_concurrency = 4
    failure_patterns: Sequence[tuple[str, str]] = ()
    formats = frozenset(Format)

    def __init__(self, described: CustomEngine | None = None) -> None:
        self._described = described

    @property
    def program(self) -> str:
        return self._described.command[0] if self._described is not None else ""

    @property
    def health_path(self) -> str:
        return self._described.health_path if self._described is not None else "/health"

    @property
    def metrics_path(self) -> str:
        return (self._described.metrics_path or "") if self._described is not None else ""

    @property
    def stop_grace_s(self) -> float:
        return self._described.stop_grace_s if self._described is not None else 30.0

    @property
    def accelerators(self) -> frozenset[AcceleratorKind]:
        if self._described is None:
            return frozenset(AcceleratorKind)
        return frozenset(AcceleratorKind(vendor) for vendor in self._described.accelerators) or _CPU

    def install(self, version: str) -> Install | None:
        return None

    def refuse(self, args: Sequence[str]) -> dict[int, str]:
        return {}

    def conflicts(self, spec: EngineSpec) -> dict[int, str]:
        return {}

    def supports(self, facts: ModelFacts, version: str, gpu: GpuClass | None = None) -> str:
        if gpu is not None and gpu.kind not in self.accelerators:
            return f"spec.custom.accelerators does not list {gpu.kind}"
        return ""

    def workload(self, spec: EngineSpec, facts: ModelFacts | None = None) -> Workload:
        return Workload(
            context=spec.max_model_len,
            concurrency=spec.concurrency,
            kv_dtype=spec.kv_cache.dtype,
            kv_offload_bytes=spec.kv_cache.offload_bytes or 0,
            max_loras=len(spec.lora),
            draft=draft_of(spec.speculative),
        )

    def command(self, start: Start) -> Command:
        custom = start.spec.custom
        if custom is None:
            raise Unstartable("a custom engine needs spec.custom, which says how to run it")
        if start.is_gang:
            raise Unstartable("a custom engine runs on one host: set spec.placement.multi_host to false")
        values = self._values(start)
        argv = tuple(_filled(argument, values) for argument in (*custom.command, *start.spec.args))
        return Command(argv, visible_devices(start))

    def readiness(self, spec: EngineSpec, card: ModelCard = NO_CARD) -> Probe:
        path = spec.custom.ready_path if spec.custom is not None else "/v1/completions"
        return Probe(path, {"model": spec.served_name, **_body(path)})

    def measures(self, log: str) -> Measured:
        return Measured()

    def queue(self, metrics: str) -> Queue | None:
        return None

    def busy(self, metrics: str) -> int | None:
        return None

    def progress(self, metrics: str) -> Progress | None:
        return None

    def _values(self, start: Start) -> dict[str, str]:
        sizing, spec = start.sizing, start.spec
        context = sizing.context if sizing is not None else spec.max_model_len or self.default_context
        slots = sizing.sequences if sizing is not None else spec.concurrency or self.default_concurrency
        return {
            "model_path": start.model_path,
            "model_name": spec.served_name,
            "host": start.address,
            "port": str(start.port),
            "gpu_count": str(len(start.gpu_uuids)),
            "max_model_len": str(context),
            "concurrency": str(slots),
        }


_CPU = frozenset({AcceleratorKind.CPU})


def _filled(argument: str, values: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: values.get(found[1].strip(), found[0]), argument)


def _body(path: str) -> dict[str, object]:
    if path.endswith("/embeddings"):
        return {"input": "a"}
    if path.endswith("/rerank"):
        return {"query": "a", "documents": ["a"]}
    if path.endswith("/chat/completions"):
        return {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    return {"prompt": "a", "max_tokens": 1}
