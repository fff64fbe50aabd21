"""Headers of safetensors files: which tensors they hold, without reading any."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fleet.sizing.facts import ModelFile
from fleet.sizing.files import Files, ReadError, ReadProblem, Span
from fleet.sizing.json_fields import malformed, parse_object

_PREFIX = 8
"""Length of the header, little-endian."""
_FIRST_READ = 64 << 10
"""Holds the header of most shards."""
_MOST_HEADER = 32 << 20
"""The format allows 100 MB; the largest that are known of have some 15 MB."""
_MOST_TENSORS = 1_000_000
_FILES_AT_ONCE = 16
_MOST_DIMENSIONS = 16
_MOST_ELEMENTS = 2**56

_BITS = {
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    dtype: str
    """As its file says."""
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_tensors(files: Files, weights: Sequence[ModelFile]) -> list[Tensor]:
    """Of all these files. Raises ReadError for what no engine would load."""
    found: dict[str, Tensor] = {}
    for start in range(0, len(weights), _FILES_AT_ONCE):
        some = weights[start : start + _FILES_AT_ONCE]
        for file, header in zip(some, _headers(files, some), strict=True):
            _add(found, parse_header(header, file), file.name)
    return list(found.values())


def parse_header(header: bytes, file: ModelFile) -> Iterator[Tensor]:
    """``header``: the JSON after the length. Raises ReadError."""
    table = parse_object(header, file.name)
    table.pop("__metadata__", None)
    if len(table) > _MOST_TENSORS:
        raise _too_many(file.name)
    room = file.size - _PREFIX - len(header)
    entries = [(*_offsets(name, entry, file.name), name, entry) for name, entry in table.items()]
    end = 0
    for begin, stop, name, entry in sorted(entries, key=lambda e: e[:2]):
        if begin < end:
            raise malformed(file.name, f"has tensors that overlap: {name[:80]!r}")
        end = stop
        yield _tensor(name, entry, stop - begin, file.name)
    if end > room:
        raise malformed(file.name, f"is {end - room:,} bytes shorter than its tensors")


def _headers(files: Files, weights: Sequence[ModelFile]) -> list[bytes]:
    starts = files.read([Span(f.name, 0, min(f.size, _FIRST_READ)) for f in weights])
    lengths = [_header_length(start, file) for start, file in zip(starts, weights, strict=True)]
    cut = [i for i, length in enumerate(lengths) if _PREFIX + length > len(starts[i])]
    spans = [Span(weights[i].name, len(starts[i]), _PREFIX + lengths[i] - len(starts[i])) for i in cut]
    rest = dict(zip(cut, files.read(spans) if spans else (), strict=True))
    headers = [start[_PREFIX : _PREFIX + lengths[i]] + rest.get(i, b"") for i, start in enumerate(starts)]
    for header, length, file in zip(headers, lengths, weights, strict=True):
        if len(header) != length:
            raise malformed(file.name, "ends within its header")
    return headers


def _header_length(start: bytes, file: ModelFile) -> int:
    length = int.from_bytes(start[:_PREFIX], "little")
    if len(start) < _PREFIX or length < 2 or length > file.size - _PREFIX:
        raise malformed(file.name, "is no safetensors file: its first bytes are not the length of a header")
    if length > _MOST_HEADER:
        raise ReadError(
            ReadProblem.TOO_LARGE,
            f"{file.name} has a header of {length:,} bytes; at most {_MOST_HEADER:,} are read",
            "save the model in several files",
        )
    return length


def _add(found: dict[str, Tensor], tensors: Iterable[Tensor], file: str) -> None:
    for tensor in tensors:
        if tensor.name in found:
            raise malformed(file, f"holds {tensor.name[:80]!r}, which another file of the model holds too")
        found[tensor.name] = tensor
    if len(found) > _MOST_TENSORS:
        raise _too_many(file)


def _offsets(name: str, entry: Any, file: str) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(o) for o in offsets):
        raise malformed(file, f"does not say where {name[:80]!r} is")
    begin, end = offsets
    if begin > end:
        raise malformed(file, f"says that {name[:80]!r} ends before it begins")
    return begin, end


def _tensor(name: str, entry: dict[str, Any], size: int, file: str) -> Tensor:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise malformed(file, f"has a tensor of unknown type {str(dtype)[:40]!r}: {name[:80]!r}")
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS or not all(_is_count(d) for d in shape):
        raise malformed(file, f"has a tensor of no proper shape: {name[:80]!r}")
    elements = math.prod(shape)
    if elements > _MOST_ELEMENTS or elements * _BITS[dtype] != size * 8:
        raise malformed(file, f"says {size:,} bytes of {name[:80]!r}, which is not what its shape and type take")
    return Tensor(name, dtype, tuple(shape), size)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_ELEMENTS


def _too_many(file: str) -> ReadError:
    return ReadError(ReadProblem.TOO_LARGE, f"{file} holds more than {_MOST_TENSORS:,} tensors", "")
