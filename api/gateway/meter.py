"""Reads on its way to the client what an answer used, and takes out again what only the gateway had asked for."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from api.gateway.filters import Headers
from api.gateway.usage_text import (
    count,
    end_of_object,
    find_number,
    find_timings,
    find_usage,
    read_usage,
    usage_at,
    wav_seconds,
)
from fleet.usage import Usage

_TIMINGS = b',"timings":{'
_USAGE = b'"usage":'
_UNFINISHED = b'"finish_reason":null'
_DELTA = b'.delta"'
_NO_CHOICES = (b'"choices":[]', b'"choices": []')
_NEXT_EVENT = b"\n\ndata:"
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_TEXTS = tuple(
    mark % space
    for space in (b"", b" ")
    for mark in (b'"content":%b"', b'"text":%b"', b'"reasoning_content":%b"', b'"reasoning":%b"', b'"arguments":%b"')
)
"""Begin what an event of a chat or completion adds; one that adds nothing has an empty one."""
_IMAGES = (b'"b64_json":"', b'"b64_json": "', b'"url":"', b'"url": "')
_KEPT = 4 << 10
"""Bytes of a body that are kept while more of it comes: its beginning, and its end so far."""
_BYTES_PER_TOKEN = 4
_WITHOUT_TEXT = ("audio.", "images.")
"""Operations whose requests are not counted in tokens, unless the engine does."""
_WRITES = frozenset({"chat.completions", "completions", "responses", "messages"})


class Meter:
    """One answer: a ``Filter``, the one next to the engine. Then ``usage``, at any time and for any end.

    ``operation``: that the engine is asked: ``chat.completions``, ``completions``, ``responses``, ``messages``,
    ``embeddings``, ``rerank``, ``score``, ``images.*``, ``audio.*``, …
    ``document``: the request as the client made it (empty for a form), before ``injected`` was put in.
    ``prompt_tokens``, ``audio_seconds``: estimates for when nothing better comes.
    """

    __slots__ = (
        "_added",
        "_audio_seconds",
        "_by_choice",
        "_failed",
        "_feed",
        "_first",
        "_found",
        "_images",
        "_injected",
        "_last",
        "_many",
        "_operation",
        "_prompt_tokens",
        "_said",
        "_size",
        "_strips_member",
        "_strips_timings",
        "_strips_total",
        "_text",
        "_timed_answer",
    )

    _feed: "Callable[[Meter, bytes], bytes]"

    def __init__(
        self,
        operation: str,
        document: Mapping[str, Any],
        injected: Mapping[str, Any] | None = None,
        *,
        prompt_tokens: int = 0,
        audio_seconds: float = 0.0,
    ) -> None:
        self._operation = operation
        self._injected = injected
        self._prompt_tokens = prompt_tokens
        self._audio_seconds = audio_seconds
        choices = document.get("n")
        self._many = type(choices) is int and choices > 1
        self._strips_timings = injected is not None and "timings_per_token" in injected
        self._timed_answer = self._strips_timings or document.get("timings_per_token") is True
        self._by_choice: dict[int, int] = {}
        """Tokens of each of several choices, where the engine counts them apart."""
        self._feed = Meter._unread
        self._found: Usage | None = None
        """What the answer has said up to now, and ``_last`` does not…"""
        self._said = False
        """…and whether that was how much was written in all."""
        self._last = b""
        """What said last how much was used; of a body: its end so far."""
        self._added = 0
        """Events that brought text, none of which said how much was used."""
        self._text = b'"text":"' if operation == "completions" else b'"content":"'
        self._first = b""
        self._size = self._images = 0
        self._strips_total = self._strips_member = self._failed = False

    # --- the filter ---

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        if status >= 400:
            self._failed = True
            return status, headers
        for name, value in headers:
            if name == b"content-type" and value.startswith(b"text/event-stream"):
                return status, self._begin_events(headers)
        self._feed = Meter._body
        return status, headers

    def feed(self, data: bytes) -> bytes:
        return self._feed(self, data)

    def end(self) -> bytes:
        return b""

    # --- the result ---

    def usage(self, left_early: bool = False) -> Usage:
        """``left_early``: the client left, or the answer broke off. What the engine had said by then counts, and what
        it had not said is counted here."""
        if self._failed:
            return Usage()
        usage = replace(self._found) if self._found is not None else Usage()
        said = self._read_last(usage)
        usage.images = self._images
        if self._operation.startswith(_WITHOUT_TEXT):
            usage.estimated = left_early
            self._read_audio(usage)
            return usage
        if not usage.prompt_tokens:
            usage.prompt_tokens = self._prompt_tokens
            usage.estimated = not said
        if not said and self._operation in _WRITES:
            usage.completion_tokens = max(usage.completion_tokens, self._counted(left_early))
            usage.estimated = True
        return usage

    def _counted(self, left_early: bool) -> int:
        if self._feed is not Meter._body:
            return self._added
        return 0 if left_early else self._size // _BYTES_PER_TOKEN

    def _read_last(self, usage: Usage) -> bool:
        """Whether the engine has said how much it wrote."""
        if (found := find_usage(self._last)) is not None:
            read_usage(found, usage)
        elif (timings := find_timings(self._last)) is not None:
            usage.cached_tokens = count(timings.get("cache_n"))
            usage.prompt_tokens = count(timings.get("prompt_n")) + usage.cached_tokens
            usage.completion_tokens = count(timings["predicted_n"])
        else:
            return self._said
        if self._by_choice and self._is_partial():
            usage.completion_tokens = sum(self._by_choice.values())
        return True

    def _is_partial(self) -> bool:
        """What was said last is of one choice alone. llama.cpp has no other way to say it."""
        return self._feed is Meter._timed or not any(map(self._last.__contains__, _NO_CHOICES))

    def _read_audio(self, usage: Usage) -> None:
        if self._operation == "audio.speech":
            usage.audio_seconds = wav_seconds(self._first, self._size)
        elif self._operation.startswith("audio.") and not usage.audio_seconds:
            usage.audio_seconds = find_number(self._first, b"duration") or self._audio_seconds

    # --- streamed answers ---

    def _begin_events(self, headers: Headers) -> Headers:
        injected = self._injected or {}
        options = injected.get("stream_options")
        if self._operation == "messages":
            self._feed = Meter._messages
        elif self._timed_answer:
            self._feed = Meter._timed
        elif self._operation == "responses":
            self._feed = Meter._responses
        else:
            self._feed = Meter._chat
        if isinstance(options, dict):
            self._strips_total = "include_usage" in options
            self._strips_member = "continuous_usage_stats" in options
        return [header for header in headers if header[0] != b"content-length"] if injected else headers

    def _unread(self, data: bytes) -> bytes:
        return data

    def _timed(self, data: bytes) -> bytes:
        """llama.cpp, which was asked for timings with every event. It sends them with the last one unasked."""
        at = data.rfind(_TIMINGS)
        if at < 0:
            self._added += self._texts(data)
            return data
        self._last = data
        if self._many:
            self._note_choices(data)
        while at >= 0 and self._strips_timings:
            begin = data.rfind(b"data:", 0, at)
            if data.find(_UNFINISHED, begin, at) >= 0 or data.find(_DELTA, begin, at) >= 0:
                end = data.find(b"}", at)
                data = data[:at] + data[end + 1 :] if end >= 0 else data
            at = data.rfind(_TIMINGS, 0, at)
        return data

    def _chat(self, data: bytes) -> bytes:
        at = data.rfind(_USAGE)
        if at < 0 or data[at + 8 : at + 12].lstrip()[:1] != b"{":
            self._added += self._texts(data)
            return data
        self._last = data
        if self._many:
            self._note_choices(data)
        return self._without_ours(data, at) if self._strips_total or self._strips_member else data

    def _responses(self, data: bytes) -> bytes:
        self._added += data.count(_DELTA)
        if data.rfind(_USAGE) >= 0:
            self._last = data
        return data

    def _messages(self, data: bytes) -> bytes:
        """The prompt comes with the first event, what was written with the last but one."""
        self._added += data.count(b'"content_block_delta"')
        if data.rfind(_USAGE) < 0:
            return data
        at = data.find(_USAGE)
        while at >= 0:
            if (found := usage_at(data, at)) is not None:
                self._note_message(found, final=data.rfind(b'"message_delta"', 0, at) >= 0)
            at = data.find(_USAGE, at + 1)
        return data

    def _note_message(self, found: dict[str, Any], *, final: bool) -> None:
        self._said |= final
        if self._found is None:
            self._found = Usage()
        read_usage(found if final else {**found, "output_tokens": 0}, self._found)

    def _texts(self, data: bytes) -> int:
        if data.find(_NEXT_EVENT) >= 0:
            return sum(_filled(data, text) for text in _TEXTS)
        if added := _filled(data, self._text):
            return added
        for text in _TEXTS:
            if added := _filled(data, text):
                self._text = text  # the next will begin alike
                return added
        return 0

    def _without_ours(self, data: bytes, at: int) -> bytes:
        """Takes out the event that only says the total, and what others say of it, as far as the client did not ask."""
        if self._strips_member and data.find(_USAGE) == at and not any(map(data.__contains__, _NO_CHOICES)):
            return _without_member(data, at)
        while at >= 0:
            begin, end = _event_around(data, at)
            if any(map(data[begin:end].__contains__, _NO_CHOICES)):
                if self._strips_total:
                    data = data[:begin] + data[end:]
            elif self._strips_member:
                data = _without_member(data, at)
            at = data.rfind(_USAGE, 0, begin)
        return data

    def _note_choices(self, data: bytes) -> None:
        """Several choices: every event speaks of its own."""
        for line in data.splitlines():
            if not line.startswith(b"data:") or line.endswith(b"[DONE]"):
                continue
            try:
                event = orjson.loads(line[5:])
                index = event["choices"][0]["index"]
            except (orjson.JSONDecodeError, LookupError, TypeError):
                continue
            said = event.get("timings") or event.get("usage") or {}
            self._by_choice[index] = count(said.get("predicted_n", said.get("completion_tokens")))

    # --- other answers ---

    def _body(self, data: bytes) -> bytes:
        size = self._size
        self._size = size + len(data)
        if not size:
            self._last = data
            self._first = data[:_KEPT] if self._operation.startswith("audio.") else b""
            if self._operation.startswith("images."):
                self._images = sum(map(data.count, _IMAGES))
            return data
        self._grow(data)
        return data

    def _grow(self, data: bytes) -> None:
        """A body in several pieces: look through what will not be kept."""
        before = self._last[-_KEPT:]
        if len(self._last) > _KEPT and self._found is None:
            self._look(self._last)
        joined = self._last = before + data
        if self._operation.startswith("images."):
            self._images += sum(joined.count(mark) - before.count(mark) for mark in _IMAGES)
        if self._first and len(self._first) < _KEPT:
            self._first = (self._first + data)[:_KEPT]

    def _look(self, data: bytes) -> None:
        if (found := find_usage(data)) is not None:
            self._found, self._said = Usage(), True
            read_usage(found, self._found)


def _filled(data: bytes, text: bytes) -> int:
    """How often it is there and not empty."""
    found = data.count(text)
    return found - data.count(text + b'"') if found else 0


def _event_around(data: bytes, at: int) -> tuple[int, int]:
    """Where the event begins and ends that has the byte ``at``."""
    begins = [found + len(mark) for mark in _EVENT_ENDS if (found := data.rfind(mark, 0, at)) >= 0]
    ends = [found + len(mark) for mark in _EVENT_ENDS if (found := data.find(mark, at)) >= 0]
    return max(begins, default=0), min(ends, default=len(data))


def _without_member(data: bytes, at: int) -> bytes:
    """Without the member whose name begins at ``at``, and one comma beside it."""
    end = end_of_object(data, at)
    if end < 0:
        return data
    begin = len(data[:at].rstrip())
    if data[begin - 1 : begin] == b",":
        return data[: begin - 1] + data[end:]
    rest = data[end:].lstrip()
    return data[:at] + rest.removeprefix(b",").lstrip()
