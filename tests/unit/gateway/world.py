"""What the control plane writes, for gateways to read."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlmodel import select

from api.gateway.app import Gateway
from fleet.access.secrets import digest, new_id
from fleet.db import registry
from fleet.db.session import Database
from fleet.db.tables import ApiKeyRow, DeploymentRow, EndpointRow, HostRow

KEY = "hf-key-test"
CREATED = datetime(2026, 11, 1, tzinfo=UTC)


class World:
    def __init__(self, database: Database) -> None:
        self.database = database

    def add_key(self, key: str, *, scope: str = "inference", expires_in: float | None = None) -> None:
        expires = None if expires_in is None else datetime.now(UTC) + timedelta(seconds=expires_in)
        row: dict[str, Any] = {
            "name": "test",
            "prefix": key[:4],
            "key_hash": digest(key),
            "scope": scope,
            "expires_at": expires,
        }
        self._change(lambda session: session.add(ApiKeyRow(id=new_id("key"), **row)))

    def revoke_key(self, key: str) -> None:
        def revoke(session: Any) -> None:
            row = session.exec(select(ApiKeyRow).where(ApiKeyRow.key_hash == digest(key))).one()
            row.revoked_at = datetime.now(UTC)
            session.add(row)

        self._change(revoke)

    def add_deployment(
        self,
        name: str,
        *,
        phase: str = "ready",
        replicas: int = 1,
        bump: bool = True,
        traffic: dict[str, int] | None = None,
    ) -> None:
        row: dict[str, Any] = {
            "name": name,
            "spec": {},
            "engine": "llama_cpp",
            "engine_version": "1",
            "generation": 1,
            "revision": 1,
            "launch": 1,
            "phase": phase,
            "desired_replicas": replicas,
            "ready_replicas": 0,
            "projection": 1,
            "traffic": traffic or {},
            "created_at": CREATED,
        }
        self._change(lambda session: session.merge(DeploymentRow(**row)), bump=bump)

    def remove_deployment(self, name: str) -> None:
        self._change(lambda session: session.delete(session.get(DeploymentRow, name)))

    def add_endpoint(
        self,
        deployment: str,
        url: str,
        *,
        instance: str = "i-1",
        fence: int = 1,
        state: str = "ready",
        capacity: int = 0,
        launch: int = 0,
        host: str | None = None,
    ) -> None:
        """Insert or replace."""
        row: dict[str, Any] = {"deployment": deployment, "model": deployment, "url": url, "fence": fence}
        self._change(
            lambda session: session.merge(
                EndpointRow(instance_id=instance, state=state, capacity=capacity, launch=launch, host_id=host, **row)
            )
        )

    def add_host(self, host: str, *, state: str = "ready", bump: bool = True, **where: Any) -> None:
        """Insert or replace. ``where``: other columns."""
        row: dict[str, Any] = {"name": host, "credential_hash": host, "address": "127.0.0.1", "http_port": 1}
        self._change(lambda session: session.merge(HostRow(id=host, state=state, **row | where)), bump=bump)

    def remove_endpoint(self, instance: str) -> None:
        self._change(lambda session: session.delete(session.get(EndpointRow, instance)))

    def serve(self, model: str, *urls: str, capacity: int = 0) -> None:
        """A ready deployment with these engines as ``i-1``, ``i-2``, …"""
        self.add_deployment(model, replicas=len(urls))
        for n, url in enumerate(urls, 1):
            self.add_endpoint(model, url, instance=f"i-{n}", capacity=capacity)

    def _change(self, change: Any, *, bump: bool = True) -> None:
        def transaction(session: Any) -> None:
            change(session)
            if bump:
                registry.bump(session)

        self.database.write(transaction)


def in_flight(gateway: Gateway) -> float:
    """Requests in engines, as the metrics say."""
    family = gateway.metrics.registry
    return sum(
        sample.value
        for metric in family.collect()
        if metric.name == "holdfast_gateway_in_flight"
        for sample in metric.samples
    )


def metric(gateway: Gateway, name: str, **labels: str) -> float:
    """Value of one sample; 0 when there is none."""
    return gateway.metrics.registry.get_sample_value(name, labels) or 0.0
