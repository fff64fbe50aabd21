"""A multipart form with one file, read as it comes: nothing of the file is held longer than until it is taken."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.gateway.refusals import Refusal, shown
from api.openai_files.exchange import invalid

_LONGEST_FIELD = 4096
_MOST_FIELDS = 32


class FileForm:
    """``feed`` it, and take from ``file`` what has come of the file. Raises Refusal."""

    def __init__(self, content_type: bytes) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise Refusal(
                415, "Send the file as multipart/form-data with the fields 'file' and 'purpose'.", code="invalid_type"
            )
        self.file = bytearray()
        self.filename: str | None = None
        """None: the file has not begun."""
        self.fields: dict[str, str] = {}
        self._header = bytearray()
        self._value = bytearray()
        self._disposition: bytes = b""
        self._name = ""
        self._is_file = False
        self._field = bytearray()
        self._complete = False
        self._parser = self._made(boundary)

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise invalid(f"The form is damaged: {shown(str(error))}.", "body") from None

    def end(self) -> None:
        if not self._complete:
            raise invalid("The form ends too soon: its last boundary is missing.", "body")
        if self.filename is None:
            raise invalid("'file' is missing. Send the file in the field 'file', with a file name.", "file")

    def _made(self, boundary: bytes) -> MultipartParser:
        try:
            return MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begins,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_part_end": self._part_ends,
                    "on_end": self._ends,
                },
            )
        except FormParserError as error:
            raise invalid(f"The form's boundary is not valid: {shown(str(error))}.", "Content-Type") from None

    def _part_begins(self) -> None:
        self._disposition, self._name, self._is_file = b"", "", False
        self._field.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = _text(options.get(b"name", b""))
        self._is_file = self._name == "file"
        if self._is_file and self.filename is not None:
            raise invalid("Send one file at a time.", "file")
        if self._is_file:
            self.filename = _text(options.get(b"filename", b""))[-255:] or "file"
        elif len(self.fields) >= _MOST_FIELDS:
            raise invalid(f"The form has more than {_MOST_FIELDS} fields.", "body")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.file += memoryview(data)[start:end]
            return
        self._field += memoryview(data)[start:end]
        if len(self._field) > _LONGEST_FIELD:
            raise invalid(f"'{shown(self._name)}' is longer than {_LONGEST_FIELD} bytes.", self._name)

    def _part_ends(self) -> None:
        if not self._is_file:
            self.fields[self._name] = _text(bytes(self._field))

    def _ends(self) -> None:
        self._complete = True


def _text(data: bytes) -> str:
    """PostgreSQL keeps no NUL in a text."""
    return data.decode("utf-8", "replace").replace("\x00", "")
