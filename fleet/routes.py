"""What a person asks of the gateway: public names of models, and the providers beside our own deployments."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, StringConstraints, model_validator

from fleet.model import Wire
from fleet.specs import Labels, Name

RouteName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$"),
    Field(description="by which clients ask for it: letters, digits and '._:/@+-', at most 128 characters"),
]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9!#$%&'*+.^_`|~-]{1,64}$")]
HeaderValue = Annotated[str, StringConstraints(max_length=2048, pattern=r"^[\x20-\x7e\t]*$")]
PolicyName = Literal["least_load", "power_of_two", "prefix_affinity", "session_affinity", "weighted", "round_robin"]
_NOT_TO_BE_SET = frozenset(
    {"connection", "content-length", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)


def _may_be_set(name: str) -> str:
    if name in _NOT_TO_BE_SET or name.startswith("holdfast-"):
        raise ValueError("is the gateway's own; leave it out")
    return name


OpenHeader = Annotated[HeaderName, AfterValidator(_may_be_set)]


class Target(Wire):
    """Where requests go: to one of our deployments, or to a provider."""

    deployment: Name | None = None
    revision: int | None = Field(default=None, ge=1)
    """Only its replicas of this revision; unset: all."""
    adapter: Name | None = None
    """One of its LoRA adapters, by the name in ``spec.lora``."""
    provider: Name | None = None
    model: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f]*$")] | None = None
    """By which the provider knows it; unset: the name of the route."""
    weight: int = Field(default=1, ge=0, le=1000)
    """Share of the requests among the route's targets; 0: none, unless all others cannot serve."""

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.deployment is None) == (self.provider is None):
            raise ValueError("name a deployment or a provider, and not both")
        if self.provider is not None and (self.revision is not None or self.adapter is not None):
            raise ValueError("revision, adapter: are for deployments; a provider has a model")
        if self.deployment is not None and self.model is not None:
            raise ValueError("model: is for providers; a deployment's is known")
        return self


class Balancing(Wire):
    """Which replica of a deployment gets a request."""

    policy: PolicyName = "least_load"
    """``prefix_affinity``: requests that begin alike go to the same replica, until it is saturated."""
    session_header: HeaderName = "x-session-id"
    """session_affinity: requests with the same value go to the same replica; without it, as least_load."""
    load_factor: float = Field(default=1.25, ge=1.0, le=10.0)
    """prefix_affinity, session_affinity: no replica gets more than so many times the mean load for affinity's sake."""


class QueueSpec(Wire):
    """Requests wait here, and not in an engine, once every replica has as many as it works well on."""

    in_flight: int | None = Field(default=None, ge=1, le=100_000)
    """Requests that one replica is given at a time; unset: learned."""
    max_waiting: int = Field(default=512, ge=0, le=100_000)
    """Further ones are told to come back later (429)."""
    max_wait_s: float = Field(default=60.0, ge=0, le=3600)
    """The same for those that have waited so long (503)."""


class Fallbacks(Wire):
    """Other routes to be tried, in this order, before anything of an answer was sent."""

    general: list[RouteName] = Field(default_factory=list, max_length=8)
    """Nothing could answer: no replica, overload, errors of the engine or provider, time out."""
    context_window: list[RouteName] = Field(default_factory=list, max_length=8)
    """The request is too long for the model."""
    content_policy: list[RouteName] = Field(default_factory=list, max_length=8)
    """A provider refuses to answer for its content policy."""


class RequestTimeouts(Wire):
    """In seconds; unset: the gateway's own."""

    first_byte_s: float | None = Field(default=None, gt=0, le=86_400)
    """From when it is sent to a replica."""
    between_bytes_s: float | None = Field(default=None, gt=0, le=86_400)
    total_s: float | None = Field(default=None, gt=0, le=86_400)
    """From when it is sent to a replica to the end of the answer."""


class HeaderRules(Wire):
    set: dict[OpenHeader, HeaderValue] = Field(default_factory=dict, max_length=32)
    """Sent to the target with every request."""
    forward: list[OpenHeader] = Field(default_factory=list, max_length=32)
    """Of the client's headers, those that the target gets too."""


class RouteSpec(Wire):
    targets: list[Target] = Field(min_length=1, max_length=32)
    aliases: list[RouteName] = Field(default_factory=list, max_length=32)
    balancing: Balancing = Balancing()
    queue: QueueSpec = QueueSpec()
    fallbacks: Fallbacks = Fallbacks()
    timeouts: RequestTimeouts = RequestTimeouts()
    headers: HeaderRules = HeaderRules()

    @model_validator(mode="after")
    def _sends_somewhere(self) -> Self:
        if all(target.weight == 0 for target in self.targets):
            raise ValueError("targets: at least one needs a weight above 0")
        return self


class RouteCreate(Wire):
    name: RouteName
    labels: Labels = Field(default_factory=dict)
    spec: RouteSpec


def _http_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("must be an http(s) URL, such as https://api.example.com/v1")
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError("must be without query, fragment and credentials; the key has its own field")
    return url.rstrip("/")


class ProviderSpec(Wire):
    """Somebody else's API that routes may send requests to."""

    kind: Literal["openai", "anthropic"] = "openai"
    """What it speaks: OpenAI's API (most do), or Anthropic's."""
    base_url: Annotated[
        str, StringConstraints(min_length=8, max_length=2048, pattern=r"^[\x21-\x7e]+$"), AfterValidator(_http_url)
    ]
    """With the version, as clients are given it: ``https://api.example.com/v1``."""
    api_key: SecretStr | None = Field(default=None, max_length=8192)
    """Sealed before it is kept, never shown again. Unset: none is sent."""
    headers: dict[OpenHeader, HeaderValue] = Field(default_factory=dict, max_length=32)
    """Sent with every request. Not for secrets: they are shown again."""
    in_flight: int = Field(default=256, ge=1, le=100_000)
    """Requests that it is given at a time by one gateway process."""


class ProviderCreate(Wire):
    name: Name
    spec: ProviderSpec
