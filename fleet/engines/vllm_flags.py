"""vLLM's command line: what is booked becomes flags, and a person's flags become what is booked. Pure."""

import json
import math
from collections.abc import Sequence

from fleet.engines.adapter import Start
from fleet.engines.flags import Derived, Dialect, Given
from fleet.engines.parsers import parsers_for
from fleet.engines.spec import EngineSpec
from fleet.engines.speculation import draft_of, vllm_config
from fleet.sizing.facts import ModelFacts, Task
from fleet.sizing.sizing import Sizing, Workload

OURS = {
    "": "arguments are flags; the model's path is spec.model",
    "--model": "set spec.model instead",
    "--served-model-name": "the model's name is the deployment's name; spec.lora names adapters",
    "--host": "engines listen where their host tells them to",
    "--port": "engines listen where their host tells them to",
    "--uds": "gateways reach engines by TCP",
    "--api-key": "keys are checked by the gateway: see `holdfast keys`",
    "--root-path": "health checks and gateways expect the usual paths",
    "--ssl-keyfile": "gateways reach engines by plain HTTP",
    "--ssl-certfile": "gateways reach engines by plain HTTP",
    "--ssl-ca-certs": "gateways reach engines by plain HTTP",
    "--config": "write its flags into spec.engine_args, so that placement sees them",
    "--disable-log-stats": "metrics are needed for draining",
    "--headless": "hosts of one replica are told their parts: see spec.placement.multi_host",
    "--nnodes": "hosts of one replica are told their parts: see spec.placement.multi_host",
    "--node-rank": "hosts of one replica are told their parts: see spec.placement.multi_host",
    "--master-addr": "hosts of one replica are told their parts: see spec.placement.multi_host",
    "--master-port": "hosts of one replica are told their parts: see spec.placement.multi_host",
}
DIALECT = Dialect(
    synonyms={
        "-tp": "--tensor-parallel-size",
        "-pp": "--pipeline-parallel-size",
        "-dp": "--data-parallel-size",
        "-q": "--quantization",
        "-sc": "--speculative-config",
        "-n": "--nnodes",
        "-r": "--node-rank",
    },
    underscores=True,
    abbreviations=True,
)
MERGED = frozenset({"--lora-modules", "--kv-transfer-config"})
"""Given twice, both count."""
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_UNKNOWN_RANK = 64
"""Covers nearly all published adapters."""
_WHOLE_CARD = 0.8
"""From this share of a card on, no second engine of any size fits beside."""
_SPECULATION = ("--spec-method", "--spec-model", "--spec-tokens")
_KV_SIZES = ("--kv-cache-memory-bytes", "--num-gpu-blocks-override")


def derived(start: Start, given: Given) -> list[Derived]:
    spec, card = start.spec, start.card
    flags = [*_parallel(start, given), *_memory(start)]
    flags += _limits(start.sizing) if start.sizing is not None else _asked(spec)
    if spec.kv_cache.dtype != "auto":
        flags.append(Derived("--kv-cache-dtype", spec.kv_cache.dtype))
    if spec.kv_cache.offload_bytes:
        gib = f"{spec.kv_cache.offload_bytes / 2**30:.3f}"
        flags += [Derived("--kv-offloading-size", gib), Derived("--kv-offloading-backend", "native")]
    if card.task in (Task.EMBED, Task.RERANK):
        flags.append(Derived("--runner", "pooling"))
    if spec.lora:
        rank = lora_rank(start.lora_ranks)
        flags += [Derived("--enable-lora"), Derived("--max-loras", str(len(spec.lora)))]
        flags.append(Derived("--max-lora-rank", str(rank)))
    if spec.speculative is not None:
        config = json.dumps(vllm_config(spec.speculative), separators=(",", ":"))
        flags.append(Derived("--speculative-config", config, unless=_SPECULATION))
    tool, reasoning = parsers_for("vllm", card, spec.model_path)
    if tool:
        flags += [Derived("--enable-auto-tool-choice", unless=("--no-enable-auto-tool-choice",))]
        flags += [Derived("--tool-call-parser", tool, unless=("--no-enable-auto-tool-choice",))]
    return [*flags, Derived("--reasoning-parser", reasoning)] if reasoning else flags


def merged(args: Sequence[str], start: Start) -> list[str]:
    """A person's arguments as they are; only what the engine would keep the last of is put together."""
    adapters = [json.dumps({"name": lora.name, "path": lora.path}, separators=(",", ":")) for lora in start.spec.lora]
    given = DIALECT.read(args)
    modules = [value for flag in given.flags if flag.name == "--lora-modules" for value in flag.values]
    transfers = [value for flag in given.flags if flag.name == "--kv-transfer-config" for value in flag.values]
    left = _without(args, given, {"--lora-modules"} | ({"--kv-transfer-config"} if len(transfers) > 1 else set()))
    if len(transfers) > 1:
        left += ["--kv-transfer-config", _multi_connector(transfers)]
    return [*left, "--lora-modules", *adapters, *modules] if adapters or modules else left


def lora_rank(ranks: Sequence[int]) -> int:
    """The smallest that vLLM allows and every adapter fits in."""
    needed = max((rank or _UNKNOWN_RANK for rank in ranks), default=_UNKNOWN_RANK)
    return next((rank for rank in _LORA_RANKS if rank >= needed), needed)


