"""What a person asks for: the deployment as it stands on the wire."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

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


Image = Annotated[
    str,
    StringConstraints(
        max_length=512,
        pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9._:-]*[a-zA-Z0-9])?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
        r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$",
    ),
    Field(description="[registry[:port]/]name[:tag][@sha256:digest]"),
]


class ContainerSpec(Wire):
    """Of engines that run in containers (``runtime`` docker, or auto on a host with a Docker engine)."""

    image: Image | None = None
    """With the engine's program as its entrypoint. Unset: what the host has been told for this engine."""
    network: Literal["bridge", "host"] = "bridge"
    """bridge: a network of its own, its port published on the host's loopback. host: that of the host."""
    shm_bytes: int | None = Field(default=None, ge=1 << 20, le=1 << 50)
    """Shared memory; unset: 10 GiB at most, of which only what is used is taken."""
    host_ipc: bool = False
    """Share the host's shared memory instead."""


class HealthSpec(Wire):
    start_timeout_s: int = Field(default=1800, ge=1, le=86_400)
    """How long a start may take before the engine counts as failed."""

    unresponsive_timeout_s: int = Field(default=15, ge=5, le=86_400)
    """An engine that has not answered its health check for so long is restarted."""
    stall_timeout_s: int = Field(default=300, ge=0, le=86_400)
    """An engine whose running requests have not got on for so long is restarted; 0: never."""
    idle_probe_s: int = Field(default=60, ge=0, le=86_400)
    """How often an idle engine is asked for one token; 0: never."""


class RestartSpec(Wire):
    """How often a failing engine is tried again before a person is asked."""

    max_failures: int = Field(default=5, ge=0, le=1000)
    """Within ``window_s``; one more and the replica is failed until somebody approves a retry. 0: never retry."""
    window_s: int = Field(default=600, ge=1, le=604_800)
    failures_per_host: int = Field(default=2, ge=1, le=1000)
    """After so many on one host the replica goes elsewhere, if there is an elsewhere."""


class CanarySpec(Wire):
    replicas: int = Field(default=1, ge=1, le=MAX_REPLICAS)
    """How many replicas of the new revision are tried first, beside all old ones."""
    weight: int | None = Field(default=None, ge=1, le=99)
    """Percent of the requests that they get; unset: what their number gives them."""
    auto_promote: bool = True
    """Go on by itself after the bake time; else wait for a person."""
    max_error_rate: float = Field(default=0.05, ge=0, le=1)
    """Share of the canary's requests that may fail before it is rolled back."""
    max_latency_ratio: float | None = Field(default=2.0, gt=0)
    """Slowest answer time (p95 until the first byte), compared with the old revision's; unset: not compared."""
    min_requests: int = Field(default=20, ge=1, le=1_000_000)
    """Fewer requests than this say nothing."""


class RolloutSpec(Wire):
    """How engines of a new revision replace those of the old one."""

    strategy: Literal["rolling", "recreate", "canary", "blue_green"] = "rolling"
    max_surge: int = Field(default=1, ge=0, le=MAX_REPLICAS)
    """So many more replicas than wanted may exist meanwhile."""
    max_unavailable: int = Field(default=0, ge=0, le=MAX_REPLICAS)
    """So many fewer than wanted may be ready meanwhile."""
    bake_s: int = Field(default=300, ge=0, le=2_592_000)
    """canary, blue_green: how long the new revision must prove itself before the old one goes."""
    canary: CanarySpec = CanarySpec()
    on_failure: Literal["rollback", "pause"] = "rollback"
    """When the new revision fails: go back to the one that worked, or wait for a person."""

    @model_validator(mode="after")
    def _can_move(self) -> Self:
        if self.max_surge == 0 and self.max_unavailable == 0:
            raise ValueError("max_surge and max_unavailable cannot both be 0: nothing could ever be replaced")
        return self


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
    restart: RestartSpec = RestartSpec()
    """A change holds for replicas that are started after it."""
    rollout: RolloutSpec = RolloutSpec()
    runtime: Literal["auto", "docker", "process"] = "auto"
    """auto: a container where the host has a Docker engine and an image for it, else a process."""
    container: ContainerSpec = ContainerSpec()

    @model_validator(mode="after")
    def _has_use_for_an_image(self) -> Self:
        if self.runtime == "process" and self.container != ContainerSpec():
            raise ValueError("container: a process has no container; set runtime to 'docker' or 'auto'")
        return self


class DeploymentCreate(Wire):
    name: Name
    labels: Labels = Field(default_factory=dict)
    spec: DeploymentSpec
