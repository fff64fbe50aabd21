"""What a person asks for: the deployment as it stands on the wire."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo, field_validator, model_validator

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
Vendor = Literal["nvidia", "amd", "ascend", "hygon", "mthreads", "iluvatar", "cambricon", "metax", "apple"]
GpuType = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=_NO_NUL)]
HttpPath = Annotated[str, StringConstraints(max_length=256, pattern=r"^/[A-Za-z0-9._~/-]*$")]
Argument = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=_NO_NUL)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
EnvValue = Annotated[str, StringConstraints(max_length=8192, pattern=_NO_NUL)]


def _plain_path(path: str) -> str:
    if "\x00" in path or ".." in path.split("/"):
        raise ValueError("must be a plain path without '..'")
    return path


Path = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_plain_path)]
Repo = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"),
    Field(description="owner/name"),
]
RevisionName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"), AfterValidator(_plain_path)
]


class ModelSource(Wire):
    """Where the weights are."""

    source: Literal["local", "huggingface", "modelscope"] = "local"
    path: Path | None = Field(default=None, validate_default=True)
    """local: a file (GGUF) or folder (safetensors) on the host: absolute, or relative to the host's models folder
    (``<home>/models``)."""
    repo: Repo | None = Field(default=None, validate_default=True)
    """huggingface, modelscope."""
    revision: RevisionName | None = None
    """Branch, tag or commit; unset: the hub's default branch."""
    file: Path | None = None
    """Of the repository, where it holds several models (GGUF)."""

    @field_validator("path")
    @classmethod
    def _goes_with_local(cls, path: str | None, info: ValidationInfo) -> str | None:
        local = info.data.get("source", "local") == "local"
        if local and path is None:
            raise ValueError("a local model needs the path of its file or folder on the host")
        if not local and path is not None:
            raise ValueError("is for local models; one on a hub has a repo, and perhaps a file")
        return path

    @field_validator("repo", "revision", "file")
    @classmethod
    def _goes_with_hubs(cls, value: str | None, info: ValidationInfo) -> str | None:
        local = info.data.get("source", "local") == "local"
        if local and value is not None:
            raise ValueError("is for models on hubs; a local model has a path")
        if not local and value is None and info.field_name == "repo":
            raise ValueError("name the repository: owner/name")
        return value

    @property
    def display(self) -> str:
        """Short, for people."""
        return self.repo or (self.path or "").rstrip("/").rsplit("/", 1)[-1]


class PlacementSpec(Wire):
    strategy: Literal["auto", "spread", "binpack"] = "auto"
    """auto: replicas of one deployment over failure domains, different deployments packed. spread: on the emptiest
    cards. binpack: on the fullest cards that have room, replicas of one deployment too."""
    host_selector: Labels = Field(default_factory=dict)
    """Only hosts that carry all of these labels."""
    spread_by: Label | None = None
    """Label whose values are the failure domains (a rack, a zone); unset: each host is its own."""
    avoid: Labels = Field(default_factory=dict)
    """Not on hosts with a replica of another deployment that carries all of these labels; empty: nothing is avoided."""
    vendors: list[Vendor] = Field(default_factory=list, max_length=16)
    """Only cards of these vendors; empty: any that the engine can use."""
    gpu_types: list[GpuType] = Field(default_factory=list, max_length=32)
    """Only cards whose name contains one of these, in any case (``H100``, ``RTX 4090``); empty: any."""
    gpu_ids: list[Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=_NO_NUL)]] = Field(
        default_factory=list, max_length=256
    )
    """Only these cards, by UUID; each replica takes of them what it needs. Empty: any."""
    gpus_per_replica: int | None = Field(default=None, ge=0, le=1024)
    """0: CPU only. Unset: as many as sizing says, or CPU where a host's engine build can use no card."""
    multi_host: bool = False
    """One replica may span several hosts, where none has room for it alone."""


Priority = Literal["low", "normal", "high", "critical"]


class PrioritySpec(Wire):
    """Who gives way to whom when there is not room for all."""

    level: Priority = "normal"
    preempts: bool = True
    """Where there is no room, replicas of lower levels are drained to make some."""
    floor: int = Field(default=1, ge=0, le=MAX_REPLICAS)
    """So many ready replicas are never taken by higher levels."""
    below_floor: bool = False
    """``critical`` deployments may take even those."""


