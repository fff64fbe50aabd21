"""What a request asks for beside its conversation: tools, formats, limits, as chat completions call them."""

from typing import Any

from api.gateway.conversion import Document
from api.gateway.refusals import shown
from api.gateway.responses.fields import (
    array,
    array_or_empty,
    at,
    flag,
    mapping,
    mapping_or_empty,
    one_of,
    refuse,
    text,
    text_or_none,
)

_OWN = frozenset(
    {
        "access_programs",
        "background",
        "context_management",
        "conversation",
        "image",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "messages",
        "metadata",
        "moderation",
        "n",
        "parallel_tool_calls",
        "previous_response_id",
        "prompt",
        "prompt_cache_options",
        "reasoning",
        "store",
        "stream_options",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "truncation",
    }
)
"""Not passed on under these names, or not at all. Everything else is: an engine may know it."""
_CHOICES = ("none", "auto", "required")
_LOGPROBS = "message.output_text.logprobs"


def chat_fields(document: Document) -> Document:
    """Of the request to chat completions all but ``messages``. Raises ``Refusal``."""
    chat = {name: value for name, value in document.items() if name not in _OWN and value is not None}
    _limits(chat, document)
    _formats(chat, document)
    _tools(chat, document)
    if chat.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    return chat


def _limits(chat: Document, document: Document) -> None:
    if document.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = document["max_output_tokens"]
    top = document.get("top_logprobs")
    if top is not None and (isinstance(top, bool) or not isinstance(top, int)):
        refuse("top_logprobs", "must be a whole number.", "invalid_type")
    if top or _LOGPROBS in array_or_empty(document.get("include"), "include"):
        chat["logprobs"] = True
        chat["top_logprobs"] = top or 0


def _formats(chat: Document, document: Document) -> None:
    asked = mapping_or_empty(document.get("text"), "text")
    if (verbosity := text_or_none(asked.get("verbosity"), "text.verbosity")) is not None:
        chat["verbosity"] = verbosity
    if (form := response_format(mapping_or_empty(asked.get("format"), "text.format"))) is not None:
        chat["response_format"] = form
    reasoning = mapping_or_empty(document.get("reasoning"), "reasoning")
    if (effort := text_or_none(reasoning.get("effort"), "reasoning.effort")) is not None:
        chat["reasoning_effort"] = effort


def response_format(form: Document) -> Document | None:
    """None: plain text."""
    kind = one_of(form.get("type", "text"), "text.format.type", ("text", "json_object", "json_schema"))
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    schema: Document = {
        "name": text(form.get("name"), "text.format.name"),
        "schema": mapping(form.get("schema"), "text.format.schema"),
    }
    schema |= {name: form[name] for name in ("strict", "description") if form.get(name) is not None}
    return {"type": "json_schema", "json_schema": schema}


def _tools(chat: Document, document: Document) -> None:
    tools = [_tool(tool, at("tools", i)) for i, tool in enumerate(array_or_empty(document.get("tools"), "tools"))]
    choice = document.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        tools, choice = _allowed(choice, tools)
    if tools:
        chat["tools"] = tools
        if document.get("parallel_tool_calls") is not None:
            chat["parallel_tool_calls"] = flag(document["parallel_tool_calls"], "parallel_tool_calls", True)
    if choice is not None and (tools or choice not in ("none", "auto")):
        chat["tool_choice"] = _choice(choice)


def _tool(value: Any, param: str) -> Document:
    tool = mapping(value, param)
    kind = tool.get("type")
    if kind != "function":
        said = f"is '{shown(str(kind))}', which nothing here can run" if kind is not None else "is missing"
        refuse(f"{param}.type", f"{said}. Give a tool of type 'function', and run it in your program.")
    function = {"name": text(tool.get("name"), f"{param}.name")}
    function |= {name: tool[name] for name in ("description", "parameters", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return one_of(choice, "tool_choice", _CHOICES)
    asked = mapping(choice, "tool_choice")
    one_of(asked.get("type"), "tool_choice.type", ("function", "allowed_tools"))
    return {"type": "function", "function": {"name": text(asked.get("name"), "tool_choice.name")}}


def _allowed(choice: Document, tools: list[Document]) -> tuple[list[Document], str]:
    mode = one_of(choice.get("mode", "auto"), "tool_choice.mode", ("auto", "required"))
    names = set()
    for i, value in enumerate(array(choice.get("tools"), "tool_choice.tools")):
        param = at("tool_choice.tools", i)
        names.add(text(mapping(value, param).get("name"), f"{param}.name"))
    return [tool for tool in tools if tool["function"]["name"] in names], mode
