"""SGLang: safetensors models, on GPUs."""

from collections.abc import Sequence

from fleet.engines import sglang_flags as flags
from fleet.engines import sglang_log
from fleet.engines.adapter import NO_CARD, Command, Install, Probe, Progress, Queue, Start
from fleet.engines.environment import me, of_gang, visible_devices
from fleet.engines.flags import contradictions, derived_args, repeated
from fleet.engines.limits import unsupported
from fleet.engines.requests import one_token
from fleet.engines.spec import EngineSpec
from fleet.inventory import AcceleratorKind
from fleet.placement.request import ModelCard
from fleet.sizing.facts import Format, ModelFacts, Task
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import GpuClass, Workload


class SGLang:
    name = "sglang"
    program = "sglang"
    names_program = True
    follower_programs: tuple[str, ...] = ()
    followers_accept = True
    default_version = "0.5.23"
    default_context = 8192
    default_concurrency = 64
    health_path = "/health"
    metrics_path = "/metrics"
    stop_grace_s = 30.0
    """On SIGTERM it answers what it has without a limit, as long as only its first process gets the signal."""
    failure_patterns: Sequence[tuple[str, str]] = sglang_log.FAILURES
    formats = frozenset({Format.SAFETENSORS, Format.PYTORCH})
    accelerators = frozenset(AcceleratorKind) - {AcceleratorKind.CPU, AcceleratorKind.APPLE, AcceleratorKind.CAMBRICON}

    def install(self, version: str) -> Install:
        return Install(f"sglang=={version}", "bin/sglang", dependencies=True)

    def refuse(self, args: Sequence[str]) -> dict[int, str]:
        return flags.DIALECT.refused(args, flags.OURS)

    def conflicts(self, spec: EngineSpec) -> dict[int, str]:
        given = flags.DIALECT.read(spec.args)
        return repeated(given) | contradictions(given, flags.fields(spec))

    def supports(self, facts: ModelFacts, version: str, gpu: GpuClass | None = None) -> str:
        if gpu is not None and gpu.kind not in self.accelerators:
            return f"SGLang runs on GPUs only, not on {gpu.kind}"
        if facts.task is Task.TRANSCRIBE:
            return "SGLang is not used for transcription here: vLLM is"
        return unsupported(self.name, self.formats, facts, version, gpu)

    def workload(self, spec: EngineSpec, facts: ModelFacts | None = None) -> Workload:
        return flags.workload(spec)

    def command(self, start: Start) -> Command:
        given = flags.DIALECT.read(start.spec.args)
        argv = (
            *(str(start.binary), "serve", "--model-path", start.model_path),
            *("--served-model-name", start.spec.served_name, "--host", _address(start), "--port", str(start.port)),
            *derived_args(flags.derived(start), given),
            *start.spec.args,
            *flags.part(start),
        )
        # Its health check would otherwise make it generate a token, every second.
        env = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return Command(argv, {**env, **visible_devices(start), **of_gang(start)})

    def readiness(self, spec: EngineSpec, card: ModelCard = NO_CARD) -> Probe:
        asked = flags.DIALECT.read(spec.args).has("--is-embedding") and card.task == Task.GENERATE
        return one_token(Task.EMBED if asked else card.task, spec.served_name)

    def measures(self, log: str) -> Measured:
        return sglang_log.measures(log)

    def queue(self, metrics: str) -> Queue | None:
        return sglang_log.queue(metrics)

    def busy(self, metrics: str) -> int | None:
        found = self.queue(metrics)
        return found and found.running + found.waiting

    def progress(self, metrics: str) -> Progress | None:
        return sglang_log.progress(metrics)


def _address(start: Start) -> str:
    """Followers answer health checks once their part is loaded, and have nothing to answer but those."""
    return me(start).address if start.rank else start.address
