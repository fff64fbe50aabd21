"""The conversions of one request, as the gateway asks for them."""

import time
from collections.abc import Callable
from typing import Any

from api.gateway.anthropic.answer import message_answer
from api.gateway.anthropic.begun import beginning
from api.gateway.anthropic.count_tokens import count_answer, count_request
from api.gateway.anthropic.errors import openai_status, to_anthropic, to_openai
from api.gateway.anthropic.filter import Converted
from api.gateway.anthropic.messages import Dialect
from api.gateway.anthropic.request import chat_request
from api.gateway.anthropic.reverse_answer import Seen, chat_answer
from api.gateway.anthropic.reverse_request import messages_request
from api.gateway.anthropic.reverse_stream import ChatStream
from api.gateway.anthropic.stream import MessageStream
from api.gateway.anthropic.wrong import Wrong
from api.gateway.conversion import Document
from api.gateway.filters import Filter

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"


class MessagesToChat:
    """The client asks by Anthropic's ``/v1/messages``; the target speaks OpenAI's chat completions.

    Its ``model`` in the answer is the one that stood in the request. Usage is always asked for.
    """

    path = CHAT

    def __init__(self, dialect: Dialect = "engine") -> None:
        self._dialect: Dialect = dialect
        self._model = ""
        self._stops: frozenset[str] = frozenset()
        self._begun = ""

    def request(self, document: Document) -> Document:
        chat = _said(lambda: chat_request(document, self._dialect))
        self._model = str(document.get("model") or "")
        self._stops = frozenset(stop for stop in _texts(document.get("stop_sequences")))
        self._begun = beginning(chat["messages"])
        return chat

    def answer(self) -> Filter:
        return Converted(
            whole=lambda body: message_answer(body, self._model, self._stops, self._begun),
            stream=lambda: MessageStream(self._model, self._stops, self._begun),
            error=to_anthropic,
        )


class CountTokensToChat:
    """The client asks ``/v1/messages/count_tokens``: the engine counts them as it reads them, and writes one token."""

    path = CHAT

    def __init__(self, dialect: Dialect = "engine") -> None:
        self._dialect: Dialect = dialect

    def request(self, document: Document) -> Document:
        return _said(lambda: count_request(document, self._dialect))

    def answer(self) -> Filter:
        return Converted(whole=count_answer, error=to_anthropic)


class ChatToMessages:
    """The client asks by OpenAI's chat completions; the target speaks Anthropic's ``/v1/messages``.

    ``max_tokens``: for requests that set no limit, which Anthropic demands. ``clock``: says when an answer began,
    which Anthropic does not.
    """

    path = MESSAGES

    def __init__(self, *, max_tokens: int = 8192, clock: Callable[[], float] = time.time) -> None:
        self._max_tokens = max_tokens
        self._clock = clock
        self._model = ""
        self._with_usage = False

    def request(self, document: Document) -> Document:
        messages = _said(lambda: messages_request(document, self._max_tokens))
        self._model = str(document.get("model") or "")
        options = document.get("stream_options")
        self._with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        return messages

    def answer(self) -> Filter:
        seen = Seen(model=self._model, created=int(self._clock()))
        return Converted(
            whole=lambda body: chat_answer(body, seen),
            stream=lambda: ChatStream(seen, with_usage=self._with_usage),
            error=to_openai,
            status=openai_status,
        )


def _said(convert: Callable[[], Document]) -> Document:
    try:
        return convert()
    except Wrong as wrong:
        raise wrong.refusal() from wrong


def _texts(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
