"""The items of a conversation as the messages of a chat."""

from typing import Any

from api.gateway.conversion import Document
from api.gateway.refusals import shown
from api.gateway.responses.content import Content, content, plain_text
from api.gateway.responses.fields import array_or_empty, at, mapping, missing, one_of, refuse, text, text_or_none

_ROLES = ("user", "assistant", "system", "developer")
_SYSTEM = frozenset({"system", "developer"})


def messages(instructions: str | None, items: list[Any], history: int = 0) -> list[Document]:
    """``items``: of them so many first ones come from earlier responses, and not from this request.

    What the system says first is one message, since many models' templates know no second one. What the assistant
    thought, said and called in one turn is one message, too. Raises ``Refusal``.
    """
    turn = _Turns(instructions)
    for i, item in enumerate(items):
        _add(turn, item, "previous_response_id" if i < history else at("input", i - history))
    return turn.done()


class _Turns:
    """Messages so far."""

    def __init__(self, instructions: str | None) -> None:
        self._system = [instructions] if instructions else []
        self._messages: list[Document] = []
        self._assistant: Document | None = None
        """The last message, while the assistant's turn may still go on."""

    def system(self, said: str) -> None:
        if self._messages:
            self.other({"role": "system", "content": said})
        else:
            self._system.append(said)

    def other(self, message: Document) -> None:
        self._assistant = None
        self._messages.append(message)

    def says(self, said: str) -> None:
        turn = self._turn()
        if turn["content"] is not None or "tool_calls" in turn:
            self._assistant = None
            turn = self._turn()
        turn["content"] = said

    def thinks(self, thought: str) -> None:
        turn = self._turn()
        if turn["content"] is not None or "tool_calls" in turn:
            self._assistant = None
            turn = self._turn()
        turn["reasoning_content"] = turn.get("reasoning_content", "") + thought

    def calls(self, call: Document) -> None:
        self._turn().setdefault("tool_calls", []).append(call)

    def done(self) -> list[Document]:
        if not self._system:
            return self._messages
        return [{"role": "system", "content": "\n\n".join(self._system)}, *self._messages]

    def _turn(self) -> Document:
        if self._assistant is None:
            self._assistant = {"role": "assistant", "content": None}
            self._messages.append(self._assistant)
        return self._assistant


def _add(turn: _Turns, value: Any, param: str) -> None:
    item = mapping(value, param)
    kind = item.get("type", "message" if "role" in item else None)
    if kind == "message":
        _message(turn, item, param)
    elif kind == "function_call":
        turn.calls(_call(item, param))
    elif kind == "function_call_output":
        turn.other(_result(item, param))
    elif kind == "reasoning":
        if thought := _thought(item, param):
            turn.thinks(thought)
    else:
        _refuse_item(item, kind, param)


def _refuse_item(item: Document, kind: Any, param: str) -> None:
    if kind is None:
        missing(f"{param}.type", "Name what the item is, such as 'message'.")
    if kind == "item_reference":
        refuse(
            f"{param}.id", f"refers to '{shown(str(item.get('id')))}', which is not stored here. Send the item itself."
        )
    known = "'message', 'function_call', 'function_call_output' and 'reasoning'"
    refuse(f"{param}.type", f"is '{shown(str(kind))}', which the model cannot read. It reads {known}: leave it out.")


def _message(turn: _Turns, item: Document, param: str) -> None:
    role = one_of(item.get("role"), f"{param}.role", _ROLES)
    if item.get("content") is None:
        missing(f"{param}.content", "It may be a string, or an array of parts.")
    if role in _SYSTEM:
        turn.system(plain_text(item["content"], f"{param}.content", "\n"))
    elif role == "assistant":
        turn.says(plain_text(item["content"], f"{param}.content"))
    else:
        turn.other({"role": "user", "content": content(item["content"], f"{param}.content")})


def _call(item: Document, param: str) -> Document:
    name = text(item.get("name"), f"{param}.name")
    arguments = text(item.get("arguments"), f"{param}.arguments")
    return {
        "id": text(item.get("call_id"), f"{param}.call_id"),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _result(item: Document, param: str) -> Document:
    if item.get("output") is None:
        missing(f"{param}.output", "It may be a string, or an array of parts.")
    output: Content = content(item["output"], f"{param}.output")
    if isinstance(output, list) and all(part["type"] == "text" for part in output):
        output = "\n".join(part["text"] for part in output)
    return {"role": "tool", "tool_call_id": text(item.get("call_id"), f"{param}.call_id"), "content": output}


def _thought(item: Document, param: str) -> str:
    """What the model thought; of a response that was asked for summaries these are all of it."""
    for name in ("content", "summary"):
        parts = array_or_empty(item.get(name), f"{param}.{name}")
        said = (mapping(part, at(f"{param}.{name}", i)).get("text") for i, part in enumerate(parts))
        if thought := "".join(text_or_none(value, f"{param}.{name}[{i}].text") or "" for i, value in enumerate(said)):
            return thought
    return ""
