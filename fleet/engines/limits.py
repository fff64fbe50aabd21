"""What an engine cannot run, by what is known of its versions. Pure."""

from fleet.engines.architectures import known
from fleet.inventory import AcceleratorKind
from fleet.sizing.facts import Format, ModelFacts
from fleet.sizing.sizing import GpuClass

LABELS = {"vllm": "vLLM", "sglang": "SGLang", "llama_cpp": "llama.cpp", "custom": "the custom engine"}
_OLDEST = {"vllm": 70, "sglang": 80}
"""Compute capability of NVIDIA cards, times ten, below which there are no kernels at all."""
_QUANTIZATION = {
    "fp8": 75,
    "awq": 75,
    "gptq": 60,
    "mxfp4": 80,
    "nvfp4": 75,
    "modelopt": 80,
    "fbgemm_fp8": 80,
    "compressed-tensors": 70,
    "experts_int8": 80,
    "torchao": 75,
    "fp_quant": 100,
}
"""As vLLM 0.32's ``get_min_capability`` says: the oldest cards that have at least weight-only kernels for it."""


def unsupported(engine: str, formats: frozenset[Format], facts: ModelFacts, version: str, gpu: GpuClass | None) -> str:
    """Why not; empty: nothing speaks against it."""
    label = f"{LABELS[engine]} {version}".rstrip()
    if facts.format not in formats:
        return f"{LABELS[engine]} loads {_listed(formats)}, and this model is {facts.format}"
    names = known(engine, version)
    if names and facts.architecture not in names:
        return f"{label} does not know the architecture {facts.architecture}"
    return _too_old(label, _OLDEST.get(engine, 0), facts, gpu)


def _too_old(label: str, oldest: int, facts: ModelFacts, gpu: GpuClass | None) -> str:
    capability = _capability(gpu)
    if gpu is None or capability is None:
        return ""
    card = f"{gpu.name or 'this card'} has {gpu.compute_capability}"
    if capability < oldest:
        return f"{label} needs compute capability {oldest / 10:.1f}, and {card}"
    method = facts.quantization.method if facts.quantization is not None else ""
    needed = _QUANTIZATION.get(method, 0)
    if capability < needed:
        return f"{label} runs {method} from compute capability {needed / 10:.1f} on, and {card}"
    return ""


def _capability(gpu: GpuClass | None) -> int | None:
    """Times ten; only NVIDIA's are ordered."""
    if gpu is None or gpu.kind is not AcceleratorKind.NVIDIA:
        return None
    try:
        return round(float(gpu.compute_capability) * 10)
    except ValueError:
        return None


def _listed(formats: frozenset[Format]) -> str:
    return " and ".join(sorted(formats))
