"""The management API on a real database, with a controller in small in the place of Temporal."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, cast

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from sqlmodel import Session

from activities.contracts import DeploymentRecord
from activities.projections import ProjectionActivities
from api.app import create_app
from api.limits import BodyLimit
from api.state import Services
from api.temporal_client import WorkflowClient
from fleet.access.sealing import master_sealer
from fleet.access.secrets import digest, new_id
from fleet.db.hosts import record_state
from fleet.db.session import Database
from fleet.db.tables import ApiKeyRow, HostRow
from fleet.deployments import Accepted, Deployment, DeploymentChange, change
from fleet.errors import Conflict, NotFound, PreconditionFailed, Unavailable
from fleet.host_client import FileFacts, HostAddress, HostClient
from fleet.hosts import HostRegistered
from fleet.instances import EngineReport
from fleet.inventory import EngineBuild, Gpu, Inventory, Registration
from fleet.model_files import ModelFiles
from fleet.settings import Settings
from fleet.states import HostState

ADMIN = "hf-key-admin"
BODY_LIMIT = 1 << 20
SPEC: dict[str, Any] = {"model": {"path": "m.gguf"}}


@dataclass
class FakeWorkflows:
    """Takes changes as the workflows do and projects them at once; ``down`` is Temporal being away."""

    database: Database
    deployments: dict[str, Deployment] = field(default_factory=dict)
    reports: list[EngineReport] = field(default_factory=list)
    down: bool = False
    idle: bool = False
    """No controller runs: what is accepted is not projected."""

    async def reachable(self) -> bool:
        return not self.down

    async def create_deployment(self, deployment: Deployment) -> None:
        self._be_up()
        if deployment.name in self.deployments:
            raise Conflict(f"a deployment named {deployment.name!r} exists already", field="name")
        await self._put(deployment)

    async def change_deployment(self, name: str, wanted: DeploymentChange) -> Accepted:
        known = self._known(name)
        if wanted.if_generation not in (None, known.generation):
            raise PreconditionFailed(f"{name} is at generation {known.generation}")
        return await self._put(change(known, wanted))

    async def delete_deployment(self, name: str) -> Accepted:
        known = self._known(name)
        return await self._put(known.with_(deleting=True, generation=known.generation + 1))

    async def report_engine(self, report: EngineReport) -> None:
        self._be_up()
        self.reports.append(report)

    async def register_host(self, registered: HostRegistered) -> None:
        self._be_up()

        def ready(session: Session) -> None:
            row = session.get_one(HostRow, registered.host_id)
            record_state(session, registered.host_id, HostState.READY, "", row.projection + 1)

        await self.database.awrite(ready)

    async def forget_host(self, host_id: str) -> None:
        self._be_up()
        await self.database.awrite(lambda s: record_state(s, host_id, HostState.FORGOTTEN, "", 1 << 40))

    def _be_up(self) -> None:
        if self.down:
            raise Unavailable("Temporal does not take changes now", hint="try again")

    def _known(self, name: str) -> Deployment:
        self._be_up()
        if name not in self.deployments:
            raise NotFound(f"there is no deployment {name!r}")
        return self.deployments[name]

    async def _put(self, deployment: Deployment) -> Accepted:
        deployment = deployment.with_(projection=deployment.projection + 1)
        self.deployments[deployment.name] = deployment
        if not self.idle:
            record = DeploymentRecord(deployment=deployment, run_id="run")
            await ProjectionActivities(self.database).record_deployment(record)
        return Accepted(generation=deployment.generation)


class FakeFiles:
    """What hosts say about files; unless told otherwise each has every file, and it is a model."""

    def __init__(self) -> None:
        self.facts: dict[str, FileFacts | None] = {}

    async def on(self, hosts: list[HostAddress], path: str) -> dict[str, FileFacts | None]:
        there = FileFacts(path=f"/models/{path}", exists=True, readable=True, size_bytes=100, is_gguf=True)
        return {h.host_id: self.facts.get(h.host_id, there) for h in hosts}


class World:
    def __init__(self, database: Database, home: Path) -> None:
        self.database = database
        self.settings = Settings(home=home)
        self.workflows = FakeWorkflows(database)
        self.files = FakeFiles()
        self.hosts = HostClient()
        self.master = master_sealer("master")
        services = Services(
            settings=self.settings,
            database=database,
            workflows=cast(WorkflowClient, self.workflows),
            hosts=self.hosts,
            files=cast(ModelFiles, self.files),
            master=self.master,
            gateway_metrics=CollectorRegistry(),
        )
        self.services = services
        self.app = the_app()
        self.app.state.services = services
        self.door = BodyLimit(self.app, BODY_LIMIT)

    def client(self, key: str | None = ADMIN) -> httpx.AsyncClient:
        """For whoever has ``key``. What breaks inside is seen as a status, as by a real client."""
        transport = httpx.ASGITransport(cast(Any, self.door), raise_app_exceptions=False)
        headers = {"authorization": f"Bearer {key}"} if key is not None else {}
        return httpx.AsyncClient(transport=transport, base_url="http://holdfast", headers=headers)

    def add_key(self, key: str, scope: str = "admin", *, revoked: bool = False, expired: bool = False) -> str:
        now = datetime.now(UTC)
        row = ApiKeyRow(
            id=new_id("key"),
            name="test",
            prefix=key[:8],
            key_hash=digest(key),
            scope=scope,
            revoked_at=now if revoked else None,
            expires_at=now - timedelta(seconds=1) if expired else None,
        )
        key_id = row.id
        self.database.write(lambda s: s.add(row))
        return key_id

    def add_host(self, host_id: str = "h1", credential: str = "hf-host-1", **changes: Any) -> None:
        said = inventory()
        fields: dict[str, Any] = {
            "id": host_id,
            "name": f"{host_id}-name",
            "state": HostState.READY,
            "credential_hash": digest(credential),
            "address": "127.0.0.1",
            "http_port": 1,
            "inventory": said.model_dump(mode="json"),
            "ram_allocatable": said.ram_allocatable_bytes,
        }
        row = HostRow(**fields | changes)
        self.database.write(lambda s: s.add(row))

    def add(self, row: Any) -> None:
        self.database.write(lambda s: s.add(row))


@cache
def the_app() -> FastAPI:
    """One for all tests: making it takes longer than any of them."""
    return create_app(cast(Services, None))


def inventory(hostname: str = "box", gpus: tuple[Gpu, ...] = (), version: str = "0.1.2") -> Inventory:
    return Inventory(
        hostname=hostname,
        machine_id="m",
        boot_id="b",
        os="Linux",
        arch="x86_64",
        cpu_count=2,
        ram_bytes=8 << 30,
        ram_allocatable_bytes=7 << 30,
        disk_bytes=1,
        disk_free_bytes=1,
        gpus=gpus,
        engines=(EngineBuild(engine="llama_cpp", version=version),),
    )


def registration(**changes: Any) -> dict[str, Any]:
    said = Registration(inventory=inventory(), address="127.0.0.1", http_port=1234, version="0.1.0")
    return said.model_dump(mode="json") | changes
