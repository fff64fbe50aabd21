"""A name for all that sizing depends on in a model's files. Pure."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fleet.sizing.facts import ModelFile


def fingerprint_of(
    config: Mapping[str, Any], tensors: Iterable[tuple[str, str, tuple[int, ...]]], files: Sequence[ModelFile]
) -> str:
    """32 hexadecimal digits. ``tensors``: (name, type, shape), in any order."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for tensor in sorted(tensors):
        digest.update(repr(tensor).encode())
    for file in sorted(files, key=lambda f: f.name):
        digest.update(f"{file.name}\0{file.size}\0".encode())
    return digest.hexdigest()[:32]
