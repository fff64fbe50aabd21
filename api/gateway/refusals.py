"""Every answer that is the gateway's own refusal, in the shape that the client's protocol has for errors.

Refusal
├── 400 not JSON, not an object, no model      the client must change the request
├── 401, 403                                    the key
├── 404 unknown URL, unknown model, 405 method
├── 413 body too large
├── 429 too many wait for this model already; comes with Retry-After
├── 502 the engine failed before it answered, 504 it did not answer in time
└── 503 nothing can serve now; comes with Retry-After
"""

from typing import Any, Literal

import orjson

from api.gateway.operation import Shape, known_paths

Headers = tuple[tuple[bytes, bytes], ...]
Reason = Literal["general", "context_window", "content_policy"]
"""Which of a route's fallbacks are meant (``fleet.routes.Fallbacks``)."""
_MAY_GO_ELSEWHERE = frozenset({429, 502, 503, 504})

_SHOWN_CHARACTERS = 200
"""How much of what a client sent is said back to it."""


class Refusal(Exception):
    """An answer instead of the engine's. ``headers`` come on top of content type and length."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Headers = (),
        unread: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.unread = unread
        """The client is still sending a body that nobody wants."""
        self.message = message
        self.code = code
        self.kind = kind
        self.param = param
        self.headers = headers

    @property
    def body(self) -> bytes:
        """In OpenAI's shape."""
        return error_body(self.message, kind=self.kind, param=self.param, code=self.code)

    def body_in(self, shape: Shape) -> bytes:
        match shape:
            case Shape.ANTHROPIC:
                return anthropic_error(self.status, self.message)
            case Shape.COHERE:
                return orjson.dumps({"message": self.message})
            case _:
                return self.body

    @property
    def reason(self) -> Reason | None:
        """Why another route may be asked instead; None: it would not help."""
        if self.code == "context_length_exceeded":
            return "context_window"
        if self.code == "content_policy":
            return "content_policy"
        return "general" if self.status in _MAY_GO_ELSEWHERE else None


def error_body(message: str, *, kind: str, param: str | None, code: str | None) -> bytes:
    error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
    return orjson.dumps({"error": error})


def shown(text: str) -> str:
    """``text`` from a client, made fit to be said back: short, and without what JSON cannot carry."""
    cut = text[:_SHOWN_CHARACTERS] + ("…" if len(text) > _SHOWN_CHARACTERS else "")
    return cut.encode("utf-8", "replace").decode("utf-8")


_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""By status, as Anthropic's clients know them."""


def anthropic_error(status: int, message: str) -> bytes:
    kind = _ANTHROPIC_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})


def refused_by_engine(message: str) -> Refusal:
    return Refusal(400, f"The engine cannot do this: {shown(message)}", code="refused_by_engine")


def unknown_url(method: str, path: str) -> Refusal:
    return Refusal(
        404,
        f"Unknown URL: {shown(method)} {shown(path)}. Known are /v1/models, {', '.join(known_paths())}, and "
        "/model/<model>/<path> for whatever else an engine can do.",
        code="unknown_url",
    )


def wrong_method(method: str, path: str, allowed: str) -> Refusal:
    return Refusal(
        405,
        f"{shown(method)} is not allowed on {shown(path)}. Use {allowed}.",
        code="method_not_allowed",
        headers=((b"allow", allowed.encode()),),
    )


def no_key() -> Refusal:
    return Refusal(
        401,
        "No API key was sent. Send 'Authorization: Bearer <key>'; `holdfast keys` makes one.",
        code="missing_api_key",
        headers=_CHALLENGE,
    )


def bad_key() -> Refusal:
    return Refusal(
        401,
        "The API key is not known, was revoked, or has expired. `holdfast keys` makes a new one.",
        code="invalid_api_key",
        headers=_CHALLENGE,
    )


def wrong_scope(scope: str) -> Refusal:
    return Refusal(
        403,
        f"A key of scope '{scope}' may not ask models. Use one of scope 'inference' or 'admin'.",
        code="insufficient_scope",
    )


def bad_length() -> Refusal:
    return Refusal(400, "The header Content-Length must be one number.", param="Content-Length", code="invalid_header")


