"""The parts of a message: from those of the Responses API to those of chat completions."""

import base64
from typing import Any

from api.gateway.conversion import Document
from api.gateway.responses.fields import array, at, mapping, missing, refuse, text

Content = str | list[Document]

_CHAT_OWN = frozenset({"image_url", "input_audio", "audio_url", "video_url"})
"""Parts that engines know beyond what the Responses API has: passed on as they are."""
_DETAILS = frozenset({"auto", "low", "high"})
_TEXT_TYPES = frozenset({"input_text", "output_text", "text", "summary_text", "reasoning_text"})


def content(value: Any, param: str) -> Content:
    """A string where there is but text in one piece: some engines know no other."""
    if isinstance(value, str):
        return value
    parts = [_part(part, at(param, i)) for i, part in enumerate(array(value, param))]
    if len(parts) == 1 and parts[0]["type"] == "text":
        only: str = parts[0]["text"]
        return only
    return parts


def plain_text(value: Any, param: str, joint: str = "") -> str:
    """Of content that can be nothing else, such as what the assistant or the system says."""
    if isinstance(value, str):
        return value
    return joint.join(_plain(part, at(param, i)) for i, part in enumerate(array(value, param)))


def _plain(value: Any, param: str) -> str:
    part = mapping(value, param)
    kind = part.get("type")
    if kind == "refusal":
        return text(part.get("refusal"), f"{param}.refusal")
    if kind not in _TEXT_TYPES:
        refuse(f"{param}.type", "must be text here: 'input_text', or 'output_text' where the assistant speaks.")
    return text(part.get("text"), f"{param}.text")


def _part(value: Any, param: str) -> Document:
    part = mapping(value, param)
    kind = part.get("type")
    if kind in _TEXT_TYPES:
        return {"type": "text", "text": text(part.get("text"), f"{param}.text")}
    if kind == "input_image":
        return _image(part, param)
    if kind == "input_file":
        return {"type": "text", "text": _file(part, param)}
    if kind is None:
        missing(f"{param}.type", "It may be 'input_text', 'input_image' or 'input_file'.")
    if kind not in _CHAT_OWN:
        refuse(f"{param}.type", "is not known. It may be 'input_text', 'input_image', 'input_audio' or 'input_file'.")
    return part


def _image(part: Document, param: str) -> Document:
    if part.get("image_url") is None:
        if part.get("file_id") is not None:
            refuse(f"{param}.file_id", "cannot be used. Send the image in 'image_url', as an https or a data URL.")
        missing(f"{param}.image_url", "Send an https or a data URL.")
    image = {"url": text(part["image_url"], f"{param}.image_url")}
    if part.get("detail") in _DETAILS:
        image["detail"] = part["detail"]
    return {"type": "image_url", "image_url": image}


def _file(part: Document, param: str) -> str:
    """Its text, under its name."""
    for name in ("file_id", "file_url"):
        if part.get(name) is not None:
            refuse(f"{param}.{name}", "cannot be used. Send the text of the file in 'file_data'.")
    if part.get("file_data") is None:
        missing(f"{param}.file_data", "Send the text of the file as a data URL, or in base64.")
    content_of = _decoded(text(part["file_data"], f"{param}.file_data"), f"{param}.file_data")
    filename = part.get("filename")
    return f"{filename}:\n{content_of}" if isinstance(filename, str) and filename else content_of


def _decoded(data: str, param: str) -> str:
    head, comma, rest = data.partition(",")
    packed = rest if comma and head.startswith("data:") else data
    if comma and head.startswith("data:") and not head.endswith(";base64"):
        refuse(param, "must be a data URL in base64: data:text/plain;base64,...")
    try:
        return base64.b64decode(packed, validate=True).decode()
    except ValueError:
        refuse(param, "must be a text file (UTF-8) in base64. The model reads no other files: send their text.")
