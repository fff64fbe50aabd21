"""OpenTelemetry traces: a span for every request that is sampled, handed on to the engine, sent by OTLP over HTTP.

Without an endpoint nothing of OpenTelemetry is loaded, and the client's ``traceparent`` is passed on as it came.
"""

import os
import random
import re
from collections.abc import Mapping
from importlib.metadata import version
from threading import Thread
from typing import TYPE_CHECKING

from fleet.usage import Usage

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

_STANDARD = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PATH = "/v1/traces"
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_OPERATIONS = {
    "chat.completions": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
"""As the semantic conventions call them; others keep their names."""
_STOP_WITHIN_S = 3.0


class Parent:
    """What a client's ``traceparent`` says."""

    __slots__ = ("sampled", "span_id", "trace_id")

    def __init__(self, trace_id: int, span_id: int, *, sampled: bool) -> None:
        self.trace_id, self.span_id, self.sampled = trace_id, span_id, sampled


def parent_of(traceparent: bytes | None) -> Parent | None:
    """None: there is none, or it is not as W3C says; then a trace begins here."""
    match = _PARENT.fullmatch(traceparent) if traceparent else None
    if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5] is not None):
        return None
    trace_id, span_id = int(match[2], 16), int(match[3], 16)
    if not (trace_id and span_id):
        return None
    return Parent(trace_id, span_id, sampled=bool(int(match[4], 16) & 1))


class Trace:
    """One request that is sampled. ``end`` it once."""

    __slots__ = ("_span", "headers")

    def __init__(self, span: "Span", tracestate: bytes | None) -> None:
        self._span = span
        context = span.get_span_context()
        self.headers = b"traceparent: 00-%032x-%016x-01\r\n" % (context.trace_id, context.span_id)
        """Lines for the engine, in the place of the client's ``traceparent`` and ``tracestate``."""
        if tracestate is not None:
            self.headers += b"tracestate: %b\r\n" % tracestate

    def queued(self) -> None:
        """It has to wait for an engine."""
        self._span.add_event("queued")

    def sent(self, target: str, instance: str) -> None:
        """To an engine or provider; may be called again."""
        self._span.add_event("sent upstream", {"holdfast.target": target, "holdfast.instance": instance})

    def failed(self, why: str) -> None:
        """An attempt; another may follow."""
        self._span.add_event("attempt failed", {"error.message": why})

    def first_token(self, seconds: float) -> None:
        """``seconds``: since the request came."""
        self._span.add_event("first token")
        self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)

    def end(self, status: int, usage: Usage | None, *, target: str = "") -> None:
        """``status``: 499 where the client left."""
        from opentelemetry.trace import StatusCode

        span = self._span
        span.set_attribute("http.response.status_code", status)
        if target:
            span.set_attribute("holdfast.target", target)
        if usage is not None:
            span.set_attributes(_used(usage))
        if status >= 500:
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", str(status))
        span.end()


class Tracing:
    """One per process. Spans wait in a bounded queue for a thread that sends them: whoever gets them may be away."""

    def __init__(self, endpoint: str, ratio: float = 1.0) -> None:
        """``endpoint``: URL of an OTLP receiver, with or without ``/v1/traces``; empty: the environment's own names it.
        ``ratio``: share of the requests that are sampled, of those whose clients have not decided."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        self._ratio = ratio
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "holdfast-gateway"}
        resource = Resource.create({**named, "service.version": version("holdfast")})
        # Whom not to sample is decided before anything of a span is made.
        self._provider: TracerProvider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter(endpoint=_with_path(endpoint) if endpoint else None)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("holdfast.gateway")

    def begin(
        self,
        traceparent: bytes | None,
        tracestate: bytes | None,
        *,
        request_id: str,
        operation: str,
        route: str,
        key_id: str,
        streams: bool,
    ) -> Trace | None:
        """None: it is not sampled, and the client's headers go on as they are."""
        from opentelemetry.trace import SpanKind

        parent = parent_of(traceparent)
        if not (parent.sampled if parent is not None else random.random() < self._ratio):  # noqa: S311 (a sample)
            return None
        attributes: dict[str, str | bool] = {
            "gen_ai.operation.name": _OPERATIONS.get(operation, operation),
            "gen_ai.provider.name": "holdfast",
            "gen_ai.request.model": route,
            "gen_ai.request.stream": streams,
            "holdfast.request_id": request_id,
            "holdfast.key_id": key_id,
        }
        context = _context(parent) if parent is not None else None
        span = self._tracer.start_span("gateway request", context, SpanKind.SERVER, attributes)
        return Trace(span, tracestate if parent is not None else None)

    def stop(self) -> None:
        """Send what is left. Blocks for some seconds at most."""
        sending = Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_STOP_WITHIN_S)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # it gives up trying


def tracing_for(endpoint: str, ratio: float = 1.0, environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """None: nobody wants traces. ``endpoint``: empty where only the environment may name one (``OTEL_…``)."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if not endpoint and not any(environment.get(name) for name in _STANDARD):
        return None
    return Tracing(endpoint, ratio)


def _with_path(endpoint: str) -> str:
    return endpoint if endpoint.rstrip("/").endswith(_PATH) else endpoint.rstrip("/") + _PATH


def _context(parent: Parent) -> "Context":
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    remote = SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(remote))


def _used(usage: Usage) -> dict[str, int | bool]:
    return {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        "holdfast.usage.estimated": usage.estimated,
    }
