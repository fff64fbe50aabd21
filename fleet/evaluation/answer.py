"""What an evaluation answers. Pure; sizes are bytes unless said otherwise."""

from typing import Literal

from pydantic import BaseModel, Field

from fleet.evaluation.rent import Rental
from fleet.sizing.sizing import GpuClass, Sizing

Against = Literal["fleet", "catalog", "inventory"]


class ModelSummary(BaseModel):
    display: str
    architecture: str
    model_type: str
    task: str
    format: str
    quantization: str = Field(description="empty: none")
    dtype: str = Field(description="that its unquantised tensors are computed in")
    parameters: int = Field(description="stored values; 0: not known")
    weight_bytes: int = Field(description="as stored")
    file_bytes: int
    context: int = Field(description="longest that it was made for, in tokens")
    fingerprint: str
    notes: list[str] = Field(description="what could not be found out, and what is assumed instead")


class EngineVerdict(BaseModel):
    engine: str
    version: str
    can_run: bool
    chosen: bool
    reasons: list[str] = Field(description="why not; of the chosen one: why it")


class Way(Sizing):
    """One way to run one replica, and what its engine would be told."""

    flags: list[str] = Field(default=[], description="as the engine's command line would have them; empty: not known")


class FitView(BaseModel):
    """On cards of one class, in one shape."""

    shape: str = Field(description="e.g. '1 GPU', '4 GPUs (TP4)', '16 GPUs on 2 hosts (TP8 PP2)'")
    gpus: int
    hosts: int
    tensor_parallel: int
    pipeline_parallel: int
    minimum: Way | None = Field(description="starts, and serves one request of the asked context")
    asked: Way | None = Field(description="serves the asked context times the asked concurrency")
    full_card: Way | None = Field(description="with all that the cards have")
    limit: str = Field(description="why `asked` is null")
    remedy: str = Field(description="the smallest change that would make it fit")
    longest_context: int = Field(description="for one request; 0: the weights alone do not fit")
    warnings: list[str]
    replicas_now: int = Field(description="of this shape alone, in the room that is free now")
    replicas_if_empty: int = Field(description="of this shape alone, if nothing else ran there")


class ClassView(BaseModel):
    """Cards that are the same to sizing, or the RAM of hosts (`kind` cpu)."""

    gpu: GpuClass
    gpus: int
    hosts: int
    most_gpus_per_host: int
    allocatable_bytes: int = Field(description="of the roomiest card, if nothing of ours ran there")
    why_not: str = Field(description="why the model cannot run there at all; empty: it may")
    fits: list[FitView] = Field(description="shapes, best first")
    replicas_now: int = Field(description="of the shape that yields most")
    replicas_if_empty: int
    rentals: list[Rental] = Field(default=[], description="machines with such cards, cheapest first")


class FilterCount(BaseModel):
    """What took hosts away; each host counts once."""

    filter: str
    hosts: int
    gpus: int


class MaxReplicas(BaseModel):
    """Null where machines are rented: as many as are paid for."""

    now: int | None = Field(default=None, description="in the room that is free")
    if_empty: int | None = Field(default=None, description="if nothing else ran on the hosts that suit")


class Message(BaseModel):
    level: Literal["ok", "warning", "problem"]
    text: str


class Evaluation(BaseModel):
    compatible: bool = Field(description="all replicas that are asked for have room now; catalog: can be rented")
    against: Against
    replicas: int = Field(description="that are asked for")
    messages: list[Message] = Field(description="what to know and what to do, the weightiest first")
    engine: str = Field(description="that would run it; empty: none can")
    engine_version: str = Field(description="empty: whatever build a host has")
    max_replicas: MaxReplicas
    model: ModelSummary
    engines: list[EngineVerdict]
    classes: list[ClassView]
    conflicts: list[str] = Field(description="arguments that contradict other fields of the spec")
    filters: list[FilterCount] = Field(description="why another replica would find no place; empty: it would")
