"""Chat messages as a conversation in Anthropic's messages."""

from typing import Any

from api.gateway.anthropic.blocks import text_part
from api.gateway.anthropic.tools import arguments_of
from api.gateway.anthropic.wrong import Wrong, each, inside, string
from api.gateway.conversion import Document

_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
"""Characters of an id of a tool use."""


def told(messages: Any) -> tuple[str, list[Document]]:
    """The instructions, and the conversation. Raises ``Wrong``."""
    talk = _Talk()
    each("messages", messages, talk.add)
    talk.trim_the_beginning_of_the_answer()
    return "\n\n".join(talk.instructions), talk.messages


class _Talk:
    """Messages of one role that follow each other become one; results of tools are the user's."""

    def __init__(self) -> None:
        self.instructions: list[str] = []
        self.messages: list[Document] = []

    def add(self, message: Document) -> None:
        match message.get("role"):
            case "system" | "developer":
                text = "".join(part["text"] for part in _parts(message.get("content"), _text_only))
                self.instructions.extend([text] if text else [])
            case "user":
                self._say("user", _parts(message.get("content"), _block))
            case "assistant":
                self._say("assistant", _answer(message))
            case "tool":
                self._say("user", [_result(message)])
            case _:
                raise Wrong("must be 'system', 'developer', 'user', 'assistant' or 'tool'.", "role")

    def trim_the_beginning_of_the_answer(self) -> None:
        """Anthropic refuses a last message of the assistant that ends in white space."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            return
        blocks = self.messages[-1]["content"]
        while blocks and blocks[-1]["type"] == "text":
            blocks[-1]["text"] = blocks[-1]["text"].rstrip()
            if blocks[-1]["text"]:
                return
            blocks.pop()
        if not blocks:
            self.messages.pop()

    def _say(self, role: str, blocks: list[Document]) -> None:
        if not blocks:
            return
        if self.messages and self.messages[-1]["role"] == role:
            self.messages[-1]["content"] += blocks
        else:
            self.messages.append({"role": role, "content": blocks})


def _answer(message: Document) -> list[Document]:
    kept = message.get("thinking_blocks")
    blocks = [block for block in kept if isinstance(block, dict)] if isinstance(kept, list) else []
    blocks += _parts(message.get("content") or "", _block)
    if message.get("tool_calls"):
        each("tool_calls", message["tool_calls"], lambda call: blocks.append(_use(call)))
    return blocks


def _use(call: Document) -> Document:
    if call.get("type", "function") != "function":
        raise Wrong("must be 'function'.", "type")
    function = inside(call, "function")
    use = {"type": "tool_use", "id": _use_id(string(call, "id"))}
    try:
        use["name"] = string(function, "name")
    except Wrong as wrong:
        raise wrong.under("function") from None
    return use | {"input": arguments_of(function.get("arguments"))}


def _result(message: Document) -> Document:
    content = message.get("content")
    found: Document = {"type": "tool_result", "tool_use_id": _use_id(string(message, "tool_call_id"))}
    return found | {"content": content if isinstance(content, str) else _parts(content, _block)}


def _use_id(text: str) -> str:
    if _ALLOWED.issuperset(text):
        return text
    return "".join(character if character in _ALLOWED else "_" for character in text)


def _parts(content: Any, convert: Any) -> list[Document]:
    """Anthropic takes no empty text."""
    if isinstance(content, str):
        return [text_part(content)] if content else []
    blocks: list[Document] = []
    each("content", content, lambda part: blocks.extend(convert(part)))
    return blocks


def _text_only(part: Document) -> list[Document]:
    if part.get("type") != "text":
        raise Wrong("must be 'text'; instructions are text.", "type")
    return [text_part(string(part, "text"))]


def _block(part: Document) -> list[Document]:
    match part.get("type"):
        case "text" | "refusal" as kind:
            text = string(part, kind)
            return [text_part(text)] if text else []
        case "image_url":
            return [{"type": "image", "source": _source(string(inside(part, "image_url"), "url"))}]
        case "file":
            return [_file(inside(part, "file"))]
    raise Wrong(
        f"is {part.get('type')!r}, which the provider of this model cannot read. Known are text, image_url and file.",
        "type",
    )


def _source(url: str) -> Document:
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    kind, comma, data = url[5:].partition(";base64,")
    if not comma:
        raise Wrong("must be an http(s) URL, or 'data:<media type>;base64,<data>'.", "image_url.url")
    return {"type": "base64", "media_type": kind, "data": data}


def _file(file: Document) -> Document:
    data = file.get("file_data")
    if not isinstance(data, str) or not data.startswith("data:application/pdf;base64,"):
        raise Wrong("must be 'data:application/pdf;base64,<data>'; files by id cannot be read here.", "file.file_data")
    block: Document = {"type": "document", "source": _source(data)}
    return block | {"title": file["filename"]} if file.get("filename") else block
