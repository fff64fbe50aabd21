"""What sizing is asked and what it answers: one replica on GPUs of one class. Pure; sizes are bytes unless said
otherwise."""

from fleet.inventory import AcceleratorKind
from fleet.model import Record
from fleet.sizing.facts import Lora, ModelFacts


class GpuClass(Record):
    """Cards that are the same to sizing. ``kind`` CPU: the RAM of a host without cards for the engine."""

    kind: AcceleratorKind
    name: str = ""
    memory_bytes: int
    """As the vendor's tool says (NVML); what the engine sees of it is for sizing to know."""
    compute_capability: str = ""
    unified: bool = False
    """Its memory is the machine's RAM."""


class Draft(Record):
    """Speculative decoding."""

    method: str
    """``ngram``, ``mtp``, ``eagle3``, ``draft_model``."""
    tokens: int = 3
    facts: ModelFacts | None = None
    """Of the draft model; None where the method needs none, or nothing is known of it."""


class Workload(Record):
    """What one replica is to hold, as a person asks for it. None: the engine's default, bounded by what fits."""

    context: int | None = None
    """Tokens of the longest request."""
    concurrency: int | None = None
    """Requests at a time, each as long as ``context`` at worst."""
    sequences: int | None = None
    """Most requests in one batch, however long; None: ``concurrency``, and the engine's default where that is None."""
    batched_tokens: int | None = None
    """Prompt tokens in one step (vLLM ``--max-num-batched-tokens``, SGLang ``--chunked-prefill-size``, llama.cpp
    ``--ubatch-size``)."""
    kv_dtype: str = "auto"
    """``auto``, ``fp8`` and kin; llama.cpp: ``q8_0`` and kin."""
    dtype: str = "auto"
    """``float32``: an FP32 checkpoint is not served in 16 bit."""
    eager: bool = False
    """No CUDA graphs."""
    text_only: bool = False
    """The vision tower is not loaded."""
    prefix_caching: bool = True
    flash_attention: bool = True
    kv_offload_bytes: int = 0
    """Of host RAM, for KV cache."""
    loras: tuple[Lora, ...] = ()
    max_loras: int = 0
    draft: Draft | None = None
    utilization: float | None = None
    """Share of each card that the user's own flags give the engine; it is then booked, and nothing else."""
    gpu_layers: int | None = None
    """llama.cpp: layers on GPUs, as the user's own flags say."""


class Shape(Record):
    """Over how many cards a replica is spread."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    hosts: int = 1

    @property
    def gpus(self) -> int:
        """Of all hosts together."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def gpus_per_host(self) -> int:
        return self.gpus // self.hosts


class Sizing(Record):
    """One way to run one replica: what is booked for it and what its engine is told, which is the same."""

    shape: Shape = Shape()
    gpu_bytes: int
    """Booked on each card: the fullest rank's, rounded up to MiB. 0: on CPUs."""
    ram_bytes: int
    """Booked of each host's RAM."""
    terms: dict[str, int] = {}
    """On the fullest card (or of RAM, on CPUs), by cause: ``weights``, ``kv_cache``, ``activation``, ``cuda_graphs``,
    ``non_torch``, ``vision``, ``lora``, ``draft``, ``compute``, …; their sum is ``gpu_bytes`` up to rounding."""
    ram_terms: dict[str, int] = {}
    error_bytes: int = 0
    """By so much the prediction of one card may be off, either way."""
    context: int
    """Longest request that it serves; what the engine is told."""
    sequences: int
    """Most requests in one batch; what the engine is told."""
    batched_tokens: int
    kv_bytes: int
    """Of each card, for the KV cache alone."""
    kv_tokens: int = 0
    """So many tokens of context fit into it, over all requests."""
    concurrency: float
    """Requests of ``context`` tokens that fit into the KV cache at a time."""
    utilization: float | None = None
    """What the engine is told, of what it takes for the card's memory, rounded up; None where it is told none. vLLM:
    ``gpu_bytes`` without what lies outside its own account (CUDA context, NCCL). SGLang: weights and KV cache."""
    gpu_layers: int | None = None
    """llama.cpp: layers on GPUs. None: all."""
    measured: bool = False
    """Terms are from an engine's own start-up lines, not predicted."""


class Fit(Record):
    """Of one model, on cards of one class, in one shape."""

    shape: Shape = Shape()
    minimum: Sizing | None = None
    """Starts, and serves one request of the asked context."""
    asked: Sizing | None = None
    """Serves the asked context times the asked concurrency."""
    full_card: Sizing | None = None
    """With all that the cards have."""
    limit: str = ""
    """Why ``asked`` is None: the largest term and what is missing, for people."""
    remedy: str = ""
    """The smallest change that would make it fit, for people."""
    longest_context: int = 0
    """For one request on such cards; 0: the weights alone do not fit."""
    warnings: tuple[str, ...] = ()
