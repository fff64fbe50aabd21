"""A request to Anthropic's Messages API as one for chat completions."""

from typing import Any

from api.gateway.anthropic.messages import Dialect, chat_messages, is_continued
from api.gateway.anthropic.tools import to_choice, to_functions
from api.gateway.anthropic.wrong import Wrong, inside
from api.gateway.conversion import Document

_SAID_OTHERWISE = frozenset(
    {
        "system",
        "messages",
        "max_tokens",
        "stop_sequences",
        "tools",
        "tool_choice",
        "metadata",
        "thinking",
        "output_config",
        "output_format",
    }
)
_MEANS_NOTHING = frozenset(
    {
        "service_tier",
        "cache_control",
        "context_management",
        "inference_geo",
        "diagnostics",
        "speed",
        "betas",
        "anthropic_version",
        "anthropic_beta",
    }
)
"""How Anthropic's own service is run; the answer is the same without."""
_ONLY_THERE = ("container", "mcp_servers")
"""What Anthropic's own service would do on the way to the answer."""
_ENGINES_OWN = frozenset({"top_k"})
"""Fields that OpenAI's API refuses."""
_EFFORTS = ((2048, "low"), (8192, "medium"))
"""Budgets of thinking tokens up to which an effort is meant; above: high."""


def chat_request(document: Document, dialect: Dialect) -> Document:
    """Fields that neither API knows are kept. Raises ``Wrong``."""
    _refuse_what_is_only_there(document)
    dropped = _SAID_OTHERWISE | _MEANS_NOTHING | (_ENGINES_OWN if dialect == "openai" else frozenset())
    chat = {name: value for name, value in document.items() if name not in dropped}
    chat["messages"] = chat_messages(document.get("system"), document.get("messages"), dialect)
    _limit(chat, document, dialect)
    _offer_tools(chat, document, dialect)
    _think(chat, document, dialect)
    _shape(chat, document)
    if user := _user(document):
        chat["user"] = user
    if document.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    return chat


def _refuse_what_is_only_there(document: Document) -> None:
    for name in _ONLY_THERE:
        if document.get(name):
            raise Wrong("works in Anthropic's own service only. Leave it out.", name)


def _limit(chat: Document, document: Document, dialect: Dialect) -> None:
    limit = document.get("max_tokens")
    if limit is not None:
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            raise Wrong("must be a whole number of tokens.", "max_tokens")
        # 0 asks Anthropic to fill its cache only; the least that an engine can write is one token.
        chat["max_tokens" if dialect == "engine" else "max_completion_tokens"] = max(limit, 1)
    if document.get("stop_sequences"):
        chat["stop"] = document["stop_sequences"]
    if dialect == "engine" and is_continued(chat["messages"]):
        chat.setdefault("continue_final_message", True)
        chat.setdefault("add_generation_prompt", False)


def _offer_tools(chat: Document, document: Document, dialect: Dialect) -> None:
    if not document.get("tools"):
        return
    chat["tools"] = to_functions(document["tools"])
    choice = inside(document, "tool_choice") if document.get("tool_choice") is not None else {}
    if choice:
        try:
            chat["tool_choice"] = to_choice(choice)
        except Wrong as wrong:
            raise wrong.under("tool_choice") from None
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False
    elif dialect == "engine":
        # llama.cpp writes one call at most unless it is told.
        chat.setdefault("parallel_tool_calls", True)


def _think(chat: Document, document: Document, dialect: Dialect) -> None:
    """Each engine reads of these what it knows, and passes over the rest.

    chat_template_kwargs: vLLM, SGLang, llama.cpp; how it is switched depends on the model's template (Qwen, GLM:
    enable_thinking; DeepSeek, Granite: thinking). thinking_budget_tokens: llama.cpp. reasoning_effort: all, gpt-oss
    by it alone. vLLM's thinking_token_budget is not sent: a server that was not set up for it fails the request.
    """
    config = _object(document, "thinking")
    effort = _object(document, "output_config").get("effort")
    match config.get("type"):
        case "disabled":
            _switch(chat, dialect, thinks=False)
        case "enabled" | "adaptive" | "between_tools":
            _switch(chat, dialect, thinks=True)
            meant = _budget(chat, config.get("budget_tokens"), dialect)
            effort = effort or meant
        case None if chat.get("continue_final_message"):
            # Neither Anthropic nor llama.cpp thinks before it goes on with a begun answer.
            _switch(chat, dialect, thinks=False)
        case None:
            pass
        case _:
            raise Wrong("must be 'enabled', 'adaptive', 'between_tools' or 'disabled'.", "thinking.type")
    if effort:
        chat.setdefault("reasoning_effort", effort)


def _switch(chat: Document, dialect: Dialect, *, thinks: bool) -> None:
    if dialect == "engine":
        own = _object(chat, "chat_template_kwargs")
        chat["chat_template_kwargs"] = {"enable_thinking": thinks, "thinking": thinks} | own


def _budget(chat: Document, budget: Any, dialect: Dialect) -> str | None:
    """The effort that such a budget means."""
    if budget is None:
        return None
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
        raise Wrong("must be a whole number of tokens above 0.", "thinking.budget_tokens")
    if dialect == "engine":
        chat["chat_template_kwargs"].setdefault("thinking_budget", budget)
        chat.setdefault("thinking_budget_tokens", budget)
    return next((effort for most, effort in _EFFORTS if budget <= most), "high")


def _shape(chat: Document, document: Document) -> None:
    form = _object(document, "output_config").get("format") or document.get("output_format")
    if form is None:
        return
    if not isinstance(form, dict) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise Wrong("must be {'type': 'json_schema', 'schema': {…}}.", "output_config.format")
    schema = {"name": "answer", "schema": form["schema"], "strict": True}
    chat.setdefault("response_format", {"type": "json_schema", "json_schema": schema})


def _user(document: Document) -> str | None:
    user = _object(document, "metadata").get("user_id")
    return user if isinstance(user, str) and user else None


def _object(document: Document, name: str) -> Document:
    return inside(document, name) if document.get(name) is not None else {}
