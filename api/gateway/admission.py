"""Who may ask what: keys, and what becomes of a request before an engine is asked. Synchronous, in memory only."""

from collections.abc import Mapping

from api.gateway import refusals
from api.gateway.call import Call, new_tokens_of, tokens_of
from api.gateway.operation import Operation
from api.gateway.request import Asked, Head, bearer_token, read_asked
from api.gateway.route import Route
from api.gateway.routing import Routing
from api.gateway.table import Key, RoutingTable
from api.gateway.tracing import Tracing
from fleet.access.errands import visitor_of
from fleet.access.secrets import digest
from fleet.access.tickets import TicketReader
from fleet.policy.ask import Ask
from fleet.policy.prefix import hashes

_SCOPES = frozenset({"inference", "admin"})
_KEYS_KEPT = 10_000
_AFFINE = "prefix_affinity"
_BY_SESSION = "session_affinity"


class Admission:
    """Everything that can be wrong with a request before an engine is asked; raises ``Refusal``."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing
        self._table: RoutingTable | None = None
        self._keys_by_id: Mapping[str, Key] = {}
        self._seen: dict[bytes, Key] = {}
        """By the value of their header: hashing them costs more than all else about them."""
        self.tracing: Tracing | None = None
        self.tickets: TicketReader | None = None
        """Of the control plane's own errands; None: not known yet."""

    @property
    def table(self) -> RoutingTable | None:
        return self._table

    def adopt(self, table: RoutingTable) -> None:
        self._table = table
        self._keys_by_id = {key.id: key for key in table.keys.values()}
        self._seen = {}

    def key(self, authorization: bytes | None) -> tuple[Key, int]:
        """(key, priority of what it asks)."""
        if authorization is not None and (key := self._seen.get(authorization)) is not None:
            if key.expires_at is not None and key.expired():
                raise refusals.bad_key()
            return key, 0
        if self._table is None:
            raise refusals.no_table()
        token = bearer_token(authorization)
        errand = visitor_of(token, self.tickets) if self.tickets is not None else None
        key = self._keys_by_id.get(errand[0]) if errand is not None else self._table.keys.get(digest(token))
        if key is None or (key.expires_at is not None and key.expired()):
            raise refusals.bad_key()
        if key.scope not in _SCOPES:
            raise refusals.wrong_scope(key.scope)
        if errand is not None:
            return key, errand[1]
        if authorization is not None and len(self._seen) < _KEYS_KEPT:
            self._seen[authorization] = key
        return key, 0

    def route(self, model: str) -> Route:
        route = self._routing.get(model)
        if route is None:
            raise refusals.unknown_model(model)
        return route

    def call(
        self,
        operation: Operation,
        head: Head,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        started: float,
        *,
        asked: Asked | None = None,
        method: str = "POST",
        path: str | None = None,
    ) -> Call:
        """``asked``: None: it is read from the body. ``path``: on the engine; None: that of the operation."""
        key, priority = self.key(head.authorization)
        if asked is None:
            asked = read_asked(operation, body, head.content_type)
        route = self.route(asked.model)
        document = asked.document
        balancing = route.spec.balancing
        ask = Ask(
            tenant=key.id,
            priority=priority,
            prompt_tokens=tokens_of(body, document),
            new_tokens=new_tokens_of(document),
            prefix=(
                hashes(document, operation.name)
                if document is not None and operation.prefixed and balancing.policy == _AFFINE
                else ()
            ),
            session=_session(headers, balancing.session_header) if balancing.policy == _BY_SESSION else "",
        )
        call = Call(
            operation=operation,
            method=method,
            path=path or operation.path,
            model=route.name,
            route=route,
            key=key,
            body=body,
            document=document,
            content_type=head.content_type,
            forwarded=head.forwarded,
            headers=headers,
            stream=asked.stream,
            ask=ask,
            started=started,
        )
        if self.tracing is not None:
            self._trace(self.tracing, call)
        return call

    @staticmethod
    def _trace(tracing: Tracing, call: Call) -> None:
        given = dict(call.headers)
        call.trace = tracing.begin(
            given.get(b"traceparent"),
            given.get(b"tracestate"),
            request_id=call.request_id,
            operation=call.operation.name,
            route=call.model,
            key_id=call.key.id,
            streams=call.stream,
        )
        if call.trace is not None:
            lines = call.forwarded.split(b"\r\n")[:-1]
            kept = [line + b"\r\n" for line in lines if not line.startswith((b"traceparent:", b"tracestate:"))]
            call.forwarded = b"".join(kept) + call.trace.headers


def _session(headers: list[tuple[bytes, bytes]], name: str) -> str:
    wanted = name.encode()
    return next((value.decode("latin-1") for header, value in headers if header == wanted), "")
