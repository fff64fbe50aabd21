"""A conversation in Anthropic's messages as one in chat messages."""

from typing import Any, Literal

import orjson

from api.gateway.anthropic.blocks import Parts, content_parts, parts_of, text_of, text_part
from api.gateway.anthropic.wrong import Wrong, each, string
from api.gateway.conversion import Document

Dialect = Literal["engine", "openai"]
"""``engine``: vLLM, SGLang, llama.cpp, which take fields of their own. ``openai``: OpenAI's API, which refuses them."""

_ATTRIBUTION = "x-anthropic-billing-header"
"""A block of the system prompt that differs in every request; it would keep engines from reusing the prompt."""


def chat_messages(system: Any, messages: Any, dialect: Dialect) -> list[Document]:
    """Raises ``Wrong`` naming the block that cannot be said."""
    talk = _Talk(dialect)
    if system:
        talk.instruct("system", system)
    each("messages", messages, talk.add)
    if not messages:
        raise Wrong("must hold at least one message.", "messages")
    return talk.done()


def is_continued(messages: list[Document]) -> bool:
    """The last message is the beginning of the answer."""
    return messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]


class _Talk:
    """Consecutive messages of one role become one, as Anthropic reads them and many chat templates demand."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._instructions: list[str] = []
        self._said: list[Document] = []
        self._turn: _UserTurn | _AssistantTurn | None = None

    def add(self, message: Document) -> None:
        match message.get("role"):
            case "user":
                self._add_to(_UserTurn, message.get("content"))
            case "assistant":
                self._add_to(_AssistantTurn, message.get("content"))
            case "system":
                self._interject(message.get("content"))
            case _:
                raise Wrong("must be 'user', 'assistant' or 'system'.", "role")

    def instruct(self, name: str, content: Any) -> None:
        self._instructions.extend(_instructions(name, content))

    def done(self) -> list[Document]:
        self._end_turn()
        head = [{"role": "system", "content": "\n\n".join(self._instructions)}] if self._instructions else []
        return head + self._said

    def _add_to(self, kind: "type[_UserTurn | _AssistantTurn]", content: Any) -> None:
        if not isinstance(self._turn, kind):
            self._end_turn()
            self._turn = kind(self._dialect)
        if isinstance(content, str):
            self._turn.add(text_part(content))
        else:
            each("content", content, self._turn.add)

    def _interject(self, content: Any) -> None:
        # Most chat templates take instructions only at the beginning, and fail elsewhere.
        if self._dialect == "engine":
            return self.instruct("content", content)
        self._end_turn()
        self._said.extend({"role": "system", "content": text} for text in _instructions("content", content))
        return None

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._said.extend(self._turn.messages())
            self._turn = None


class _UserTurn:
    def __init__(self, dialect: Dialect) -> None:
        self._results: list[Document] = []
        self._shown: Parts = []
        """Images of results: the message of a tool can hold text only."""
        self._parts: Parts = []

    def add(self, block: Document) -> None:
        if block.get("type") == "tool_result":
            self._add_result(block)
        else:
            self._parts.extend(part for part in parts_of(block) if part.get("text") != "")

    def messages(self) -> list[Document]:
        parts = self._shown + self._parts
        if not parts:
            return self._results or [{"role": "user", "content": ""}]
        plain = len(parts) == 1 and parts[0]["type"] == "text"
        return [*self._results, {"role": "user", "content": parts[0]["text"] if plain else parts}]

    def _add_result(self, block: Document) -> None:
        call = string(block, "tool_use_id")
        parts = content_parts(block.get("content") or "")
        text = text_of(parts)
        if block.get("is_error"):
            text = f"Error: {text}"
        self._results.append({"role": "tool", "tool_call_id": call, "content": text})
        images = [part for part in parts if part["type"] != "text"]
        if images:
            self._shown += [text_part(f"Images in the result of the tool call {call}:"), *images]


class _AssistantTurn:
    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._sealed: list[Document] = []
        """Thoughts that only Anthropic can check or read: kept as they are."""
        self._calls: list[Document] = []

    def add(self, block: Document) -> None:
        match block.get("type"):
            case "text":
                self._texts.append(string(block, "text"))
            case "thinking":
                self._think(block)
            case "redacted_thinking":
                self._sealed.append(block)
            case "tool_use":
                self._calls.append(_call(block))
            case kind:
                raise Wrong(
                    f"is {kind!r}; a message of the assistant holds text, thinking and tool_use here.",
                    "type",
                )

    def messages(self) -> list[Document]:
        text = "".join(self._texts)
        message: Document = {"role": "assistant", "content": text or (None if self._calls else "")}
        if self._calls:
            message["tool_calls"] = self._calls
        if self._dialect == "engine":
            self._add_thoughts(message)
        return [message]

    def _think(self, block: Document) -> None:
        self._thoughts.append(string(block, "thinking"))
        if block.get("signature"):
            self._sealed.append(block)

    def _add_thoughts(self, message: Document) -> None:
        if self._thoughts:
            # vLLM reads the first, the others the second.
            message["reasoning"] = message["reasoning_content"] = "\n".join(self._thoughts)
        if self._sealed:
            message["thinking_blocks"] = self._sealed


def _call(block: Document) -> Document:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise Wrong("must be an object.", "input")
    function = {"name": string(block, "name"), "arguments": orjson.dumps(arguments).decode()}
    return {"id": string(block, "id"), "type": "function", "function": function}


def _instructions(name: str, content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    texts: list[str] = []
    each(name, content, lambda block: texts.append(_instruction(block)))
    return [text for text in texts if text and not text.startswith(_ATTRIBUTION)]


def _instruction(block: Document) -> str:
    if block.get("type") != "text":
        raise Wrong("must be 'text'; instructions are text.", "type")
    return string(block, "text")
