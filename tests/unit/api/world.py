"""The management API on a real database, with a controller in small in the place of Temporal."""

import asyncio
from collections.abc import Callable, Iterable
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
from fleet.access.authority import CertificateAuthority, new_key
from fleet.access.sealing import master_sealer
from fleet.access.secrets import digest, new_id
from fleet.access.tickets import TicketSigner
from fleet.access.visitor import Visitor
from fleet.batches import Batch, CancelBatch, PauseBatch
from fleet.changes import change, steer, why_not
from fleet.db.audit import AuditLog
from fleet.db.authority import Authority
from fleet.db.defragmentations import record as record_defragmentation
from fleet.db.hosts import record_state
from fleet.db.session import Database
from fleet.db.tables import ApiKeyRow, HostRow
from fleet.defragmentations import Defragmentation, StopDefragmenting, stopped
from fleet.deployments import Accepted, Deployment, DeploymentChange, InstancesLeave, InstanceView, advance
from fleet.errors import Conflict, NotFound, PreconditionFailed, Unavailable
from fleet.host_client import FileFacts, HostAddress, HostClient
from fleet.hosts import Host, HostRegistered, Maintain, maintain, told
from fleet.instances import EngineReport, Instance, InstanceNews
from fleet.inventory import EngineBuild, Gpu, Inventory, Registration
from fleet.model_files import ModelFiles
from fleet.rollouts import Steer
from fleet.settings import Settings
from fleet.states import HostState, InstanceState

ADMIN = "hf-key-admin"
BODY_LIMIT = 1 << 20
SPEC: dict[str, Any] = {"model": {"path": "m.gguf"}}


