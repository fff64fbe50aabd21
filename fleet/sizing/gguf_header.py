"""Headers of GGUF files: keys, values and tensors, read in pieces and not further than needed."""

import math
import struct
from dataclasses import dataclass, field
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUF_MAGIC, GGMLQuantizationType, GGUFValueType

from fleet.sizing.facts import ModelFile
from fleet.sizing.files import Files, ReadError, ReadProblem, Span, read_one
from fleet.sizing.json_fields import malformed

_VERSIONS = (2, 3)
_MOST_HEADER = 64 << 20
"""Vocabularies are in it: some 15 MB at most are known of."""
_FIRST_READ = 256 << 10
_LARGEST_READ = 4 << 20
_MOST_KEYS = 65_536
_MOST_TENSORS = 1_000_000
_MOST_DIMENSIONS = 4
_MOST_ELEMENTS = 2**56
_LONGEST_NAME = 64 << 10
_LONGEST_TEXT = 8 << 20
_KEPT_TEXT = 4096
_KEPT_ITEMS = 10_000
"""Longer arrays are vocabularies, of which only the length matters; shorter ones have a value for each layer."""

_FORMATS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    name: str
    dtype: str
    """``Q4_K`` and the like."""
    shape: tuple[int, ...]
    """As the file has it: the first dimension is that of a row."""
    offset: int
    bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    values: dict[str, Any]
    """Numbers, flags, texts (their beginning), and short lists of numbers."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Of all lists."""
    tensors: tuple[GgufTensor, ...] = ()


