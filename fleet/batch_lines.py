"""The lines of a batch: what is asked in its input file, and what is said in its output and error files. Pure."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import orjson

from fleet.batches import MOST_ERRORS, MOST_LINE_BYTES, MOST_LINES, WINDOW_BYTES, WINDOW_LINES

_LONGEST_ID = 512


@dataclass(frozen=True)
class Mistake:
    """Of the input file, as OpenAI shows it."""

    code: str
    message: str
    line: int | None = None
    """Counted from 1; None: it is of the whole file."""
    param: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "line": self.line, "param": self.param}


@dataclass(frozen=True)
class Window:
    number: int
    first_line: int
    lines: int
    offset: int
    length: int


@dataclass
class Check:
    """Reads an input file line by line, cuts it into windows, and gathers its mistakes."""

    endpoint: str
    total: int = 0
    mistakes: list[Mistake] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    _seen: set[bytes] = field(default_factory=set)
    _line: int = 0
    _offset: int = 0
    _first: int = 1
    _begin: int = 0

    @property
    def too_wrong(self) -> bool:
        """There is no use in reading on."""
        return len(self.mistakes) >= MOST_ERRORS or self.total > MOST_LINES

    def line(self, raw: bytes) -> None:
        """The next one, with its end if it has one."""
        if self._line >= self._first and self._is_full(len(raw)):
            self._cut()
        self._line += 1
        self._offset += len(raw)
        text = raw.strip()
        if not text:
            return
        self.total += 1
        mistake = self._of_line(text, self._line)
        if mistake is not None:
            self.mistakes.append(mistake)

    def too_long(self) -> None:
        """The next line is longer than any may be; reading on makes no sense."""
        self.mistakes.append(
            Mistake("line_too_long", f"a line may have {MOST_LINE_BYTES} bytes; this one has more", self._line + 1)
        )

    def end(self) -> None:
        if self._line >= self._first:
            self._cut()
        if self.total == 0 and not self.mistakes:
            self.mistakes.append(Mistake("empty_file", "the input file has no requests: write one a line"))
        if self.total > MOST_LINES:
            text = f"a batch may have {MOST_LINES} requests; cut the file into several batches"
            self.mistakes.append(Mistake("too_many_tasks", text))

    def _is_full(self, more: int) -> bool:
        return self._line - self._first + 1 >= WINDOW_LINES or self._offset - self._begin + more > WINDOW_BYTES

    def _cut(self) -> None:
        lines = self._line - self._first + 1
        self.windows.append(Window(len(self.windows), self._first, lines, self._begin, self._offset - self._begin))
        self._first, self._begin = self._line + 1, self._offset

    def _of_line(self, text: bytes, line: int) -> Mistake | None:
        if len(text) > MOST_LINE_BYTES:
            return Mistake("line_too_long", f"a line may have {MOST_LINE_BYTES} bytes; this one has {len(text)}", line)
        try:
            request = orjson.loads(text)
        except ValueError as error:
            return Mistake("invalid_json_line", f"this line is not valid JSON: {error}", line)
        if not isinstance(request, dict):
            return Mistake("invalid_json_line", "this line is not a JSON object", line)
        return self._of_head(request, line) or self._of_body(request.get("body"), line)

    def _of_head(self, request: dict[str, Any], line: int) -> Mistake | None:
        custom_id = request.get("custom_id")
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _LONGEST_ID:
            text = f"'custom_id' must be a string of 1 to {_LONGEST_ID} characters, by which you find the answer"
            return Mistake("invalid_custom_id", text, line, "custom_id")
        mark = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if mark in self._seen:
            return Mistake("duplicate_custom_id", "an earlier line has the same 'custom_id'", line, "custom_id")
        self._seen.add(mark)
        if request.get("method") != "POST":
            return Mistake("invalid_method", "'method' must be \"POST\"", line, "method")
        if request.get("url") != self.endpoint:
            return Mistake("invalid_url", f"'url' must be the batch's endpoint, {self.endpoint!r}", line, "url")
        return None

    def _of_body(self, body: object, line: int) -> Mistake | None:
        if not isinstance(body, dict):
            return Mistake("missing_required_parameter", "'body' must be an object: the request", line, "body")
        model = body.get("model")
        if not isinstance(model, str) or not model:
            return Mistake("missing_required_parameter", "'body.model' must name a model", line, "body.model")
        if body.get("stream"):
            return Mistake(
                "invalid_request", "answers in a batch cannot be streamed: leave it out", line, "body.stream"
            )
        if len(self.models) < 2:
            self.models.add(model)
        return None


@dataclass(frozen=True)
class Request:
    """One line that is to be asked."""

    line: int
    custom_id: str
    model: str
    body: bytes


def requests_of(data: bytes, first_line: int, skip: set[int]) -> list[Request]:
    """Those of a window that was checked, without the lines in ``skip``."""
    found = []
    for number, text in enumerate(data.split(b"\n"), first_line):
        if number in skip or not text.strip():
            continue
        request = orjson.loads(text)
        body = request["body"]
        found.append(Request(number, request["custom_id"], body["model"], orjson.dumps(body)))
    return found


def custom_ids_of(data: bytes, first_line: int, skip: set[int]) -> list[tuple[int, str]]:
    """(line, custom_id) of a window that was checked, without the lines in ``skip``."""
    lines = enumerate(data.split(b"\n"), first_line)
    return [(n, orjson.loads(text)["custom_id"]) for n, text in lines if n not in skip and text.strip()]


def answer_line(batch_id: str, line: int, custom_id: str, *, status: int, request_id: str, body: bytes) -> bytes:
    """``body``: as it came. Where it is not JSON, as a string."""
    said: object
    try:
        parsed = orjson.loads(body)
        said = orjson.Fragment(body) if b"\n" not in body and b"\r" not in body else parsed
    except ValueError:
        said = body.decode("utf-8", "replace")
    response = {"status_code": status, "request_id": request_id, "body": said}
    return _line(batch_id, line, custom_id, response, None)


def error_line(batch_id: str, line: int, custom_id: str, code: str, message: str) -> bytes:
    """For a request that has no answer."""
    return _line(batch_id, line, custom_id, None, {"code": code, "message": message})


def code_of(body: bytes) -> str:
    """The ``error.code`` or ``error.type`` of an answer, short; empty where there is none."""
    try:
        error = orjson.loads(body)["error"]
        return str(error.get("code") or error.get("type") or "")[:64]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


def _line(batch_id: str, line: int, custom_id: str, response: object, error: object) -> bytes:
    name = hashlib.sha256(f"{batch_id}/{line}".encode()).hexdigest()[:24]
    return orjson.dumps({"id": f"batch_req_{name}", "custom_id": custom_id, "response": response, "error": error})
