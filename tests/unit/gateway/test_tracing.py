"""Traces: continued or begun, handed on to the engine, and received by who collects them."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from api.gateway.tracing import Trace, Tracing, parent_of, tracing_for
from fleet.usage import Usage

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01".encode()
NOT_SAMPLED = f"00-{TRACE}-{PARENT}-00".encode()


class Receiver:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.exports: list[ExportTraceServiceRequest] = []
        self.paths: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.paths.append(self.path)
                receiver.exports.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def spans(self) -> list[Span]:
        return [span for e in self.exports for r in e.resource_spans for s in r.scope_spans for span in s.spans]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    for name in ("OTEL_SERVICE_NAME", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    received = Receiver()
    yield received
    received.server.shutdown()
    received.server.server_close()


def begin(tracing: Tracing, traceparent: bytes | None = None, tracestate: bytes | None = None) -> Trace | None:
    about: dict[str, Any] = {"request_id": "r-1", "operation": "chat.completions", "route": "chat", "key_id": "key-1"}
    return tracing.begin(traceparent, tracestate, **about, streams=True)


def attributes(of: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in of.attributes}


def test_a_request_becomes_a_span_with_all_that_happened(receiver: Receiver) -> None:
    tracing = Tracing(receiver.url)
    trace = begin(tracing, SAMPLED, b"vendor=1")
    assert trace is not None
    trace.queued()
    trace.sent("chat", "i-1")
    trace.failed("gave no answer")
    trace.sent("chat", "i-2")
    trace.first_token(0.25)
    trace.end(200, Usage(10, 4, 3, 2), target="chat")
    tracing.stop()
    assert receiver.paths == ["/v1/traces"]
    [span] = receiver.spans
    assert (span.name, span.kind, span.status.code) == (
        "gateway request",
        Span.SPAN_KIND_SERVER,
        Status.STATUS_CODE_UNSET,
    )
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert [event.name for event in span.events] == [
        *("queued", "sent upstream", "attempt failed", "sent upstream", "first token")
    ]
    assert [attributes(span.events[n])["holdfast.instance"] for n in (1, 3)] == ["i-1", "i-2"]
    assert attributes(span) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "holdfast",
        "gen_ai.request.model": "chat",
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 2,
        "holdfast.usage.estimated": False,
        "holdfast.request_id": "r-1",
        "holdfast.key_id": "key-1",
        "holdfast.target": "chat",
        "http.response.status_code": 200,
    }
    [resource] = [r.resource for e in receiver.exports for r in e.resource_spans]
    assert attributes(resource)["service.name"] == "holdfast-gateway"
    assert trace.headers == f"traceparent: 00-{TRACE}-{span.span_id.hex()}-01\r\ntracestate: vendor=1\r\n".encode()


def test_a_trace_begins_here_when_the_client_has_none(receiver: Receiver) -> None:
    tracing = Tracing(f"{receiver.url}/v1/traces")
    trace = begin(tracing, None, b"of=nobody")
    assert trace is not None
    trace.end(502, None)
    tracing.stop()
    [span] = receiver.spans
    assert span.parent_span_id == b""
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == "502"
    assert trace.headers == f"traceparent: 00-{span.trace_id.hex()}-{span.span_id.hex()}-01\r\n".encode()


def test_who_decides_what_is_sampled(receiver: Receiver) -> None:
    never, always = Tracing(receiver.url, ratio=0.0), Tracing(receiver.url, ratio=1.0)
    assert begin(never) is None
    assert begin(never, b"not one") is None
    assert begin(always, NOT_SAMPLED) is None
    decided = begin(never, SAMPLED)
    assert decided is not None
    decided.end(200, None)
    never.stop()
    always.stop()
    assert len(receiver.spans) == 1


def test_some_are_sampled(receiver: Receiver) -> None:
    tracing = Tracing(receiver.url, ratio=0.5)
    sampled = sum(begin(tracing) is not None for _ in range(400))
    tracing.stop()
    assert 100 < sampled < 300


@pytest.mark.parametrize(
    "header",
    [
        *(b"", b"x", f"00-{'0' * 32}-{PARENT}-01".encode(), f"00-{TRACE}-{'0' * 16}-01".encode()),
        *(SAMPLED.replace(b"00-", b"ff-", 1), SAMPLED.upper(), SAMPLED + b"-more", SAMPLED + b"\n", b"\xff" * 55),
    ],
)
def test_what_is_no_traceparent_begins_a_new_trace(header: bytes) -> None:
    assert parent_of(header) is None


def test_a_later_version_of_the_header_is_understood() -> None:
    parent = parent_of(SAMPLED.replace(b"00-", b"01-", 1) + b"-more")
    assert parent is not None
    assert (f"{parent.trace_id:032x}", f"{parent.span_id:016x}", parent.sampled) == (TRACE, PARENT, True)


def test_the_environments_own_names_are_understood(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracing_for("", environment={}) is None
    assert tracing_for("http://x", environment={"OTEL_SDK_DISABLED": "true"}) is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    tracing = tracing_for("")
    assert tracing is not None
    trace = begin(tracing)
    assert trace is not None
    trace.end(200, None)
    tracing.stop()
    assert receiver.paths == ["/v1/traces"]
    assert attributes(receiver.exports[0].resource_spans[0].resource)["service.name"] == "mine"


def test_a_receiver_that_is_away_holds_nobody_up() -> None:
    tracing = Tracing("http://127.0.0.1:9", ratio=1.0)
    for _ in range(5000):
        trace = begin(tracing)
        assert trace is not None
        trace.end(200, None)
    stopping = threading.Thread(target=tracing.stop, daemon=True)
    stopping.start()
    stopping.join(15)
    assert not stopping.is_alive()


def test_nothing_is_loaded_unless_it_is_wanted() -> None:
    code = (
        "import sys, api.gateway.tracing as t; assert t.tracing_for('', environment={}) is None;"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