def read_header(files: Files, file: ModelFile) -> GgufHeader:
    """Raises ReadError for what llama.cpp would not load either."""
    stream = _Stream(files, file)
    tensor_count, key_count = _counts(stream)
    values: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for _ in range(key_count):
        name = stream.text(_LONGEST_NAME)
        if name in values or name in lengths:
            raise malformed(file.name, f"has the key {name[:80]!r} twice")
        _read_value(stream, name, values, lengths)
    tensors = [_tensor(stream) for _ in range(tensor_count)]
    alignment = values.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise malformed(file.name, f"has an alignment of {str(alignment)[:40]!r}")
    _check_layout(tensors, -(-stream.position // alignment) * alignment, alignment, file)
    return GgufHeader(values, lengths, tuple(tensors))


def _counts(stream: "_Stream") -> tuple[int, int]:
    """(tensors, keys)."""
    name = stream.file.name
    if stream.take(min(4, stream.file.size)) != GGUF_MAGIC.to_bytes(4, "little"):
        raise ReadError(
            ReadProblem.UNSUPPORTED,
            f"{name} is not a GGUF file",
            "name a GGUF file, or a folder with config.json and safetensors files",
        )
    version = stream.number("<I")
    if version not in _VERSIONS:
        big_endian = version & 0xFFFF == 0
        what = "for big-endian machines" if big_endian else f"of GGUF version {version}"
        raise ReadError(ReadProblem.UNSUPPORTED, f"{name} is {what}", "convert the model anew")
    tensors, keys = struct.unpack("<QQ", stream.take(16))
    if keys > _MOST_KEYS or tensors > _MOST_TENSORS:
        raise malformed(name, f"says that it has {tensors:,} tensors and {keys:,} keys")
    return tensors, keys


def _read_value(stream: "_Stream", name: str, values: dict[str, Any], lengths: dict[str, int]) -> None:
    kind = _value_type(stream)
    if kind is GGUFValueType.STRING:
        values[name] = stream.text(_LONGEST_TEXT, _KEPT_TEXT)
    elif kind is GGUFValueType.ARRAY:
        items = _value_type(stream)
        lengths[name] = stream.number("<Q")
        kept = _array(stream, items, lengths[name])
        if kept is not None:
            values[name] = kept
    else:
        values[name] = stream.number(_FORMATS[kind])


def _array(stream: "_Stream", items: GGUFValueType, length: int) -> list[Any] | None:
    """None: not kept."""
    if items is GGUFValueType.STRING:
        stream.skip_texts(length)
        return None
    if items is GGUFValueType.ARRAY:
        raise malformed(stream.file.name, "has a list of lists, which nothing writes")
    form = _FORMATS[items]
    if length > _KEPT_ITEMS:
        stream.skip(length * struct.calcsize(form))
        return None
    return [item for (item,) in struct.iter_unpack(form, stream.take(length * struct.calcsize(form)))]


def _value_type(stream: "_Stream") -> GGUFValueType:
    number = stream.number("<I")
    try:
        return GGUFValueType(number)
    except ValueError:
        raise malformed(stream.file.name, f"has a value of unknown type {number}") from None


def _tensor(stream: "_Stream") -> GgufTensor:
    name = stream.text(_LONGEST_NAME)
    dimensions = stream.number("<I")
    if dimensions > _MOST_DIMENSIONS:
        raise malformed(stream.file.name, f"has a tensor of {dimensions} dimensions: {name[:80]!r}")
    shape = struct.unpack(f"<{dimensions}Q", stream.take(8 * dimensions))
    number, offset = struct.unpack("<IQ", stream.take(12))
    try:
        kind = GGMLQuantizationType(number)
        block, size = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise ReadError(
            ReadProblem.UNSUPPORTED,
            f"{stream.file.name} has tensors of a type that is not known ({number}): {name[:80]!r}",
            "a newer Holdfast may know it",
        ) from None
    elements = math.prod(shape)
    if elements > _MOST_ELEMENTS or (shape[0] if shape else 1) % block:
        raise malformed(stream.file.name, f"has a tensor whose shape does not go with its type: {name[:80]!r}")
    return GgufTensor(name, kind.name, shape, offset, elements // block * size)


def _check_layout(tensors: list[GgufTensor], start: int, alignment: int, file: ModelFile) -> None:
    if len({t.name for t in tensors}) != len(tensors):
        raise malformed(file.name, "has two tensors of one name")
    end = 0
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.bytes)):
        if tensor.offset < end or tensor.offset % alignment:
            raise malformed(file.name, f"has tensors that overlap or lie askew: {tensor.name[:80]!r}")
        end = tensor.offset + tensor.bytes
    if start + end > file.size:
        raise malformed(file.name, f"is {start + end - file.size:,} bytes shorter than its tensors")


class _Stream:
    """From the start of a file onwards, fetched in growing pieces."""

    def __init__(self, files: Files, file: ModelFile) -> None:
        self.file = file
        self._files = files
        self._data = b""
        self._at = 0
        """In ``_data``."""
        self._start = 0
        """Of ``_data``, in the file."""
        self._next_read = _FIRST_READ

    @property
    def position(self) -> int:
        return self._start + self._at

    def take(self, length: int) -> bytes:
        self._have(length)
        self._at += length
        return self._data[self._at - length : self._at]

    def skip(self, length: int) -> None:
        self._check(self.position + length)
        self._at += length

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, longest: int, kept: int | None = None) -> str:
        length = self._text_length(longest)
        text = self.take(min(length, longest if kept is None else kept)).decode("utf-8", "replace")
        self.skip(length - min(length, longest if kept is None else kept))
        return text

    def skip_texts(self, count: int) -> None:
        if count > _MOST_HEADER // 8:
            raise malformed(self.file.name, f"says that it has a list of {count:,} texts")
        for _ in range(count):
            self.skip(self._text_length(_LONGEST_TEXT))

    def _text_length(self, longest: int) -> int:
        if self._at + 8 > len(self._data):
            self._have(8)
        length = int.from_bytes(self._data[self._at : self._at + 8], "little")
        self._at += 8
        if length > longest:
            raise malformed(self.file.name, f"says that it has a text of {length:,} bytes")
        return length

    def _have(self, length: int) -> None:
        """``length`` bytes lie in ``_data`` at ``_at``."""
        if self._at + length <= len(self._data):
            return
        self._check(self.position + length)
        left = self._data[self._at :]
        self._start, self._at = self.position, 0
        reads = max(length - len(left), min(self._next_read, self.file.size - self._start - len(left)))
        self._next_read = min(2 * self._next_read, _LARGEST_READ)
        self._data = left + read_one(self._files, Span(self.file.name, self._start + len(left), reads))
        if len(self._data) < length:
            raise malformed(self.file.name, "ends within its header")

    def _check(self, end: int) -> None:
        if end > self.file.size:
            raise malformed(self.file.name, "ends within its header")
        if end > _MOST_HEADER:
            raise ReadError(
                ReadProblem.TOO_LARGE, f"{self.file.name} has a header of more than {_MOST_HEADER:,} bytes", ""
            )
