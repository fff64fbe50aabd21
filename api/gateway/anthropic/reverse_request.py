"""A request for chat completions as one to Anthropic's Messages API."""

from typing import Any

from api.gateway.anthropic.reverse_messages import told
from api.gateway.anthropic.tools import from_choice, from_functions
from api.gateway.anthropic.wrong import Wrong
from api.gateway.conversion import Document

_SAID_OTHERWISE = frozenset(
    {
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "stream_options",
        "response_format",
        "reasoning_effort",
        "temperature",
        "user",
        "safety_identifier",
        "metadata",
        "n",
        "logprobs",
        "modalities",
    }
)
_MEANS_NOTHING = frozenset(
    {
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "seed",
        "top_logprobs",
        "store",
        "prediction",
        "service_tier",
        "verbosity",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "chat_template_kwargs",
    }
)
"""Wishes that Anthropic has no field for, and passes over in its own layer for OpenAI's clients."""
_NOT_THERE = ("functions", "function_call", "audio", "web_search_options", "moderation")
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}


def messages_request(document: Document, max_tokens: int) -> Document:
    """``max_tokens``: where the request sets none. Fields that neither API knows are kept. Raises ``Wrong``."""
    _refuse_what_is_not_there(document)
    found = {k: v for k, v in document.items() if k not in _SAID_OTHERWISE and k not in _MEANS_NOTHING}
    system, found["messages"] = told(document.get("messages"))
    if not found["messages"]:
        raise Wrong("must hold a message of the user that is not empty.", "messages")
    if system:
        found["system"] = system
    found["max_tokens"] = document.get("max_completion_tokens") or document.get("max_tokens") or max_tokens
    _sample(found, document)
    _offer_tools(found, document)
    _shape(found, document)
    user = document.get("safety_identifier") or document.get("user")
    if user:
        found["metadata"] = {"user_id": user}
    return found


def _refuse_what_is_not_there(document: Document) -> None:
    if document.get("n") not in (None, 1):
        raise Wrong("must be 1: the provider of this model gives one answer to a request. Send several.", "n")
    if document.get("logprobs"):
        raise Wrong("cannot be had from the provider of this model. Leave it out.", "logprobs")
    if document.get("modalities") not in (None, ["text"]):
        raise Wrong("must be ['text'] with the provider of this model.", "modalities")
    for name in _NOT_THERE:
        if document.get(name):
            raise Wrong("is not known to the provider of this model. Leave it out; functions go into 'tools'.", name)


def _sample(found: Document, document: Document) -> None:
    temperature = document.get("temperature")
    if isinstance(temperature, int | float):
        # OpenAI's scale goes to 2; above 1 Anthropic refuses.
        found["temperature"] = min(temperature, 1)
    stop = document.get("stop")
    if stop:
        found["stop_sequences"] = [stop] if isinstance(stop, str) else stop


def _offer_tools(found: Document, document: Document) -> None:
    if not document.get("tools"):
        return
    found["tools"] = from_functions(document["tools"])
    choice = document.get("tool_choice")
    if choice is not None:
        found["tool_choice"] = from_choice(choice)
    if document.get("parallel_tool_calls") is False and choice != "none":
        found.setdefault("tool_choice", {"type": "auto"})["disable_parallel_tool_use"] = True


def _shape(found: Document, document: Document) -> None:
    config: Document = {}
    effort = document.get("reasoning_effort")
    if effort == "none":
        found.setdefault("thinking", {"type": "disabled"})
    elif effort is not None:
        config["effort"] = _effort(effort)
    if form := _format(document.get("response_format")):
        config["format"] = form
    if config:
        own = document.get("output_config")
        found["output_config"] = config | own if isinstance(own, dict) else config


def _effort(effort: Any) -> str:
    if not isinstance(effort, str) or effort not in _EFFORTS:
        raise Wrong("must be 'none', 'minimal', 'low', 'medium', 'high', 'xhigh' or 'max'.", "reasoning_effort")
    return _EFFORTS[effort]


def _format(form: Any) -> Document | None:
    match form:
        case None | {"type": "text"}:
            return None
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return {"type": "json_schema", "schema": schema}
    raise Wrong(
        "must be {'type': 'json_schema', 'json_schema': {'name': …, 'schema': {…}}} with the provider of this model.",
        "response_format",
    )
