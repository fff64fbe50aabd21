"""What clients can ask for: every path of the gateway that a model answers, and what is peculiar to it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class ModelIn(Enum):
    """Where a request names its model."""

    JSON = "json"
    FORM = "form"
    """A field of multipart/form-data."""


class Shape(Enum):
    """How errors look."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    COHERE = "cohere"


@dataclass(frozen=True, slots=True)
class Operation:
    name: str
    """As metrics and usage call it."""
    path: str
    """On engines."""
    model_in: ModelIn = ModelIn.JSON
    shape: Shape = Shape.OPENAI
    usage_in_stream: bool = False
    """A streamed answer tells its usage only if ``stream_options`` asks for it."""
    prefixed: bool = False
    """Its prompt is worth to be sent where others that begin alike went."""
    default_model: str = ""
    """For requests that name none; empty: they are refused."""


CHAT = Operation("chat.completions", "/v1/chat/completions", usage_in_stream=True, prefixed=True)
COMPLETIONS = Operation("completions", "/v1/completions", usage_in_stream=True, prefixed=True)
RESPONSES = Operation("responses", "/v1/responses", prefixed=True)
EMBEDDINGS = Operation("embeddings", "/v1/embeddings")
MESSAGES = Operation("messages", "/v1/messages", shape=Shape.ANTHROPIC, prefixed=True)
COUNT_TOKENS = Operation("messages.count_tokens", "/v1/messages/count_tokens", shape=Shape.ANTHROPIC)
RERANK = Operation("rerank", "/v1/rerank")
COHERE_RERANK = Operation("rerank", "/v1/rerank", shape=Shape.COHERE)
SCORE = Operation("score", "/v1/score")
MODERATIONS = Operation("moderations", "/v1/moderations")
REALTIME = Operation("realtime", "/v1/realtime")
PROXIED = Operation("proxy", "")
"""The generic proxy's."""

OPERATIONS: dict[str, Operation] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNT_TOKENS,
    "/v1/rerank": RERANK,
    "/v1/reranking": RERANK,
    "/rerank": RERANK,
    "/v2/rerank": COHERE_RERANK,
    "/v1/score": SCORE,
    "/score": SCORE,
    "/v1/moderations": MODERATIONS,
    "/v1/images/generations": Operation("images.generations", "/v1/images/generations"),
    "/v1/images/edits": Operation("images.edits", "/v1/images/edits", ModelIn.FORM),
    "/v1/images/variations": Operation("images.variations", "/v1/images/variations", ModelIn.FORM),
    "/v1/audio/speech": Operation("audio.speech", "/v1/audio/speech"),
    "/v1/audio/transcriptions": Operation("audio.transcriptions", "/v1/audio/transcriptions", ModelIn.FORM),
    "/v1/audio/translations": Operation("audio.translations", "/v1/audio/translations", ModelIn.FORM),
}
"""By the path that clients ask."""

SHORT_PATHS = frozenset(path for path in OPERATIONS if not path.startswith("/v1/"))
"""Those outside ``/v1`` that clients of others are used to."""
PROXY = "/model/"
"""``/model/<route>/<path>``: whatever else an engine has below ``/v1/``, or a provider at all. Slashes of the route's
name are written ``%2F``."""


def is_inference(path: str) -> bool:
    """Whether the gateway answers ``path``, and not the management API."""
    return path.startswith(("/v1/", PROXY)) or path == "/v1" or path in SHORT_PATHS


def known_paths() -> Iterable[str]:
    """For people: in the order of the table above."""
    return (path for path in OPERATIONS if path.startswith("/v1/"))
