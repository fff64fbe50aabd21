"""Facts of a model from its files: a GGUF file, or a folder as Hugging Face lays it out."""

import re
from collections.abc import Sequence
from pathlib import Path

from fleet.sizing.facts import Format, ModelFacts, ModelFile
from fleet.sizing.files import Files, LocalFiles, ReadError, ReadProblem, cannot_read
from fleet.sizing.gguf_model import read_gguf
from fleet.sizing.hf_folder import read_folder

_MMPROJ = re.compile(r"mmproj", re.IGNORECASE)
_LATER_PART = re.compile(r"-(\d{5})-of-\d{5}\.gguf$")


def read_local(path: Path) -> ModelFacts:
    """Of a GGUF file (of one in parts: the first), or of a folder. Blocks. Raises ReadError."""
    if path.is_dir():
        return read_model(LocalFiles(path))
    try:
        size = path.stat().st_size
        is_file = path.is_file()
    except (OSError, ValueError) as error:
        raise cannot_read(str(path), error if isinstance(error, OSError) else FileNotFoundError()) from error
    if not is_file:
        raise ReadError(ReadProblem.UNREADABLE, f"{path} is neither a file nor a folder", "name the model itself")
    return read_model(LocalFiles(path.parent), ModelFile(name=path.name, size=size))


def read_model(files: Files, file: ModelFile | None = None) -> ModelFacts:
    """``file``: which of them, where each is a model (GGUF). Raises ReadError."""
    if file is not None:
        return read_gguf(files, file) if _is_gguf(file.name) else _maybe_gguf(files, file)
    there = files.list()
    if any(f.name == "config.json" for f in there) and not _only_gguf(there):
        return read_folder(files, there)
    return read_gguf(files, _the_gguf(there, files.where))


def _maybe_gguf(files: Files, file: ModelFile) -> ModelFacts:
    """It may have any name."""
    if file.name.endswith((".safetensors", ".bin", ".json", ".pt", ".pth")):
        raise ReadError(
            ReadProblem.UNSUPPORTED,
            f"{file.name} is one file of a model",
            "name the folder that holds it, with its config.json",
        )
    return read_gguf(files, file)


def _only_gguf(there: Sequence[ModelFile]) -> bool:
    """Some repositories of GGUF files bring the config of what they were made of."""
    weights = (".safetensors", ".bin", ".pt", ".pth")
    return any(_is_gguf(f.name) for f in there) and not any(f.name.endswith(weights) for f in there)


def _the_gguf(there: Sequence[ModelFile], where: str) -> ModelFile:
    models = [f for f in there if _is_gguf(f.name) and not _MMPROJ.search(f.name)]
    models = [f for f in models if (part := _LATER_PART.search(f.name)) is None or int(part[1]) == 1]
    if len(models) == 1:
        return models[0]
    if models:
        names = ", ".join(f.name for f in models[:5]) + (", …" if len(models) > 5 else "")
        raise ReadError(ReadProblem.UNSUPPORTED, f"{where} holds {len(models)} models: {names}", "name one of them")
    raise ReadError(
        ReadProblem.UNSUPPORTED,
        f"{where} holds no model: neither a config.json nor a GGUF file",
        "name a GGUF file, or a folder with config.json and safetensors files",
    )


def _is_gguf(name: str) -> bool:
    return name.lower().endswith(".gguf")


__all__ = ["Format", "ReadError", "ReadProblem", "read_local", "read_model"]