def too_large(limit: int, *, unread: bool) -> Refusal:
    return Refusal(
        413,
        f"The request body is larger than the limit of {limit} bytes. Send less in one request.",
        param="body",
        code="request_too_large",
        unread=unread,
    )


def not_json(reason: str) -> Refusal:
    return Refusal(400, f"The request body is not valid JSON: {shown(reason)}.", param="body", code="invalid_json")


def not_an_object() -> Refusal:
    return Refusal(400, "The request body must be a JSON object.", param="body", code="invalid_type")


def not_a_form() -> Refusal:
    return Refusal(
        400,
        "The request must be multipart/form-data, with a boundary in its Content-Type.",
        param="Content-Type",
        code="invalid_content_type",
    )


def broken_form(reason: str) -> Refusal:
    return Refusal(400, f"The multipart body cannot be read: {shown(reason)}.", param="body", code="invalid_form")


def too_long_for_the_model(message: str) -> Refusal:
    return Refusal(400, shown(message), param="messages", code="context_length_exceeded")


def against_the_policy(message: str) -> Refusal:
    return Refusal(400, shown(message), code="content_policy")


def too_many_waiting(name: str, waiting: int, after: int) -> Refusal:
    return Refusal(
        429,
        f"{waiting} requests wait for the model '{name}' already. Try again in a while, or give it more replicas.",
        kind="rate_limit_error",
        code="queue_full",
        headers=((b"retry-after", b"%d" % after),),
    )


def waited_too_long(name: str, seconds: float, after: int) -> Refusal:
    return unavailable(f"No replica of the model '{name}' became free within {seconds:.0f} s.", after=after)


def not_there(name: str, what: str) -> Refusal:
    """A target of a route that does not exist, or has no replicas."""
    return unavailable(f"The model '{name}' cannot be served: {what}.", after=5)


def beyond_the_door(path: str) -> Refusal:
    return Refusal(
        404,
        f"Engines are reached below /v1/ only, and {shown(path)} is not.",
        code="unknown_url",
    )


def for_admins(path: str) -> Refusal:
    return Refusal(
        403, f"{shown(path)} changes the engine: it takes a key of scope 'admin'.", code="insufficient_scope"
    )


def no_model() -> Refusal:
    return Refusal(
        400,
        "'model' is missing. Name one of the models that GET /v1/models lists.",
        param="model",
        code="missing_required_parameter",
    )


def model_not_a_string() -> Refusal:
    return Refusal(400, "'model' must be a string.", param="model", code="invalid_type")


def unknown_model(name: str) -> Refusal:
    return Refusal(
        404,
        f"The model '{shown(name)}' does not exist. GET /v1/models lists those that do.",
        param="model",
        code="model_not_found",
    )


def not_ready(name: str, phase: str, desired: int) -> Refusal:
    if desired == 0:
        remedy = "It has no replicas: start it, or scale it up."
    else:
        remedy = "`holdfast deployments` says what it is waiting for."
    return unavailable(f"The model '{name}' has no ready replica; its deployment is {phase}. {remedy}", after=5)


def no_table() -> Refusal:
    return unavailable("The gateway has not been able to read its table of models yet. Try again.", after=1)


def unreachable(name: str) -> Refusal:
    return unavailable(f"No replica of the model '{name}' can be reached. Try again shortly.", after=2)


def unavailable(message: str, *, after: int) -> Refusal:
    return Refusal(
        503,
        message,
        kind="service_unavailable",
        code="service_unavailable",
        headers=((b"retry-after", b"%d" % after),),
    )


def engine_failed(name: str, reason: str) -> Refusal:
    return Refusal(
        502,
        f"The engine of the model '{name}' {reason}. Its log (`holdfast logs {name}`) may say why.",
        kind="api_error",
        code="engine_failed",
    )


def engine_too_slow(name: str) -> Refusal:
    return Refusal(
        504,
        f"The engine of the model '{name}' did not answer in time. Ask for less, or stream the answer.",
        kind="api_error",
        code="engine_timeout",
    )


_CHALLENGE: Headers = ((b"www-authenticate", b"Bearer"),)
