"""Facts of a model from the headers of its GGUF file, or of all parts of it."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from fleet.sizing.facts import (
    Format,
    LayerKind,
    Layers,
    Mla,
    ModelFacts,
    ModelFile,
    Moe,
    Quantization,
    Role,
    Task,
    Weights,
)
from fleet.sizing.files import Files, ReadError, ReadProblem
from fleet.sizing.fingerprint import fingerprint_of
from fleet.sizing.gguf_header import GgufHeader, GgufTensor, read_header
from fleet.sizing.gguf_layers import ENCODERS, layers_of
from fleet.sizing.hf_layers import MOST_LAYERS
from fleet.sizing.json_fields import Fields, malformed

_PART = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)$", re.IGNORECASE)
_MOST_PARTS = 1000
_BLOCK = re.compile(r"^blk\.(\d{1,9})\.")
_RANKS = 4
"""Value of ``pooling_type`` for rerankers."""
_PLAIN = frozenset({"F32", "F16", "BF16"})


def read_gguf(files: Files, file: ModelFile) -> ModelFacts:
    """``file``: the first part, where there are several. Raises ReadError."""
    parts = _parts(files, file)
    headers = [read_header(files, part) for part in parts]
    first, tensors = headers[0], [t for h in headers for t in h.tensors]
    _check_parts(first, headers, file)
    arch = _architecture(first, file)
    own = {k.removeprefix(f"{arch}."): v for k, v in first.values.items() if k.startswith(f"{arch}.")}
    return _facts(arch, Fields(own, file.name), first, tensors, parts)


def _facts(
    arch: str, own: Fields, header: GgufHeader, tensors: Sequence[GgufTensor], parts: Sequence[ModelFile]
) -> ModelFacts:
    mtp = own.count("nextn_predict_layers")
    blocks = own.need("block_count")
    total = blocks - mtp if 0 <= mtp < blocks else blocks
    if blocks > MOST_LAYERS:
        raise malformed(parts[0].name, f"says that it has {blocks:,} layers")
    layers, notes = layers_of(arch, own, total)
    names = {t.name for t in tensors}
    return ModelFacts(
        format=Format.GGUF,
        architecture=arch,
        model_type=arch,
        task=_task(arch, own),
        fingerprint=fingerprint_of(own.values, [(t.name, t.dtype, t.shape) for t in tensors], parts),
        hidden=own.need("embedding_length"),
        layers_total=total,
        heads=own.count("attention.head_count"),
        vocab=header.lengths.get("tokenizer.ggml.tokens", 0) or own.count("vocab_size") or _rows(tensors),
        ffn=_dense_ffn(own, total),
        context=own.count("context_length", default=2048),
        tied_head="token_embd.weight" in names and "output.weight" not in names,
        soft_cap=own.number("final_logit_softcapping") > 0,
        dtype="F16",
        quantization=_quantization(tensors),
        layers=layers,
        weights=_weights(tensors, total),
        layer_bytes=_layer_bytes(tensors, blocks),
        moe=_moe(own),
        mla=_mla(own, layers),
        mtp_layers=mtp,
        file_bytes=sum(p.size for p in parts),
        largest_file_bytes=max(p.size for p in parts),
        files=tuple(parts),
        chat_template="tokenizer.chat_template" in header.values,
        notes=notes,
    )


# -- files --------------------------------------------------------------------------------------------------------


def _parts(files: Files, file: ModelFile) -> list[ModelFile]:
    named = _PART.match(file.name)
    if named is None:
        return [file]
    count = int(named["count"])
    if int(named["number"]) != 1:
        first = f"{named['stem']}-00001-of-{named['count']}{named['end']}"
        raise ReadError(ReadProblem.UNSUPPORTED, f"{file.name} is not the first part of its model", f"name {first}")
    if not 1 <= count <= _MOST_PARTS:
        raise malformed(file.name, f"is one of {count} parts")
    sizes = {f.name: f.size for f in files.list()}
    names = [f"{named['stem']}-{n:05}-of-{named['count']}{named['end']}" for n in range(1, count + 1)]
    missing = [n for n in names if n not in sizes]
    if missing:
        raise ReadError(
            ReadProblem.MISSING,
            f"{len(missing)} of {count} parts are missing in {files.where}: {missing[0]}",
            "fetch all parts into one folder",
        )
    return [ModelFile(name=n, size=sizes[n]) for n in names]


def _check_parts(first: GgufHeader, headers: Sequence[GgufHeader], file: ModelFile) -> None:
    count = first.values.get("split.count", 1)
    if isinstance(count, int) and count > 1 and count != len(headers):
        raise ReadError(
            ReadProblem.MISSING,
            f"{file.name} is one of {count} parts",
            "keep the names of the parts as they were made: …-00001-of-0000N.gguf",
        )
    names = [t.name for h in headers for t in h.tensors]
    said = first.values.get("split.tensors.count", len(names))
    if len(set(names)) != len(names) or (len(headers) > 1 and said != len(names)):
        raise malformed(file.name, f"and its parts hold {len(names):,} tensors where {str(said)[:20]} are said")


def _architecture(header: GgufHeader, file: ModelFile) -> str:
    kind, arch = header.values.get("general.type", "model"), header.values.get("general.architecture")
    if kind in ("adapter", "mmproj") or arch == "clip":
        what = "an adapter (LoRA)" if kind == "adapter" else "the projector for images of a model"
        raise ReadError(ReadProblem.UNSUPPORTED, f"{file.name} is {what}, not a model", "name the model's own file")
    if not isinstance(arch, str) or not arch:
        raise malformed(file.name, "does not say its architecture (general.architecture)")
    return arch


# -- tensors ------------------------------------------------------------------------------------------------------


def role_of(name: str, layers: int) -> Role:
    """``layers``: blocks after so many predict several tokens ahead."""
    block = _BLOCK.match(name)
    if block is None:
        return _role_outside(name)
    if int(block[1]) >= layers:
        return Role.MTP
    return _role_in_block(name[block.end() :].removesuffix(".weight").removesuffix(".bias"))


def _role_outside(name: str) -> Role:
    if name.startswith(("token_embd.", "per_layer_token_embd.")):
        return Role.EMBEDDING
    if name.startswith("output."):
        return Role.HEAD
    if name.startswith(("v.", "mm.", "a.")):
        return Role.VISION
    return Role.REPLICATED


def _role_in_block(part: str) -> Role:
    if "norm" in part or part in _REPLICATED_PARTS or part.startswith("indexer"):
        return Role.REPLICATED
    if part in ("attn_k", "attn_v"):
        return Role.KV_PROJECTION
    if part.endswith("_exps"):
        return Role.EXPERTS
    if part.startswith("ffn_"):
        return Role.MLP
    return Role.ATTENTION


_REPLICATED_PARTS = frozenset({"ffn_gate_inp", "ffn_gate_inp_shexp", "exp_probs_b", "attn_q_a", "attn_kv_a_mqa"})


def _weights(tensors: Iterable[GgufTensor], layers: int) -> tuple[Weights, ...]:
    sums: defaultdict[tuple[Role, str], list[int]] = defaultdict(lambda: [0, 0])
    for tensor in tensors:
        entry = sums[role_of(tensor.name, layers), tensor.dtype]
        entry[0] += tensor.elements
        entry[1] += tensor.bytes
    return tuple(Weights(role=r, dtype=d, elements=e, bytes=b) for (r, d), (e, b) in sorted(sums.items()))


def _layer_bytes(tensors: Iterable[GgufTensor], blocks: int) -> tuple[int, ...]:
    sizes = [0] * blocks
    for tensor in tensors:
        block = _BLOCK.match(tensor.name)
        if block is not None and int(block[1]) < blocks:
            sizes[int(block[1])] += tensor.bytes
    return tuple(sizes)


def _rows(tensors: Iterable[GgufTensor]) -> int:
    return next((t.shape[-1] for t in tensors if t.name == "token_embd.weight" and t.shape), 0)


def _quantization(tensors: Sequence[GgufTensor]) -> Quantization:
    quantised = [t for t in tensors if t.dtype not in _PLAIN] or tensors
    elements = sum(t.elements for t in quantised)
    bits = sum(t.bytes for t in quantised) * 8 / elements if elements else 16.0
    return Quantization(method="gguf", bits=round(bits, 4))


# -- dimensions ---------------------------------------------------------------------------------------------------


def _task(arch: str, own: Fields) -> Task:
    pooling = own.count("pooling_type")
    if pooling == _RANKS:
        return Task.RERANK
    return Task.EMBED if pooling or arch in ENCODERS else Task.GENERATE


def _moe(own: Fields) -> Moe | None:
    experts = own.count("expert_count")
    if experts < 2:
        return None
    width = own.count("expert_feed_forward_length", "feed_forward_length")
    return Moe(
        experts=experts,
        per_token=own.count("expert_used_count", default=1),
        expert_ffn=width,
        shared_ffn=own.count("expert_shared_feed_forward_length", default=own.count("expert_shared_count") * width),
    )


def _dense_ffn(own: Fields, total: int) -> int:
    width = own.count("feed_forward_length")
    if own.count("expert_count") < 2:
        return width
    return width if 0 < own.count("leading_dense_block_count") < total else 0


def _mla(own: Fields, layers: Sequence[Layers]) -> Mla | None:
    if all(group.kind is not LayerKind.MLA for group in layers):
        return None
    rope = own.count("rope.dimension_count")
    return Mla(
        q_lora_rank=own.count("attention.q_lora_rank"),
        kv_lora_rank=own.count("attention.kv_lora_rank"),
        nope_dim=max(0, own.count("attention.key_length_mla") - rope),
        rope_dim=rope,
        value_dim=own.count("attention.value_length_mla"),
    )
