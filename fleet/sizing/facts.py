"""What is known of a model from its own files, whatever engine runs it. Pure.

Sizes are bytes, dimensions are elements.
"""

from enum import StrEnum

from fleet.model import Record


class Format(StrEnum):
    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    PYTORCH = "pytorch"
    """``.bin``, ``.pt``: only its size is known, since its headers are programs."""


class Task(StrEnum):
    GENERATE = "generate"
    EMBED = "embed"
    RERANK = "rerank"
    """Sequence classification: rerankers and reward models."""
    TRANSCRIBE = "transcribe"


class Role(StrEnum):
    """What a tensor is for, as far as memory depends on it."""

    EMBEDDING = "embedding"
    HEAD = "head"
    """Output projection; absent where it is tied to the embedding and not loaded twice."""
    ATTENTION = "attention"
    """Linear projections of attention or of state layers, divided by tensor parallelism."""
    KV_PROJECTION = "kv_projection"
    """K and V projections: divided too, but not into more parts than there are KV heads."""
    MLP = "mlp"
    EXPERTS = "experts"
    REPLICATED = "replicated"
    """Norms, routers, MLA down-projections: whole on every rank."""
    VISION = "vision"
    """Vision (or audio) tower and its projector."""
    MTP = "mtp"
    """Multi-token prediction layers: loaded only for speculation with them."""


class Weights(Record):
    """All tensors of one role and one type."""

    role: Role
    dtype: str
    """As its file says: ``BF16``, ``F8_E4M3``, ``U8``, …; for GGUF ``Q4_K`` and the like."""
    elements: int
    """Stored values; two 4-bit weights packed into a byte are one."""
    bytes: int


class LayerKind(StrEnum):
    FULL = "full"
    """Attention over the whole context, each layer with KV heads of its own: MHA, GQA, MQA."""
    SLIDING = "sliding"
    """The same over the last ``window`` tokens (chunked attention counts as sliding over its chunk)."""
    MLA = "mla"
    """Multi-head latent attention: one latent vector for a token, not divided by tensor parallelism."""
    STATE = "state"
    """Gated delta net, Mamba and kin: a state for each sequence, whatever its length."""
    ENCODER = "encoder"
    """Encoder-only attention: keeps nothing between steps."""
    CROSS = "cross"
    """Cross-attention of a decoder over ``window`` encoder positions, kept once for a sequence."""


class State(Record):
    """What one state layer keeps for one sequence, in elements before tensor parallelism."""

    conv_channels: int
    conv_kernel: int
    heads: int
    key_dim: int
    value_dim: int


class Layers(Record):
    """Layers that keep the same for each token or sequence."""

    kind: LayerKind
    count: int
    kv_heads: int = 0
    key_dim: int = 0
    """Of one head. MLA: ``kv_lora_rank + qk_rope_head_dim``, the whole latent."""
    value_dim: int = 0
    """Of one head. MLA: 0, the value is part of the latent."""
    window: int = 0
    """SLIDING: tokens that are looked back at. CROSS: encoder positions."""
    indexer_bytes: int = 0
    """For each token, of sparse attention's own cache (DeepSeek V3.2, GLM-5: 132)."""
    state: State | None = None


class Moe(Record):
    experts: int
    per_token: int
    expert_ffn: int
    shared_ffn: int = 0


class Mla(Record):
    q_lora_rank: int
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int


class Vision(Record):
    hidden: int
    layers: int
    patch: int
    largest_image: int
    """Pixels on one side."""
    spatial_merge: int = 1


class Quantization(Record):
    method: str
    """``fp8``, ``awq``, ``gptq``, ``mxfp4``, ``compressed-tensors``, …; GGUF: ``gguf``."""
    bits: float = 16
    group: int = 0
    """Weights that share a scale, along the input width; 0: a whole channel or tensor."""
    block: tuple[int, int] = (0, 0)
    """FP8 with blocks: (rows, columns), so that ranks must get multiples of them."""


class ModelFile(Record):
    name: str
    """Relative to the model."""
    size: int


class ModelFacts(Record):
    """Everything that sizing, engine choice and adapters may know of a model."""

    format: Format
    architecture: str
    """First of ``architectures`` in config.json; for GGUF ``general.architecture``."""
    model_type: str = ""
    """``model_type`` of config.json."""
    task: Task = Task.GENERATE
    fingerprint: str
    """Changes with whatever in its files sizing depends on: 32 hexadecimal digits."""
    hidden: int
    layers_total: int
    """Decoder layers (encoder layers of an encoder-only model), without MTP."""
    heads: int
    vocab: int
    ffn: int = 0
    """Width of dense MLPs; 0: all layers are MoE."""
    context: int
    """Longest that it was made for, in tokens."""
    tied_head: bool = False
    soft_cap: bool = False
    """The logits are capped, which takes a second copy of them."""
    remote_code: bool = False
    """It brings code of its own (``auto_map``): nothing runs it unless a person trusts it."""
    dtype: str = "BF16"
    """That its unquantised tensors are computed in, as safetensors spells it."""
    quantization: Quantization | None = None
    layers: tuple[Layers, ...]
    weights: tuple[Weights, ...] = ()
    """Empty: unknown tensor by tensor (``Format.PYTORCH``); then ``file_bytes`` is all there is."""
    layer_bytes: tuple[int, ...] = ()
    """GGUF: of each block's tensors, for partial offload; empty otherwise."""
    moe: Moe | None = None
    mla: Mla | None = None
    vision: Vision | None = None
    mtp_layers: int = 0
    encoder_layers: int = 0
    """Of encoder-decoder models (whisper)."""
    file_bytes: int = 0
    """Of all files that hold weights which an engine loads."""
    largest_file_bytes: int = 0
    files: tuple[ModelFile, ...] = ()
    """Those that hold weights."""
    chat_template: bool = False
    notes: tuple[str, ...] = ()
    """What could not be found out, and what is assumed instead."""

    @property
    def weight_bytes(self) -> int:
        """As stored, of all roles."""
        return sum(w.bytes for w in self.weights) or self.file_bytes

    def bytes_of(self, *roles: Role) -> int:
        return sum(w.bytes for w in self.weights if w.role in roles)


class Lora(Record):
    """One adapter, from its ``adapter_config.json``."""

    name: str
    rank: int
    alpha: float = 0
    target_modules: tuple[str, ...] = ()
    base_model: str = ""
    elements: int = 0
    """Of A and B of all target modules together; 0: not known."""
    bytes: int = 0
    """As stored."""
