"""What the database holds. Times are UTC; sizes are bytes."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, DateTime, Index
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel


def now() -> datetime:
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """SQLite forgets time zones; give them back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class DeploymentRow(SQLModel, table=True):
    """Projection of a ``DeploymentWorkflow``; it is the only writer."""

    __tablename__ = "deployment"

    name: str = Field(primary_key=True)
    labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    spec: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    engine: str
    engine_version: str
    generation: int
    revision: int
    launch: int
    phase: str
    desired_replicas: int
    ready_replicas: int
    message: str = ""
    hint: str = ""
    stopped: bool = False
    rollout: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON, nullable=True))
    """The one in progress, as people see it."""
    traffic: dict[str, int] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """Weights by launch, while requests are not simply spread over all replicas; empty: they are."""
    durable: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """The workflow's whole state except its instances, from which it can be made anew."""
    create_key: str = ""
    run_id: str = ""
    """First run of the workflow: tells a deployment from an earlier one of the same name."""
    projection: int
    """Guard: a row is only replaced by a higher one of the same ``run_id``."""
    created_at: datetime = Field(sa_type=UtcDateTime)
    updated_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class InstanceRow(SQLModel, table=True):
    """Projection of an ``InstanceWorkflow``; it is the only writer."""

    __tablename__ = "instance"

    id: str = Field(primary_key=True)
    deployment: str = Field(index=True)
    revision: int
    launch: int
    slot: int
    state: str = Field(index=True)
    host_id: str | None = Field(default=None, index=True)
    gpu_uuids: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    memory_bytes: int = Field(default=0, sa_type=BigInteger)
    endpoint: str | None = None
    pid: int | None = None
    fence: int = Field(default=0, sa_type=BigInteger)
    restarts: int = 0
    message: str = ""
    hint: str = ""
    progress: float | None = None
    durable: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """The workflow's whole state, from which it can be made anew."""
    projection: int
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    updated_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class EndpointRow(SQLModel, table=True):
    """Where the gateways may send requests; written with the instance's projection."""

    __tablename__ = "endpoint"

    instance_id: str = Field(primary_key=True)
    deployment: str = Field(index=True)
    model: str
    """Name by which the engine knows the model."""
    url: str
    """Base URL of the engine, without ``/v1``."""
    fence: int = Field(sa_type=BigInteger)
    state: str
    capacity: int = 0
    """Requests that the engine works on at a time; 0: not known."""
    launch: int = 0
    """Which launch of its deployment it belongs to (``DeploymentRow.traffic``)."""
    host_id: str | None = Field(default=None, index=True)
    """Where it is: gateways go to the host's own port, wherever that is by now, and show a ticket for this host."""


class RevisionRow(SQLModel, table=True):
    """What a deployment was at one revision, to go back to. Written by its workflow."""

    __tablename__ = "revision"

    deployment: str = Field(primary_key=True)
    revision: int = Field(primary_key=True)
    run_id: str
    spec: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    """With the values of ``env`` sealed."""
    engine: str
    engine_version: str
    cause: str = ""
    """Why it came to be, for people."""
    outcome: str = ""
    """``rolling out``; ``live`` once all its replicas were ready; then ``superseded``; or ``aborted``, ``failed``, or
    ``abandoned`` for the next one before it was ever live."""
    created_at: datetime = Field(sa_type=UtcDateTime)


