"""Checkpoints of well-known models as sparse files of their real size, and what reading them says.

``facts_of("Qwen/Qwen3-8B")`` is what most tests want.
"""

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from fleet.sizing.facts import ModelFacts
from fleet.sizing.read import read_local
from tests.unit.sizing.architectures import build
from tests.unit.sizing.decoders import Checkpoint, Weight

MODELS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "data" / "model_configs.json").read_text("utf-8")
)
"""By repository; ``params``: those of the text model, counted from its dimensions."""

BITS = {"BF16": 16, "F16": 16, "F32": 32, "F8_E4M3": 8, "U8": 8, "I32": 32}
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "fp8": "BF16", "mxfp4": "BF16"}
_WEIGHTS_IN_SHARD = 4000


@lru_cache
def checkpoint_of(repo: str) -> Checkpoint:
    return build(MODELS[repo])


@lru_cache
def facts_of(repo: str) -> ModelFacts:
    with tempfile.TemporaryDirectory() as folder:
        write(checkpoint_of(repo), Path(folder), _DTYPES[MODELS[repo]["dtype"]])
        return read_local(Path(folder))


def write(checkpoint: Checkpoint, folder: Path, dtype: str = "BF16") -> Path:
    """As published: one file, or shards with an index."""
    weights = checkpoint.weights
    shards = [weights[i : i + _WEIGHTS_IN_SHARD] for i in range(0, len(weights), _WEIGHTS_IN_SHARD)]
    (folder / "config.json").write_text(json.dumps(checkpoint.config))
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", weights, dtype)
        return folder
    index = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / name, shard, dtype)
        index.update({weight.name: name for weight in shard})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def write_safetensors(path: Path, weights: tuple[Weight, ...], dtype: str = "BF16") -> None:
    """Sparse: its size is real, its tensors are holes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in weights:
        kind = weight.dtype or dtype
        size = BITS[kind] // 8
        for length in weight.shape:
            size *= length
        header[weight.name] = {"dtype": kind, "shape": list(weight.shape), "data_offsets": [end, end + size]}
        end += size
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    with path.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + end)
