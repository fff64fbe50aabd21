"""Turning somebody away at the relay: one exception, one place that tells about it."""

from dataclasses import dataclass

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fleet.db.audit import AuditLog


class Refused(Exception):
    """``reason`` is one word out of few, for counters and the audit log; ``text`` is a sentence for people."""

    def __init__(
        self, status: grpc.StatusCode, reason: str, text: str, *, trailing: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.text = text
        self.trailing = trailing


class Metrics:
    """What the relay counts; on its internal listener under ``/metrics``."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.calls = Counter("holdfast_relay_calls", "Calls of hosts", ["method", "code"], registry=registry)
        self.seconds = Histogram(
            "holdfast_relay_call_seconds",
            "Time until a call was answered, without long polls",
            ["method"],
            registry=registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self.refusals = Counter(
            "holdfast_relay_refusals", "Who was turned away", ["action", "reason"], registry=registry
        )
        self.tunnels = Gauge("holdfast_relay_tunnels", "Tunnels held open", registry=registry)
        self.connections = Gauge("holdfast_relay_tunnel_connections", "Connections through tunnels", registry=registry)
        self.carried = Counter("holdfast_relay_tunnel_bytes", "Through tunnels", ["direction"], registry=registry)
        self.dials = Counter("holdfast_relay_tunnel_dials", "Asked of hosts", ["outcome"], registry=registry)


@dataclass(frozen=True)
class Doorbook:
    """Who came, and who was turned away: counters, and the audit log."""

    audit: AuditLog
    metrics: Metrics

    def refused(self, *, host_id: str, action: str, reason: str, peer: str, target: str = "") -> None:
        """``host_id`` empty: nobody that we know."""
        self.metrics.refusals.labels(action, reason).inc()
        actor = f"host:{host_id}" if host_id else "unknown"
        self.audit.note(actor=actor, action=action, target=target[:200], outcome="refused", reason=reason, peer=peer)

    def done(self, *, actor: str, action: str, target: str = "", peer: str = "", reason: str = "") -> None:
        self.audit.note(actor=actor, action=action, target=target[:200], outcome="done", reason=reason, peer=peer)