class TrafficRow(SQLModel, table=True):
    """What one gateway process has sent to one engine so far: counters that only grow."""

    __tablename__ = "traffic"
    __table_args__ = (Index("traffic_by_deployment", "deployment", "launch"),)

    gateway: str = Field(primary_key=True)
    """A new one with every process."""
    instance_id: str = Field(primary_key=True)
    fence: int = Field(primary_key=True, sa_type=BigInteger)
    deployment: str
    launch: int
    requests: int = Field(default=0, sa_type=BigInteger)
    errors: int = Field(default=0, sa_type=BigInteger)
    """Of the engine's making: it failed, broke off, was too slow, or answered 5xx."""
    latency: list[int] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    """Requests by time until the first byte, in the buckets of ``fleet.policy.latency``."""
    updated_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class HostRow(SQLModel, table=True):
    __tablename__ = "host"

    id: str = Field(primary_key=True)
    name: str
    machine_id: str = Field(default="", index=True)
    state: str
    message: str = ""
    credential_hash: str = Field(unique=True)
    address: str = ""
    http_port: int = 0
    version: str = ""
    inventory: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    generation: int = 0
    """Of the inventory: claims against an older one fail."""
    ram_allocatable: int = Field(default=0, sa_type=BigInteger)
    ram_used: int = Field(default=0, sa_type=BigInteger)
    """Guarded counter: the sum of this host's claims on RAM."""
    fingerprint: str = ""
    """Of the inventory (``Inventory.fingerprint``): with ``generation`` it tells whether what placement knows of the
    host, besides numbers, is still true."""
    port_first: int = 0
    port_last: int = 0
    """Its range for engines; 0: it has told none."""
    fabric_address: str = ""
    """On the network that hosts of a gang share; empty: it takes part in none."""
    maintenance: str = "none"
    """``fleet.states.Maintenance``; anything but none takes no new replicas."""
    maintenance_message: str = ""
    lost_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    replacement_paused: bool = False
    """Lost together with too many others: its replicas are not placed elsewhere until a person approves."""
    durable: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """The workflow's whole state, from which it can be made anew."""
    public_key: str = ""
    """PEM; its passes are signed with the other half."""
    joined_with: str = ""
    """Id of the join token."""
    boot_id: str = ""
    """Of the machine that speaks as this host; another one is refused while this one does."""
    certificate_expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    reach: str = "auto"
    """How gateways are to reach it, as the host wishes (``fleet.inventory.Registration``)."""
    tunnel_only: bool = False
    """Its port cannot be reached from here: gateways go through the relay that holds its tunnel."""
    tunnel_url: str = ""
    """Internal URL of that relay; empty: none holds one."""
    reserved_for: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """Only deployments that carry all of these labels are placed here; empty: all."""
    given_labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """By a person, over those that the host reports; ``labels`` is both."""
    reserve: dict[str, int] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """By a person, over the host's: ``ram_bytes`` and, of each GPU, ``vram_bytes`` that placement leaves alone."""
    status: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """The newest ``fleet.telemetry.HostStatus``."""
    status_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    projection: int = 0
    joined_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    seen_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class GpuRow(SQLModel, table=True):
    __tablename__ = "gpu"

    uuid: str = Field(primary_key=True)
    host_id: str = Field(index=True)
    index: int
    kind: str
    name: str
    memory_bytes: int = Field(sa_type=BigInteger)
    allocatable: int = Field(sa_type=BigInteger)
    used: int = Field(default=0, sa_type=BigInteger)
    """Guarded counter: the sum of the claims on this GPU."""
    healthy: bool = True
    reason: str = ""
    cordoned: bool = False
    """Takes no new claims, because it faulted or a person said so; stays so over new inventories."""
    cordon_reason: str = ""
    foreign_bytes: int = Field(default=0, sa_type=BigInteger)
    """Memory that others than our engines use, as last reported: ``allocatable`` is without it."""
    details: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """The whole ``fleet.inventory.Gpu``."""
    generation: int = 0


class GpuFaultRow(SQLModel, table=True):
    """An engine blamed a GPU. One row per (GPU, instance, fence), so that telling it twice counts once."""

    __tablename__ = "gpu_fault"

    gpu_uuid: str = Field(primary_key=True)
    instance_id: str = Field(primary_key=True)
    fence: int = Field(primary_key=True, sa_type=BigInteger)
    reason: str = ""
    at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class ClaimRow(SQLModel, table=True):
    """Memory of one GPU, or of a host's RAM (``gpu_uuid`` empty), given to one instance under one fence.

    A placement has a row for each of its GPUs, and one for the RAM of each of its hosts (if it takes any, or no GPU).
    """

    __tablename__ = "claim"
    __table_args__ = (Index("claim_by_host", "host_id", "state"), Index("claim_by_expiry", "expires_at"))

    instance_id: str = Field(primary_key=True)
    fence: int = Field(primary_key=True, sa_type=BigInteger)
    gpu_uuid: str = Field(primary_key=True, default="")
    host_id: str = Field(primary_key=True)
    memory_bytes: int = Field(sa_type=BigInteger)
    state: str
    placement: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    """The whole answer of the placement, to give it again when asked again."""
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    rank: int = 0
    """Of the host in its gang; 0: the leader, or the only one."""
    hosts: int = 1
    """Over how many hosts the whole placement is spread."""
    priority: int = 1
    """Of the deployment, when it was placed (``PlacementRequest.priority``)."""


class PortClaimRow(SQLModel, table=True):
    """A port of a host, claimed with the memory of (instance, fence) there, and freed with it."""

    __tablename__ = "port_claim"

    host_id: str = Field(primary_key=True)
    port: int = Field(primary_key=True)
    instance_id: str
    fence: int = Field(sa_type=BigInteger)


