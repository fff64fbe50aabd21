"""Finds what an answer says of its use, without parsing the answer: bodies may be megabytes, events come by thousands.

The marks cannot be part of a text: in a JSON string their quotes would be escaped.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from fleet.usage import Usage

_MARK = b'"usage":'
_TIMINGS = b'"timings":'
_LONGEST = 8 << 10
"""Bytes of an object that is looked at."""
_TRIED = 8
"""Members that are called so but are something else, such as a field of a tool, before the search is given up."""
_KNOWN = frozenset(
    {"prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens", "seconds", "duration"}
)
_MOST = 1 << 53
_WAV_HEAD = 44


def find_usage(data: bytes) -> dict[str, Any] | None:
    """The last object named ``usage`` that is one; None: there is none, or it is not whole."""
    at = data.rfind(_MARK)
    for _ in range(_TRIED):
        if at < 0:
            return None
        if (found := usage_at(data, at)) is not None:
            return found
        at = data.rfind(_MARK, 0, at)
    return None


def usage_at(data: bytes, at: int) -> dict[str, Any] | None:
    """The object whose name, in quotes, begins at ``at``."""
    found = _object(data, at + len(_MARK))
    return found if found is not None and not _KNOWN.isdisjoint(found) else None


def find_timings(data: bytes) -> dict[str, Any] | None:
    """llama.cpp's: ``prompt_n`` tokens read, ``cache_n`` found in its cache, ``predicted_n`` written so far."""
    at = data.rfind(_TIMINGS)
    found = _object(data, at + len(_TIMINGS)) if at >= 0 else None
    return found if found is not None and "predicted_n" in found else None


def find_number(data: bytes, name: bytes) -> float | None:
    """Value of the first member of that name; some engines write numbers as strings."""
    mark = b'"%b":' % name
    at = data.find(mark)
    if at < 0:
        return None
    text = data[at + len(mark) : at + len(mark) + 32].lstrip(b' "')
    end = next((i for i, c in enumerate(text) if c not in b"0123456789.eE+-"), len(text))
    try:
        return float(text[:end])
    except ValueError:
        return None


def end_of_object(data: bytes, start: int) -> int:
    """Index after the brace that closes the one at ``start``; -1: it is not there. For objects without braces in their
    strings."""
    end = data.find(b"}", start)
    while end >= 0 and end - start < _LONGEST:
        if data.count(b"{", start, end) == data.count(b"}", start, end + 1):
            return end + 1
        end = data.find(b"}", end + 1)
    return -1


def read_usage(found: Mapping[str, Any], usage: Usage) -> None:
    """Take over what is said: OpenAI's names, those of its responses, and Anthropic's. What is not said stays."""
    cached = max(
        count(found.get("cache_read_input_tokens")),
        _detail(found, "prompt_tokens_details", "cached_tokens"),
        _detail(found, "input_tokens_details", "cached_tokens"),
        count(found.get("prompt_cache_hit_tokens")),
    )
    usage.cached_tokens = cached or usage.cached_tokens
    usage.reasoning_tokens = (
        max(
            _detail(found, "completion_tokens_details", "reasoning_tokens"),
            _detail(found, "output_tokens_details", "reasoning_tokens"),
        )
        or usage.reasoning_tokens
    )
    _read_completion(found, usage)
    _read_prompt(found, usage)
    if isinstance(seconds := found.get("seconds", found.get("duration")), int | float):
        usage.audio_seconds = float(seconds)


def count(value: object) -> int:
    """A number of tokens as an engine wrote it; anything else is none."""
    if type(value) is int and 0 <= value <= _MOST:
        return value
    return 0


def wav_seconds(head: bytes, size: int) -> float:
    """How long a WAV file of ``size`` bytes plays, by its first 44 bytes; 0: it is none."""
    if len(head) < _WAV_HEAD or head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return 0.0
    rate = int.from_bytes(head[28:32], "little")
    return max(size - _WAV_HEAD, 0) / rate if rate else 0.0


def _read_completion(found: Mapping[str, Any], usage: Usage) -> None:
    written = found.get("completion_tokens", found.get("output_tokens"))
    if written is None:
        return
    usage.completion_tokens = count(written)
    said = (count(found.get("total_tokens")), count(found.get("prompt_tokens")) + usage.completion_tokens)
    if usage.reasoning_tokens and said[0] == said[1] + usage.reasoning_tokens:
        usage.completion_tokens += usage.reasoning_tokens  # some count it apart


def _read_prompt(found: Mapping[str, Any], usage: Usage) -> None:
    if "prompt_tokens" in found:
        usage.prompt_tokens = count(found["prompt_tokens"])
    elif "input_tokens" in found:  # Anthropic does not count cached ones among them
        usage.prompt_tokens = sum(
            count(found.get(name))
            for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        )
    elif "total_tokens" in found:
        usage.prompt_tokens = max(count(found["total_tokens"]) - usage.completion_tokens, 0)


def _detail(found: Mapping[str, Any], group: str, name: str) -> int:
    details = found.get(group)
    return count(details.get(name)) if isinstance(details, dict) else 0


def _object(data: bytes, at: int) -> dict[str, Any] | None:
    while data[at : at + 1] == b" ":
        at += 1
    if data[at : at + 1] != b"{" or (end := end_of_object(data, at)) < 0:
        return None
    try:
        found: dict[str, Any] = orjson.loads(data[at:end])
    except orjson.JSONDecodeError:
        return None
    return found
