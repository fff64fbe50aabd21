"""The ``model`` of a multipart/form-data body, without copying the files in it."""

from dataclasses import dataclass

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.gateway import refusals

_FIELDS_READ = frozenset({b"model", b"stream", b"response_format"})
_LONGEST_FIELD = 1024
_PARTS_AT_MOST = 1000


@dataclass(frozen=True, slots=True)
class FormField:
    value: str
    begin: int
    end: int
    """Of the value, in the body."""


class _Positions:
    """Where the short fields are that the gateway reads."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, int]] = {}
        self.parts = 0
        self.complete = False
        self._header = b""
        self._disposition = b""
        self._value = b""
        self._name = b""
        self._at: tuple[int, int] | None = None

    def begin(self) -> None:
        self.parts += 1
        self._disposition = self._name = b""
        self._at = None

    def header_field(self, data: bytes, begin: int, end: int) -> None:
        self._header += data[begin:end]

    def header_value(self, data: bytes, begin: int, end: int) -> None:
        self._value += data[begin:end]

    def header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options:
            self._name = options.get(b"name", b"")

    def data(self, _data: bytes, begin: int, end: int) -> None:
        self._at = (self._at[0] if self._at else begin, end)

    def end(self) -> None:
        if self._name in _FIELDS_READ and self._at is not None:
            self.found.setdefault(self._name.decode(), self._at)

    def finished(self) -> None:
        self.complete = True


def read_form(body: bytes, content_type: bytes) -> dict[str, FormField]:
    """Its short fields that the gateway reads, by name. Raises ``Refusal`` when it is no multipart/form-data."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise refusals.not_a_form()
    positions = _Positions()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": positions.begin,
            "on_header_field": positions.header_field,
            "on_header_value": positions.header_value,
            "on_header_end": positions.header_end,
            "on_headers_finished": positions.headers_finished,
            "on_part_data": positions.data,
            "on_part_end": positions.end,
            "on_end": positions.finished,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except MultipartParseError as error:
        raise refusals.broken_form(str(error)) from error
    if not positions.complete or positions.parts > _PARTS_AT_MOST:
        raise refusals.broken_form("it has no end, or too many parts")
    return {
        name: FormField(body[begin:end].decode("utf-8", "replace"), begin, end)
        for name, (begin, end) in positions.found.items()
        if end - begin <= _LONGEST_FIELD
    }
