"""What is known of a LoRA adapter from its own files: a PEFT folder, or a GGUF file."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fleet.sizing.facts import Lora, ModelFile
from fleet.sizing.files import Files, LocalFiles, ReadError, ReadProblem, Span, cannot_read, read_one
from fleet.sizing.gguf_header import GgufHeader, read_header
from fleet.sizing.json_fields import Fields, malformed, parse_object
from fleet.sizing.safetensors import Tensor, read_tensors

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PICKLED = ("adapter_model.bin", "adapter_model.pt")
_MOST_CONFIG = 1 << 20
_MATRIX = re.compile(r"\.(lora_(?:embedding_)?[AB])(?:\.[^.]+)*$")
_GGUF_MATRIX = re.compile(r"^(?:blk\.\d+\.)?(?P<module>.+?)(?:\.weight)?\.lora_(?P<which>[ab])$")


def read_lora(path: Path, name: str = "") -> Lora:
    """``name``: by which requests ask for it; empty: that of its file or folder. Blocks. Raises ReadError."""
    name = name or path.name.removesuffix(".gguf")
    if path.is_dir():
        return lora_of_folder(LocalFiles(path), name)
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise cannot_read(str(path), error if isinstance(error, OSError) else FileNotFoundError()) from error
    if not path.is_file():
        raise ReadError(ReadProblem.UNREADABLE, f"{path} is neither a file nor a folder", "name the adapter itself")
    return lora_of_gguf(LocalFiles(path.parent), ModelFile(name=path.name, size=size), name)


def lora_of_folder(files: Files, name: str) -> Lora:
    sizes = {f.name: f.size for f in files.list()}
    config = _config(files, sizes)
    ranks = [config.count("r"), *(r for r in config.sub("rank_pattern").values.values() if _is_rank(r))]
    tensors, stored = _weights(files, sizes)
    matrices = [t for t in tensors if _MATRIX.search(t.name)]
    if tensors and not matrices:
        raise ReadError(
            ReadProblem.UNSUPPORTED, f"{files.where} holds no LoRA matrices", "only LoRA adapters can be used"
        )
    said = config.text("target_modules")
    return Lora(
        name=name,
        rank=max([*ranks, _rank(matrices)]),
        alpha=config.number("lora_alpha"),
        target_modules=config.texts("target_modules")
        or _modules(t.name for t in matrices)
        or ((said,) if said else ()),
        base_model=config.text("base_model_name_or_path"),
        elements=sum(t.elements for t in matrices),
        bytes=stored,
    )


def lora_of_gguf(files: Files, file: ModelFile, name: str) -> Lora:
    header = read_header(files, file)
    if header.values.get("general.type") != "adapter" or header.values.get("adapter.type") != "lora":
        raise ReadError(
            ReadProblem.UNSUPPORTED, f"{file.name} is not a LoRA adapter", "convert the adapter to GGUF, and name that"
        )
    return _of_header(header, file, name)


def _of_header(header: GgufHeader, file: ModelFile, name: str) -> Lora:
    found = [(m, t) for t in header.tensors if (m := _GGUF_MATRIX.match(t.name)) is not None]
    ranks = [t.shape[1] for m, t in found if m["which"] == "a" and len(t.shape) > 1]
    if not ranks:
        raise malformed(file.name, "holds no LoRA matrices")
    values = Fields(header.values, file.name)
    return Lora(
        name=name,
        rank=max(ranks),
        alpha=values.number("adapter.lora.alpha"),
        target_modules=tuple(sorted({m["module"] for m, _ in found})),
        base_model=values.text("general.base_model.0.repo_url", "general.base_model.0.name"),
        elements=sum(t.elements for _, t in found),
        bytes=sum(t.bytes for t in header.tensors),
    )


def _config(files: Files, sizes: dict[str, int]) -> Fields:
    if _CONFIG not in sizes:
        raise ReadError(
            ReadProblem.UNSUPPORTED,
            f"{files.where} holds no adapter: there is no {_CONFIG}",
            f"name a folder with {_CONFIG} and {_WEIGHTS}",
        )
    if sizes[_CONFIG] > _MOST_CONFIG:
        raise ReadError(ReadProblem.TOO_LARGE, f"{_CONFIG} has {sizes[_CONFIG]:,} bytes", "is it the right file?")
    config = Fields(parse_object(read_one(files, Span(_CONFIG, 0, sizes[_CONFIG])), _CONFIG), _CONFIG)
    kind = config.text("peft_type") or "LORA"
    if kind != "LORA":
        raise ReadError(ReadProblem.UNSUPPORTED, f"{files.where} is a {kind} adapter", "only LoRA adapters can be used")
    if not config.count("r"):
        raise malformed(_CONFIG, "does not say the rank (r)")
    return config


def _weights(files: Files, sizes: dict[str, int]) -> tuple[list[Tensor], int]:
    """(tensors, bytes as stored); no tensors where they are pickled."""
    if _WEIGHTS in sizes:
        tensors = read_tensors(files, [ModelFile(name=_WEIGHTS, size=sizes[_WEIGHTS])])
        return tensors, sum(t.bytes for t in tensors)
    pickled = next((name for name in _PICKLED if name in sizes), None)
    if pickled is None:
        raise ReadError(ReadProblem.MISSING, f"{files.where} has no {_WEIGHTS}", "fetch the adapter whole")
    return [], sizes[pickled]


def _rank(matrices: Sequence[Tensor]) -> int:
    """By the matrices themselves: the narrow side of each."""
    return max((min(t.shape[:2]) for t in matrices if len(t.shape) > 1), default=0)


def _modules(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({_MATRIX.sub("", name).rsplit(".", 1)[-1] for name in names}))


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20
