"""Anthropic's content blocks as the parts of chat messages."""

import base64
import binascii
from typing import Any

from api.gateway.anthropic.wrong import Wrong, each, inside, string
from api.gateway.conversion import Document

Parts = list[Document]

_SEND_ELSE = "Send its text, or its pages as images."


def text_part(text: str) -> Document:
    return {"type": "text", "text": text}


def parts_of(block: Document) -> Parts:
    """What a block of a user's message, or of a tool's result, is for an engine.

    Raises ``Wrong`` for what only Anthropic can read.
    """
    match block.get("type"):
        case "text":
            return [text_part(string(block, "text"))]
        case "image":
            return [{"type": "image_url", "image_url": {"url": _image_url(inside(block, "source"))}}]
        case "document":
            return _document(block)
        case "search_result":
            return [text_part(_search_result(block))]
        case "tool_reference":
            return [text_part(string(block, "tool_name"))]
    raise Wrong(
        f"is '{block.get('type')}', which the engine of this model cannot read. "
        "Known are text, image, document, search_result, tool_use, tool_result and thinking.",
        "type",
    )


def content_parts(content: Any) -> Parts:
    """Of ``content`` that is a text or a list of blocks."""
    if isinstance(content, str):
        return [text_part(content)] if content else []
    parts: Parts = []
    each("content", content, lambda block: parts.extend(parts_of(block)))
    return parts


def text_of(parts: Parts) -> str:
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


def _image_url(source: Document) -> str:
    match source.get("type"):
        case "base64":
            return f"data:{_inside_source(source, 'media_type')};base64,{_inside_source(source, 'data')}"
        case "url":
            return _inside_source(source, "url")
    raise Wrong("must be 'base64' or 'url'; files that were uploaded to Anthropic cannot be read here.", "source.type")


def _document(block: Document) -> Parts:
    parts = _with_title(block, _document_parts(inside(block, "source")))
    return [part for part in parts if part["type"] != "text" or part["text"]]


def _document_parts(source: Document) -> Parts:
    match source.get("type"):
        case "text":
            return [text_part(_inside_source(source, "data"))]
        case "content":
            try:
                return content_parts(source.get("content"))
            except Wrong as wrong:
                raise wrong.under("source") from None
        case "base64" if str(source.get("media_type")).startswith("text/"):
            return [text_part(_decoded(_inside_source(source, "data")))]
        case "base64":
            raise Wrong(
                f"is {source.get('media_type')!r}, which engines cannot read. {_SEND_ELSE}", "source.media_type"
            )
    raise Wrong(f"is {source.get('type')!r}: a document elsewhere cannot be read here. {_SEND_ELSE}", "source.type")


def _with_title(block: Document, parts: Parts) -> Parts:
    above = [text for name in ("title", "context") if isinstance(text := block.get(name), str) and text]
    return [text_part("\n".join(above)), *parts] if above else parts


def _search_result(block: Document) -> str:
    text = text_of(content_parts(block.get("content")))
    return f"{string(block, 'title')} ({string(block, 'source')})\n{text}"


def _decoded(data: str) -> str:
    try:
        return base64.b64decode(data, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise Wrong("must be text in UTF-8, as base64.", "source.data") from error


def _inside_source(source: Document, name: str) -> str:
    try:
        return string(source, name)
    except Wrong as wrong:
        raise wrong.under("source") from None
