"""What a person asks for: the deployment as it stands on the wire."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from fleet.model import Wire

MAX_REPLICAS = 1000
"""Half of what one Temporal workflow can keep in flight to its children."""

_NO_NUL = r"^[^\x00]*$"
"""No process can be given one."""
Name = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"),
    Field(description="lower-case letters, digits, '-' and '.', at most 63 characters; also the model's public name"),
]
Label = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
Labels = Annotated[dict[Label, Annotated[str, StringConstraints(max_length=63, pattern=_NO_NUL)]], Field(max_length=32)]
Argument = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=_NO_NUL)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
EnvValue = Annotated[str, StringConstraints(max_length=8192, pattern=_NO_NUL)]


class ModelSource(Wire):
    """Where the weights are."""

    source: Literal["local"] = "local"
    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    """File on the host: absolute, or relative to the host's models folder (``<home>/models``)."""

    @field_validator("path")
    @classmethod
    def _is_a_path(cls, path: str) -> str:
        if "\x00" in path or ".." in path.split("/"):
            raise ValueError("must be a plain path without '..'")
        return path


class PlacementSpec(Wire):
    host_selector: Labels = Field(default_factory=dict)
    """Only hosts that carry all of these labels."""
    gpus_per_replica: int | None = Field(default=None, ge=0, le=64)
    """0: CPU only. Unset: one GPU where a host's engine build can use it, else CPU."""


class Resources(Wire):
    cpu_threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads for generation; unset: the engine adapter's choice."""
    memory_bytes: int | None = Field(default=None, ge=1 << 20, le=1 << 50)
    """Memory to claim for a replica (VRAM or RAM) instead of the estimate, in bytes."""


class HealthSpec(Wire):
    start_timeout_s: int = Field(default=1800, ge=1, le=86_400)
    """How long a start may take before the engine counts as failed."""


class DeploymentSpec(Wire):
    model: ModelSource
    engine: Literal["auto", "llama_cpp"] = "auto"
    engine_version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}$")] | None = None
    replicas: int = Field(default=1, ge=0, le=MAX_REPLICAS)
    engine_args: list[Argument] = Field(default_factory=list, max_length=256)
    env: dict[EnvName, EnvValue] = Field(default_factory=dict, max_length=128)
    """Values are secrets: sealed before they are kept, never shown again."""
    max_model_len: int | None = Field(default=None, ge=16, le=100_000_000)
    """Longest context of one request, in tokens."""
    concurrency: int | None = Field(default=None, ge=1, le=1024)
    """Requests that one replica works on at a time."""
    placement: PlacementSpec = PlacementSpec()
    resources: Resources = Resources()
    health: HealthSpec = HealthSpec()
    runtime: Literal["auto", "process"] = "auto"


class DeploymentCreate(Wire):
    name: Name
    labels: Labels = Field(default_factory=dict)
    spec: DeploymentSpec