def workload(spec: EngineSpec, facts: ModelFacts | None) -> Workload:
    given = DIALECT.read(spec.args)
    offload = _gib(given.text("--kv-offloading-size")) or spec.kv_cache.offload_bytes or 0
    return Workload(
        context=given.integer("--max-model-len") or spec.max_model_len,
        concurrency=spec.concurrency,
        sequences=given.integer("--max-num-seqs"),
        batched_tokens=given.integer("--max-num-batched-tokens"),
        kv_dtype=given.text("--kv-cache-dtype") or spec.kv_cache.dtype,
        dtype="float32" if given.text("--dtype") in ("float", "float32") else "auto",
        eager=given.switch("--enforce-eager"),
        text_only=given.switch("--language-model-only"),
        prefix_caching=given.switch("--enable-prefix-caching", facts is None or facts.task is Task.GENERATE),
        kv_offload_bytes=offload,
        max_loras=given.integer("--max-loras") or len(spec.lora),
        draft=draft_of(spec.speculative),
        utilization=given.share("--gpu-memory-utilization"),
    )


def fields(spec: EngineSpec) -> dict[str, tuple[str, object]]:
    cache = spec.kv_cache
    return {
        "--max-model-len": ("spec.max_model_len", spec.max_model_len),
        "--max-num-seqs": ("spec.concurrency", spec.concurrency),
        "--kv-cache-dtype": ("spec.kv_cache.dtype", cache.dtype if cache.dtype != "auto" else None),
        "--speculative-config": ("spec.speculative", spec.speculative and spec.speculative.method),
        "--gpu-memory-utilization": ("spec.resources.memory_bytes", spec.memory_bytes),
    }


def _parallel(start: Start, given: Given) -> list[Derived]:
    """As placed; a person who divides the cards in another way names one of the two, and the other follows."""
    shape = start.sizing.shape if start.sizing is not None else None
    cards = shape.gpus if shape is not None else _cards(start)
    pipeline = given.integer("--pipeline-parallel-size") or 1
    tensor = given.integer("--tensor-parallel-size") or (shape.tensor_parallel if shape is not None else 0)
    if given.has("--pipeline-parallel-size", "--tensor-parallel-size") or not tensor:
        tensor = given.integer("--tensor-parallel-size") or max(1, cards // pipeline)
    wanted = {"--tensor-parallel-size": tensor, "--pipeline-parallel-size": max(1, cards // tensor)}
    return [Derived(name, str(value)) for name, value in wanted.items() if value > 1]


def _cards(start: Start) -> int:
    return sum(len(member.gpu_uuids) for member in start.members) or len(start.gpu_uuids)


def _memory(start: Start) -> list[Derived]:
    """A share of the card where one engine has (nearly) all of it: vLLM then measures the rest, and an error of ours
    costs KV cache, not the start. Smaller ones may have neighbours, whose comings and goings would spoil what vLLM
    measures: they are told the bytes of their KV cache, and the share is only what must be free at the start."""
    sizing = start.sizing
    if sizing is None:
        return _named_bytes(start)
    share = [] if sizing.utilization is None else [_share(sizing.utilization)]
    if sizing.utilization is not None and sizing.utilization >= _WHOLE_CARD:
        return share
    if not sizing.kv_bytes:
        return share
    return [*share, Derived("--kv-cache-memory-bytes", str(sizing.kv_bytes), ("--gpu-memory-utilization", *_KV_SIZES))]


def _named_bytes(start: Start) -> list[Derived]:
    if not (start.on_gpu and start.booked_bytes and start.card_bytes):
        return []
    return [_share(min(0.95, math.floor(1000 * start.booked_bytes / start.card_bytes) / 1000))]


def _share(value: float) -> Derived:
    return Derived("--gpu-memory-utilization", f"{value:.6g}")


def _limits(sizing: Sizing) -> list[Derived]:
    wanted = {
        "--max-model-len": sizing.context,
        "--max-num-seqs": sizing.sequences,
        "--max-num-batched-tokens": sizing.batched_tokens,
    }
    return [Derived(name, str(value)) for name, value in wanted.items() if value]


def _asked(spec: EngineSpec) -> list[Derived]:
    """Nothing is known of the model: as long as fits, unless somebody said how long."""
    context = Derived("--max-model-len", str(spec.max_model_len or -1))
    return [context, *([Derived("--max-num-seqs", str(spec.concurrency))] if spec.concurrency else [])]


def _without(args: Sequence[str], given: Given, names: set[str]) -> list[str]:
    """``args`` less those flags and their values."""
    starts = sorted(flag.index for flag in given.flags)
    ends = dict(zip(starts, [*starts[1:], len(args)], strict=False))  # no flags: no ends
    gone = {i for f in given.flags if f.name in names for i in range(f.index, ends[f.index])}
    return [arg for i, arg in enumerate(args) if i not in gone]


def _multi_connector(configs: Sequence[str]) -> str:
    head = '{"kv_connector":"MultiConnector","kv_role":"kv_both","kv_connector_extra_config":{"connectors":['
    return head + ",".join(configs) + "]}}"


def _gib(text: str | None) -> int:
    try:
        return int(float(text or 0) * 2**30)
    except (ValueError, OverflowError):
        return 0