@dataclass
class FakeWorkflows:
    """Takes changes as the workflows do and projects them at once; ``down`` is Temporal being away."""

    database: Database
    deployments: dict[str, Deployment] = field(default_factory=dict)
    reports: list[EngineReport] = field(default_factory=list)
    approved: list[str] = field(default_factory=list)
    not_failed: set[str] = field(default_factory=set)
    """Instances that went on since their rows were written."""
    leaves: list[InstancesLeave] = field(default_factory=list)
    defragmented: dict[str, Defragmentation] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    never_registered: set[str] = field(default_factory=set)
    """Hosts that have joined, but have no workflow yet."""
    registered: list[tuple[str, Host | None]] = field(default_factory=list)
    """Hosts, and how each was known to be before."""
    gone: set[str] = field(default_factory=set)
    """Ids of workflows that Temporal has lost."""
    taken_up: dict[str, Any] = field(default_factory=dict)
    """By workflow id: the states with which lost ones were begun anew."""
    told: list[tuple[str, Any]] = field(default_factory=list)
    """(deployment, news) and (instance, lost host)."""
    meanwhile: Callable[[str], None] = lambda _: None
    """Called with the id of each workflow that has just been begun anew."""
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
        return await self._put(change(known, wanted, datetime.now(UTC)))

    async def steer_rollout(self, name: str, wanted: Steer) -> Accepted:
        known = self._known(name)
        if reason := why_not(known, wanted):
            raise Conflict(reason, hint="see `status.rollout` of the deployment")
        return await self._put(steer(known, wanted, datetime.now(UTC)))

    async def defragment(self, wanted: Defragmentation) -> None:
        self._be_up()
        if wanted.deployment not in self.defragmented:
            self.defragmented[wanted.deployment] = wanted
            if not self.idle:
                await self._put_defragmentation(wanted)

    async def stop_defragmenting(self, deployment: str, wanted: StopDefragmenting) -> Accepted:
        self._be_up()
        await self._put_defragmentation(stopped(self.defragmented[deployment], wanted))
        return Accepted(generation=0)

    async def _put_defragmentation(self, d: Defragmentation) -> None:
        d = d.with_(projection=d.projection + 1)
        self.defragmented[d.deployment] = d
        await self.database.awrite(lambda s: record_defragmentation(s, d, "run"))

    async def all_replicas_become_ready(self, name: str) -> None:
        """As many of the current launch as are wanted, and no others."""
        d = self._known(name)
        views = [
            InstanceView(instance_id=f"{name}/{n}-{d.launch}", slot=n, launch=d.launch, state=InstanceState.READY)
            for n in range(1, d.desired + 1)
        ]
        await self._put(advance(d.with_(instances={v.instance_id: v for v in views}), datetime.now(UTC)))

    async def delete_deployment(self, name: str) -> Accepted:
        known = self._known(name)
        return await self._put(known.with_(deleting=True, generation=known.generation + 1))

    async def approve_retry(self, instance_id: str) -> Accepted:
        self._be_up()
        if instance_id in self.not_failed:
            raise Conflict(f"{instance_id} is ready, not failed")
        self.approved.append(instance_id)
        return Accepted(generation=1)

    async def report_engine(self, report: EngineReport) -> None:
        self._be_up()
        self.reports.append(report)

    async def register_host(self, registered: HostRegistered, known: Host | None = None) -> None:
        self._be_up()
        self.registered.append((registered.host_id, known))

        def ready(session: Session) -> None:
            row = session.get_one(HostRow, registered.host_id)
            record_state(session, registered.host_id, HostState.READY, "", row.projection + 1)

        await self.database.awrite(ready)

    async def forget_host(self, host_id: str) -> None:
        self._be_up()
        await self.database.awrite(lambda s: record_state(s, host_id, HostState.FORGOTTEN, "", 1 << 40))

    async def maintain_host(self, host_id: str, level: Maintain) -> Accepted:
        host = await self._put_host(maintain(await self._host(host_id), level))
        return Accepted(generation=host.maintain_generation)

    async def approve_replacement(self, host_id: str) -> Accepted:
        host = await self._host(host_id)
        if not host.replacement_paused:
            raise Conflict(f"host {host_id} waits for no approval", hint="see `holdfast status`")
        await self._put_host(told(host))
        return Accepted(generation=host.registrations)

    async def replace_instances(self, deployment: str, leave: InstancesLeave) -> Accepted:
        known = self._known(deployment)
        self.leaves.append(leave)
        return Accepted(generation=known.generation)

    async def _host(self, host_id: str) -> Host:
        self._be_up()
        row = await self.database.aread(lambda s: s.get(HostRow, host_id))
        if row is None or host_id in self.never_registered:
            raise NotFound(f"there is no host {host_id!r}")
        fields = {"host_id": host_id, **row.model_dump(include={"name", "state", "replacement_paused", "projection"})}
        return self.hosts.get(host_id) or Host.model_validate(fields)

    async def _put_host(self, host: Host) -> Host:
        host = host.with_(projection=host.projection + 1)
        self.hosts[host.host_id] = host
        if not self.idle:
            await ProjectionActivities(self.database).record_host(host)
        return host

    async def prepare(self) -> None:
        self._be_up()

    async def missing(self, workflow_ids: Iterable[str]) -> set[str]:
        self._be_up()
        return self.gone & set(workflow_ids)

    async def take_up_host(self, host: Host) -> bool:
        return await self._take_up(f"host/{host.host_id}", host)

    async def take_up_instance(self, instance: Instance) -> bool:
        return await self._take_up(f"instance/{instance.instance_id}", instance)

    async def take_up_deployment(self, deployment: Deployment) -> bool:
        return await self._take_up(f"deployment/{deployment.name}", deployment)

    async def start_batch(self, batch: Batch) -> bool:
        return await self._take_up(f"batch/{batch.batch_id}", batch)

    async def cancel_batch(self, batch_id: str, wanted: CancelBatch) -> Accepted:
        self._be_up()
        self.told.append((batch_id, wanted))
        return Accepted(generation=1)

    async def pause_batch(self, batch_id: str, level: PauseBatch) -> Accepted:
        self._be_up()
        self.told.append((batch_id, level))
        return Accepted(generation=1)

    async def instances_of(self, deployment: str) -> set[str]:
        self._be_up()
        return set(self.deployments[deployment].instances) if deployment in self.deployments else set()

    async def tell_deployment(self, deployment: str, news: InstanceNews) -> None:
        self._be_up()
        self.told.append((deployment, news))

    async def tell_host_lost(self, instance_id: str, host_id: str) -> None:
        self._be_up()
        self.told.append((instance_id, host_id))

    async def _take_up(self, workflow_id: str, state: Any) -> bool:
        self._be_up()
        if workflow_id not in self.gone:
            return False
        self.gone.remove(workflow_id)
        self.taken_up[workflow_id] = state
        await asyncio.to_thread(self.meanwhile, workflow_id)
        return True

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
        authority = the_authority()
        self.hosts = HostClient(Visitor(authority.ca.certificate_pem, authority.tickets))
        self.master = master_sealer("master")
        services = Services(
            settings=self.settings,
            database=database,
            workflows=cast(WorkflowClient, self.workflows),
            hosts=self.hosts,
            files=cast(ModelFiles, self.files),
            master=self.master,
            authority=authority,
            audit=AuditLog(database),
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
def the_authority() -> Authority:
    return Authority(CertificateAuthority.create(), TicketSigner(new_key()))


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
