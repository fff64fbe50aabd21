"""Facts of a model in Hugging Face's layout: small JSON files, and weights of which only the headers are read."""

import re
from collections import Counter
from collections.abc import Sequence

from fleet.sizing.facts import Format, LayerKind, ModelFacts, ModelFile, Weights
from fleet.sizing.files import Files, ReadError, ReadProblem, Span, read_one
from fleet.sizing.fingerprint import fingerprint_of
from fleet.sizing.hf_config import Documents, facts_of_config, says_tied
from fleet.sizing.json_fields import Fields, malformed, parse_object
from fleet.sizing.roles import is_embedding, is_head, mtp_layers, weights_by_role
from fleet.sizing.safetensors import Tensor, read_tensors

_INDEX = "model.safetensors.index.json"
_MOST_CONFIG = 8 << 20
_MOST_INDEX = 64 << 20
_MOST_TOKENIZER = 64 << 20
_CHAT_TEMPLATES = frozenset({"chat_template.jinja", "chat_template.json"})
_NOT_WEIGHTS = re.compile(
    r"^(consolidated|adapter_model|training_args|optimizer|scheduler|rng_state|scaler|random_states)"
)
_FLOATS = ("BF16", "F16", "F32")


def read_folder(files: Files, there: Sequence[ModelFile]) -> ModelFacts:
    """``there``: what ``files`` lists. Raises ReadError."""
    sizes = {f.name: f.size for f in there}
    docs = _documents(files, sizes)
    facts = facts_of_config(docs)
    weights = _safetensors(files, sizes)
    if not weights:
        return _without_headers(facts, docs, _pytorch(there, files.where))
    tensors = read_tensors(files, weights)
    return _with_tensors(facts, docs, weights, tensors)


def _with_tensors(
    facts: ModelFacts, docs: Documents, weights: Sequence[ModelFile], tensors: Sequence[Tensor]
) -> ModelFacts:
    said = says_tied(docs)
    tied = said if said is not None else not any(is_head(t.name) for t in tensors)
    last = max(facts.layers_total, facts.encoder_layers)
    by_role = weights_by_role(tensors, last, tied=tied)
    vocab = facts.vocab or max((t.shape[0] for t in tensors if is_embedding(t.name) and t.shape), default=0)
    return facts.model_copy(
        update={
            **_of_files(weights),
            "weights": by_role,
            "tied_head": tied,
            "vocab": vocab,
            "dtype": facts.dtype or _commonest_float(by_role),
            "mtp_layers": max(facts.mtp_layers, mtp_layers(tensors, last)),
            "fingerprint": fingerprint_of(docs.config.values, [(t.name, t.dtype, t.shape) for t in tensors], weights),
        }
    )


def _without_headers(facts: ModelFacts, docs: Documents, weights: Sequence[ModelFile]) -> ModelFacts:
    return facts.model_copy(
        update={
            **_of_files(weights),
            "format": Format.PYTORCH,
            "tied_head": says_tied(docs) or facts.layers[0].kind is LayerKind.ENCODER,
            "dtype": facts.dtype or "BF16",
            "fingerprint": fingerprint_of(docs.config.values, [], weights),
            "notes": (*facts.notes, "its weights are programs (.bin, .pt): only their size is known"),
        }
    )


def _of_files(weights: Sequence[ModelFile]) -> dict[str, object]:
    return {
        "files": tuple(weights),
        "file_bytes": sum(f.size for f in weights),
        "largest_file_bytes": max((f.size for f in weights), default=0),
    }


def _commonest_float(weights: Sequence[Weights]) -> str:
    counts = Counter({d: sum(w.bytes for w in weights if w.dtype == d) for d in _FLOATS})
    dtype, size = counts.most_common(1)[0]
    return dtype if size else "BF16"


# -- which files hold weights -------------------------------------------------------------------------------------


def _safetensors(files: Files, sizes: dict[str, int]) -> list[ModelFile]:
    if _INDEX in sizes:
        return _indexed(files, sizes)
    names = [n for n in sizes if n.endswith(".safetensors") and "/" not in n]
    chosen = [n for n in names if not _NOT_WEIGHTS.match(n)] or [n for n in names if n.startswith("consolidated")]
    return [ModelFile(name=n, size=sizes[n]) for n in sorted(chosen)]


def _indexed(files: Files, sizes: dict[str, int]) -> list[ModelFile]:
    """Those that the index names: others are left-overs, which engines pass over too."""
    table = parse_object(_whole(files, _INDEX, sizes[_INDEX], _MOST_INDEX), _INDEX).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(n, str) for n in table.values()):
        raise malformed(_INDEX, "does not say which file holds which tensor")
    names = sorted(set(table.values()))
    missing = [n for n in names if n not in sizes]
    if missing:
        raise ReadError(
            ReadProblem.MISSING,
            f"{len(missing)} of {len(names)} files with weights are missing in {files.where}: {missing[0]}",
            "fetch the model whole",
        )
    return [ModelFile(name=n, size=sizes[n]) for n in names]


def _pytorch(there: Sequence[ModelFile], where: str) -> list[ModelFile]:
    named = [f for f in there if "/" not in f.name and not _NOT_WEIGHTS.match(f.name)]
    for ending in ((".bin",), (".pt", ".pth")):
        found = [f for f in named if f.name.endswith(ending)]
        if found:
            return found
    raise ReadError(
        ReadProblem.MISSING,
        f"{where} has a config.json, but no weights",
        "fetch its .safetensors files too (with git-lfs, where it was cloned)",
    )


# -- small files --------------------------------------------------------------------------------------------------


def _documents(files: Files, sizes: dict[str, int]) -> Documents:
    def document(name: str) -> Fields:
        data = _whole(files, name, sizes[name], _MOST_CONFIG) if name in sizes else b"{}"
        return Fields(parse_object(data, name), name)

    return Documents(
        config=document("config.json"),
        quantization=document("hf_quant_config.json"),
        preprocessor=document("preprocessor_config.json"),
        sentence=document("sentence_bert_config.json"),
        pools="modules.json" in sizes,
        chat_template=not _CHAT_TEMPLATES.isdisjoint(sizes) or _template_of_tokenizer(files, sizes),
    )


def _template_of_tokenizer(files: Files, sizes: dict[str, int]) -> bool:
    name = "tokenizer_config.json"
    if name not in sizes:
        return False
    return bool(parse_object(_whole(files, name, sizes[name], _MOST_TOKENIZER), name).get("chat_template"))


def _whole(files: Files, name: str, size: int, most: int) -> bytes:
    if size > most:
        raise ReadError(
            ReadProblem.TOO_LARGE, f"{name} has {size:,} bytes; at most {most:,} are read", "is it the right file?"
        )
    return read_one(files, Span(name, 0, size))
