"""Tools and the choice among them, both ways."""

from typing import Any

import orjson

from api.gateway.anthropic.wrong import Wrong, each, inside, string
from api.gateway.conversion import Document

NOT_JSON = "INVALID_JSON"
"""Under this name Anthropic expects arguments that a model did not write as a JSON object."""


def arguments_of(text: Any) -> Document:
    """The input of a tool use, from the arguments of a call. Models write broken JSON at times; nothing is lost."""
    if not text:
        return {}
    if isinstance(text, dict):
        return text
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {NOT_JSON: str(text)}


def to_functions(tools: Any) -> list[Document]:
    """Anthropic's tools as OpenAI's. Raises ``Wrong`` for those that Anthropic runs or has trained in itself."""
    functions: list[Document] = []
    each("tools", tools, lambda tool: functions.append(_to_function(tool)))
    return functions


def from_functions(tools: Any) -> list[Document]:
    """OpenAI's tools as Anthropic's."""
    found: list[Document] = []
    each("tools", tools, lambda tool: found.append(_from_function(tool)))
    return found


def to_choice(choice: Document) -> Any:
    """``tool_choice`` as OpenAI has it."""
    match choice.get("type"):
        case "auto" | "none" as kind:
            return kind
        case "any":
            return "required"
        case "tool":
            return {"type": "function", "function": {"name": string(choice, "name")}}
    raise Wrong("must be 'auto', 'any', 'tool' or 'none'.", "type")


def from_choice(choice: Any) -> Document:
    """``tool_choice`` as Anthropic has it."""
    match choice:
        case "auto" | "none":
            return {"type": choice}
        case "required":
            return {"type": "any"}
        case {"type": "function", "function": {"name": str(name)}}:
            return {"type": "tool", "name": name}
    raise Wrong(
        "must be 'auto', 'none', 'required' or {'type': 'function', 'function': {'name': …}}; "
        "the provider of this model knows no other.",
        "tool_choice",
    )


def _to_function(tool: Document) -> Document:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise Wrong(
            f"is '{kind}', a tool of Anthropic's own that the engine of this model does not have. "
            "Leave it out, or describe a tool of yours with 'name' and 'input_schema'.",
            "type",
        )
    function: Document = {"name": string(tool, "name")}
    if tool.get("description"):
        function["description"] = tool["description"]
    function["parameters"] = inside(tool, "input_schema")
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}


def _from_function(tool: Document) -> Document:
    if tool.get("type", "function") != "function":
        raise Wrong("must be 'function'; the provider of this model takes no other tools.", "type")
    function = inside(tool, "function")
    try:
        found: Document = {"name": string(function, "name")}
    except Wrong as wrong:
        raise wrong.under("function") from None
    if function.get("description"):
        found["description"] = function["description"]
    found["input_schema"] = function.get("parameters") or {"type": "object", "properties": {}}
    if function.get("strict"):
        found["strict"] = True
    return found