class KvCacheSpec(Wire):
    dtype: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,32}$")] = "auto"
    """``auto``: as the model computes. vLLM, SGLang: ``fp8``, ``fp8_e4m3``; llama.cpp: ``q8_0``, ``q4_0``."""
    offload_bytes: int | None = Field(default=None, ge=1 << 20, le=1 << 50)
    """Host RAM for KV cache that does not fit onto the cards; unset: none."""


class SpeculativeSpec(Wire):
    method: Literal["ngram", "mtp", "eagle3", "draft_model"]
    tokens: int = Field(default=3, ge=1, le=64)
    """Guessed ahead in one step."""
    model: Path | None = None
    """eagle3, draft_model: the draft, on the host."""

    @model_validator(mode="after")
    def _has_its_draft(self) -> Self:
        if (self.method in ("eagle3", "draft_model")) != (self.model is not None):
            raise ValueError(f"model: {self.method} {'has none' if self.model else 'needs a draft model on the host'}")
        return self


class LoraSpec(Wire):
    name: Name
    """By which requests ask for it."""
    path: Path
    """Folder (or GGUF file, for llama.cpp) on the host."""


class CustomEngine(Wire):
    """Any server with an OpenAI-compatible port."""

    command: list[Argument] = Field(min_length=1, max_length=256)
    """Program and arguments. ``{{model_path}}``, ``{{model_name}}``, ``{{host}}``, ``{{port}}``, ``{{gpu_count}}``,
    ``{{max_model_len}}`` and ``{{concurrency}}`` are filled in."""
    health_path: HttpPath = "/health"
    metrics_path: HttpPath | None = None
    ready_path: HttpPath = "/v1/completions"
    """Of the one-token request that proves that it works (completions, chat/completions, embeddings or rerank)."""
    accelerators: list[Vendor] = Field(default_factory=list, max_length=16)
    """That it can use; empty: CPU only."""
    stop_grace_s: float = Field(default=30.0, ge=0, le=3600)


class Resources(Wire):
    cpu_threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads for generation; unset: the engine adapter's choice."""
    memory_bytes: int | None = Field(default=None, ge=1 << 20, le=1 << 50)
    """Memory to claim for a replica (of each of its GPUs, or RAM) instead of the estimate, in bytes."""
    ram_bytes: int | None = Field(default=None, ge=0, le=1 << 50)
    """Host RAM to claim besides for a replica on GPUs, instead of the estimate, in bytes."""


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


class AutoscalingSpec(Wire):
    wake_on_request: bool = False
    """A request for it while it has no replicas (``replicas: 0``) starts some, and waits for the first one. A
    deployment that a person has stopped stays stopped."""
    wake_replicas: int = Field(default=1, ge=1, le=MAX_REPLICAS)
    """How many are started then."""
    hold_at_most: int = Field(default=256, ge=1, le=100_000)
    """Requests that wait for that, in each gateway process; further ones are refused."""
    hold_for_s: float = Field(default=600.0, ge=1, le=86_400)
    """The longest that a request waits for it."""


class DeploymentSpec(Wire):
    model: ModelSource
    engine: Literal["auto", "vllm", "sglang", "llama_cpp", "custom"] = "auto"
    """auto: by the model's format and architecture, and by what the hosts can run."""
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
    priority: PrioritySpec = PrioritySpec()
    """A change holds at once, without new engines."""
    autoscaling: AutoscalingSpec = AutoscalingSpec()
    """So does one of this."""
    kv_cache: KvCacheSpec = KvCacheSpec()
    speculative: SpeculativeSpec | None = None
    lora: list[LoraSpec] = Field(default_factory=list, max_length=64)
    custom: CustomEngine | None = None
    """With ``engine: custom``, and only then."""

    @model_validator(mode="after")
    def _says_how_to_run_custom(self) -> Self:
        if (self.engine == "custom") != (self.custom is not None):
            raise ValueError("custom: goes with engine 'custom', which needs it; set both or neither")
        return self

    @model_validator(mode="after")
    def _has_use_for_an_image(self) -> Self:
        if self.runtime == "process" and self.container != ContainerSpec():
            raise ValueError("container: a process has no container; set runtime to 'docker' or 'auto'")
        return self


class DeploymentCreate(Wire):
    name: Name
    labels: Labels = Field(default_factory=dict)
    spec: DeploymentSpec
