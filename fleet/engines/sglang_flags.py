"""SGLang's command line: what is booked becomes flags, and a person's flags become what is booked. Pure."""

from fleet.engines.adapter import Start
from fleet.engines.environment import me, rendezvous
from fleet.engines.flags import Derived, Dialect
from fleet.engines.parsers import parsers_for
from fleet.engines.spec import EngineSpec
from fleet.engines.speculation import draft_of, sglang_flags
from fleet.engines.vllm_flags import lora_rank
from fleet.sizing.facts import Task
from fleet.sizing.sizing import Sizing, Workload

_PARTS = "hosts of one replica are told their parts: see spec.placement.multi_host"
OURS = {
    "": "arguments are flags; the model's path is spec.model",
    "--model-path": "set spec.model instead",
    "--served-model-name": "the model's name is the deployment's name",
    "--host": "engines listen where their host tells them to",
    "--port": "engines listen where their host tells them to",
    "--api-key": "keys are checked by the gateway: see `holdfast keys`",
    "--admin-api-key": "keys are checked by the gateway: see `holdfast keys`",
    "--config": "write its flags into spec.engine_args, so that placement sees them",
    "--ssl-keyfile": "gateways reach engines by plain HTTP",
    "--ssl-certfile": "gateways reach engines by plain HTTP",
    "--nnodes": _PARTS,
    "--node-rank": _PARTS,
    "--dist-init-addr": _PARTS,
}
DIALECT = Dialect(
    synonyms={
        "--model": "--model-path",
        "--tp": "--tp-size",
        "--tensor-parallel-size": "--tp-size",
        "--pp": "--pp-size",
        "--pipeline-parallel-size": "--pp-size",
        "--nccl-init-addr": "--dist-init-addr",
        "--speculative-draft-model": "--speculative-draft-model-path",
    },
    underscores=True,
    abbreviations=True,
)


def derived(start: Start) -> list[Derived]:
    spec, card = start.spec, start.card
    flags = [Derived("--enable-metrics")]
    flags += _sized(start.sizing) if start.sizing is not None else _asked(spec, start)
    if spec.kv_cache.dtype != "auto":
        flags.append(Derived("--kv-cache-dtype", spec.kv_cache.dtype))
    if spec.kv_cache.offload_bytes:
        ranks = max(1, len(start.gpu_uuids))
        each = max(1, spec.kv_cache.offload_bytes // ranks // 10**9)
        flags += [Derived("--enable-hierarchical-cache"), Derived("--hicache-size", str(each), ("--hicache-ratio",))]
    if card.task in (Task.EMBED, Task.RERANK):
        flags.append(Derived("--is-embedding"))
    if spec.lora:
        flags += [Derived("--enable-lora"), Derived("--max-loras-per-batch", str(len(spec.lora)))]
        flags += [Derived("--max-lora-rank", str(lora_rank(start.lora_ranks)))]
    if spec.speculative is not None:
        unless = ("--speculative-algorithm",)
        flags += [Derived(name, value, unless) for name, value in sglang_flags(spec.speculative).items()]
    tool, reasoning = parsers_for("sglang", card, spec.model_path)
    flags += [Derived("--tool-call-parser", tool)] if tool else []
    return [*flags, Derived("--reasoning-parser", reasoning)] if reasoning else flags


def workload(spec: EngineSpec) -> Workload:
    given = DIALECT.read(spec.args)
    return Workload(
        context=given.integer("--context-length") or spec.max_model_len,
        concurrency=spec.concurrency,
        sequences=given.integer("--max-running-requests"),
        batched_tokens=given.integer("--chunked-prefill-size"),
        kv_dtype=given.text("--kv-cache-dtype") or spec.kv_cache.dtype,
        dtype="float32" if given.text("--dtype") in ("float", "float32") else "auto",
        eager=given.has("--disable-cuda-graph"),
        prefix_caching=not given.has("--disable-radix-cache"),
        kv_offload_bytes=(given.integer("--hicache-size") or 0) * 10**9 or spec.kv_cache.offload_bytes or 0,
        max_loras=given.integer("--max-loras-per-batch") or len(spec.lora),
        draft=draft_of(spec.speculative),
        utilization=given.share("--mem-fraction-static"),
    )


def fields(spec: EngineSpec) -> dict[str, tuple[str, object]]:
    dtype = spec.kv_cache.dtype if spec.kv_cache.dtype != "auto" else None
    return {
        "--context-length": ("spec.max_model_len", spec.max_model_len),
        "--max-running-requests": ("spec.concurrency", spec.concurrency),
        "--kv-cache-dtype": ("spec.kv_cache.dtype", dtype),
        "--speculative-algorithm": ("spec.speculative", spec.speculative and spec.speculative.method),
        "--mem-fraction-static": ("spec.resources.memory_bytes", spec.memory_bytes),
    }


def _sized(sizing: Sizing) -> list[Derived]:
    share = f"{sizing.utilization:.6g}" if sizing.utilization is not None else ""
    wanted = {
        "--tp-size": sizing.shape.tensor_parallel if sizing.shape.tensor_parallel > 1 else 0,
        "--pp-size": sizing.shape.pipeline_parallel if sizing.shape.pipeline_parallel > 1 else 0,
        "--mem-fraction-static": share,
        "--context-length": sizing.context,
        "--max-running-requests": sizing.sequences,
        "--chunked-prefill-size": sizing.batched_tokens,
    }
    return [Derived(name, str(value)) for name, value in wanted.items() if value]


def _asked(spec: EngineSpec, start: Start) -> list[Derived]:
    cards = sum(len(member.gpu_uuids) for member in start.members) or len(start.gpu_uuids)
    wanted = {
        "--tp-size": cards if cards > 1 else 0,
        "--context-length": spec.max_model_len,
        "--max-running-requests": spec.concurrency,
    }
    return [Derived(name, str(value)) for name, value in wanted.items() if value]


def part(start: Start) -> tuple[str, ...]:
    """Of a gang, and the adapters: what no person's flag replaces."""
    loras = tuple(f"{lora.name}={lora.path}" for lora in start.spec.lora)
    flags = ("--lora-paths", *loras) if loras else ()
    if not start.is_gang:
        return flags
    address, port = rendezvous(start)
    me(start)
    return (
        *flags,
        "--nnodes",
        str(len(start.members)),
        "--node-rank",
        str(start.rank),
        "--dist-init-addr",
        f"{address}:{port}",
    )
