"""What a prompt begins with, as numbers: engines keep the work that they did on a beginning, and it is worth meeting
the same engine again. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any
from zlib import crc32

LONGEST = 16 << 10
"""Bytes that are looked at."""
ENDS = (128, 256, *range(512, LONGEST + 1, 512))
"""Where blocks end, in bytes: short prompts have blocks to share too."""
_UNCACHED = ("embeddings", "rerank", "score", "moderations", "audio", "images")
"""Operations for which engines keep nothing of a prompt."""


def hashes(document: Mapping[str, Any], operation: str) -> tuple[int, ...]:
    """One for each whole block of the prompt's beginning, over all up to its end; the same in every process.

    A prompt that goes on where another ended has all hashes of that one. Of a prompt without a whole block there is one
    hash, over all of it. Empty: there is no text, or it is an operation that leaves nothing in an engine.
    ``operation``: its name or path, such as ``chat/completions``.
    """
    if operation.removeprefix("/v1/").startswith(_UNCACHED):
        return ()
    text = _beginning(document)
    if not text:
        return ()
    if len(text) < ENDS[0]:
        return (crc32(text) | len(text) << 40,)
    found = []
    start = crc = 0
    for end in ENDS:
        if end > len(text):
            break
        crc = crc32(text[start:end], crc)
        found.append(crc | end << 40)
        start = end
    return tuple(found)


def share(blocks: int, of: int) -> float:
    """How much of what is known of a prompt with ``of`` blocks its first ``blocks`` are; 0 to 1."""
    return ENDS[blocks - 1] / ENDS[of - 1] if blocks else 0.0


def _beginning(document: Mapping[str, Any]) -> bytes:
    parts: list[str] = []
    room = LONGEST
    for part in _parts(document):
        if len(part) >= room:
            parts.append(part[:room])
            break
        parts.append(part)
        room -= len(part)
    return "".join(parts).encode("utf-8", "surrogatepass")[:LONGEST]


def _parts(document: Mapping[str, Any]) -> Iterator[str]:
    """In the order in which templates put them: tools, then what the system says, then the messages."""
    tools = document.get("tools")
    if isinstance(tools, list):
        yield from _names(tools)
    for field in ("system", "instructions", "prompt", "input", "messages"):
        value = document.get(field)
        if value:
            yield from _texts(value)


def _names(tools: list[Any]) -> Iterator[str]:
    for tool in tools:
        if isinstance(tool, dict):
            function = tool.get("function")
            name = function.get("name") if isinstance(function, dict) else tool.get("name")
            if isinstance(name, str):
                yield name + "\n"


def _texts(value: Any) -> Iterator[str]:
    """Of a string, a message, a part of one, token ids, or a list of these."""
    if isinstance(value, str):
        yield value + "\n"
    elif isinstance(value, list):
        if value and type(value[0]) is int:
            yield repr(value[: LONGEST // 2])
            return
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        role = value.get("role")
        if isinstance(role, str):
            yield role + "\n"
        yield from _texts(value.get("content") or value.get("text"))