class MeasuredSizingRow(SQLModel, table=True):
    """What an engine said of its memory when it started, with what sizing depends on."""

    __tablename__ = "measured_sizing"
    __table_args__ = (Index("measured_sizing_by_time", "at"),)

    fingerprint: str = Field(primary_key=True)
    """``ModelFacts.fingerprint``"""
    engine: str = Field(primary_key=True)
    engine_version: str = Field(primary_key=True)
    gpu_class: str = Field(primary_key=True)
    """``fleet.db.sizings.class_text``"""
    tensor_parallel: int = Field(primary_key=True)
    pipeline_parallel: int = Field(primary_key=True)
    batched_tokens: int = Field(primary_key=True, sa_type=BigInteger)
    sequences: int = Field(primary_key=True, sa_type=BigInteger)
    kv_dtype: str = Field(primary_key=True)
    measured: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    """``fleet.sizing.measured.Measured``"""
    instance_id: str
    fence: int = Field(sa_type=BigInteger)
    at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class DidNotFitRow(SQLModel, table=True):
    """An engine ran out of memory when it started, though so much was booked for it."""

    __tablename__ = "did_not_fit"
    __table_args__ = (Index("did_not_fit_by_time", "at"),)

    fingerprint: str = Field(primary_key=True)
    engine: str = Field(primary_key=True)
    engine_version: str = Field(primary_key=True)
    gpu_class: str = Field(primary_key=True)
    tensor_parallel: int = Field(primary_key=True)
    pipeline_parallel: int = Field(primary_key=True)
    batched_tokens: int = Field(primary_key=True, sa_type=BigInteger)
    sequences: int = Field(primary_key=True, sa_type=BigInteger)
    kv_dtype: str = Field(primary_key=True)
    booked_bytes: int = Field(sa_type=BigInteger)
    """Of each card (of RAM, on CPUs); the most at which it did not fit."""
    instance_id: str
    fence: int = Field(sa_type=BigInteger)
    at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class NominationRow(SQLModel, table=True):
    """Room that is kept for somebody who cannot take it yet: on one GPU, or of a host's RAM (``gpu_uuid`` empty).

    It is no claim: only placement minds it, and nobody of a higher priority has to.
    """

    __tablename__ = "nomination"
    __table_args__ = (Index("nomination_by_expiry", "expires_at"),)

    nominee: str = Field(primary_key=True)
    """Id of the instance; for the replacement of one that is being moved: ``move:`` and the id of the old one."""
    host_id: str = Field(primary_key=True)
    gpu_uuid: str = Field(primary_key=True, default="")
    deployment: str = Field(index=True)
    """Of the nominee."""
    fence: int = Field(default=0, sa_type=BigInteger)
    """Under which the instance had asked; of a move 0."""
    memory_bytes: int = Field(sa_type=BigInteger)
    priority: int
    expires_at: datetime = Field(sa_type=UtcDateTime)


class EvictionRow(SQLModel, table=True):
    """An instance that was asked to go so that another gets its room. Gone with it, or with the nomination."""

    __tablename__ = "eviction"

    instance_id: str = Field(primary_key=True)
    deployment: str
    fence: int = Field(sa_type=BigInteger)
    """Of the placement whose room is meant."""
    nominee: str = Field(index=True)
    by: datetime | None = Field(default=None, sa_type=UtcDateTime)
    """When it is to go whether it is replaced or not; None: it is moved, and waits for its replacement."""
    reason: str
    expires_at: datetime = Field(sa_type=UtcDateTime)


class DefragmentationRow(SQLModel, table=True):
    """Projection of a ``DefragmentWorkflow``, the running or last one of its deployment."""

    __tablename__ = "defragmentation"

    deployment: str = Field(primary_key=True)
    run_id: str
    running: bool
    message: str
    durable: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """The workflow's whole state."""
    projection: int
    started_at: datetime = Field(sa_type=UtcDateTime)
    updated_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class JoinTokenRow(SQLModel, table=True):
    __tablename__ = "join_token"

    id: str = Field(primary_key=True)
    token_hash: str = Field(unique=True)
    description: str = ""
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    expires_at: datetime = Field(sa_type=UtcDateTime)
    max_uses: int = 1
    uses: int = 0
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    used_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    """The last time."""
    used_by: str = ""
    """Id of the host that used it last."""


class ApiKeyRow(SQLModel, table=True):
    __tablename__ = "api_key"

    id: str = Field(primary_key=True)
    name: str
    prefix: str
    """First characters, to recognise a key by."""
    key_hash: str = Field(unique=True)
    scope: str
    """``admin``: everything; ``inference``: the gateway only."""
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class AuthorityRow(SQLModel, table=True):
    """Keys of this installation: ``ca`` and ``tickets``."""

    __tablename__ = "authority"

    id: str = Field(primary_key=True)
    certificate: str = ""
    """PEM; empty for a key without one."""
    sealed_key: str
    """PEM, sealed with the master key."""
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class HostStatusRow(SQLModel, table=True):
    """What hosts said of themselves in the last half hour."""

    __tablename__ = "host_status"
    __table_args__ = (Index("host_status_by_time", "at"),)

    host_id: str = Field(primary_key=True)
    at: datetime = Field(primary_key=True, sa_type=UtcDateTime)
    status: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class AuditRow(SQLModel, table=True):
    """Who did, or tried, what."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_by_time", "at"),)

    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    actor: str
    """``host:<id>``, ``key:<id>``, or ``unknown``."""
    action: str
    """E.g. ``temporal.StartWorkflowExecution``, ``host.join``, ``engine.request``."""
    target: str = ""
    outcome: str
    """``done`` or ``refused``."""
    reason: str = ""
    peer: str = ""
    """Network address that it came from."""
    count: int = 1
    """So many alike within a minute are one row."""


class RegistryRow(SQLModel, table=True):
    """One row: grows in the same transaction as anything that gateways keep in memory."""

    __tablename__ = "registry"

    id: int = Field(default=1, primary_key=True)
    version: int = Field(default=0, sa_type=BigInteger)
