"""How the weights of a Hugging Face checkpoint are quantised. Pure."""

from fleet.sizing.facts import Quantization
from fleet.sizing.json_fields import Fields

_BITS = {
    "fp8": 8.0,
    "fbgemm_fp8": 8.0,
    "mxfp4": 4.0,
    "nvfp4": 4.0,
    "mxfp8": 8.0,
    "modelopt": 8.0,
    "modelopt_fp4": 4.0,
    "awq": 4.0,
    "gptq": 4.0,
}
_GROUPS = {"mxfp4": 32, "mxfp8": 32, "nvfp4": 16, "modelopt_fp4": 16}


def quantization_of(config: Fields, text: Fields, beside: Fields) -> Quantization | None:
    """``beside``: ``hf_quant_config.json``."""
    said = (
        config.sub("quantization_config", "compression_config")
        or text.sub("quantization_config", "compression_config")
        or beside.sub("quantization")
    )
    method = said.text("quant_method").lower() or _modelopt(said)
    if not method:
        return None
    if method == "modelopt" and "FP4" in said.text("quant_algo").upper():
        method = "modelopt_fp4"
    if method == "compressed-tensors":
        return _compressed(said)
    if method == "bitsandbytes":
        return Quantization(method=method, bits=4 if said.flag("load_in_4bit", "_load_in_4bit") else 8)
    return Quantization(
        method=method,
        bits=said.number("bits", "w_bit", "weight_bits", default=_BITS.get(method, 16.0)),
        group=_group(said, _GROUPS.get(method, 0)),
        block=_block(said.counts("weight_block_size")),
    )


def _modelopt(said: Fields) -> str:
    return "modelopt" if said.text("quant_algo") else ""


def _compressed(said: Fields) -> Quantization:
    groups = said.sub("config_groups")
    first = next((groups.sub(name).sub("weights") for name in sorted(groups.values)), said.sub("weights"))
    block = _block(first.counts("block_structure")) if first.text("strategy") == "block" else (0, 0)
    return Quantization(
        method="compressed-tensors",
        bits=first.number("num_bits", default=16.0),
        group=_group(first, 0),
        block=block,
    )


def _group(said: Fields, default: int) -> int:
    """-1 and 0 stand for whole channels."""
    size = said.number("group_size", "q_group_size", default=default)
    return int(size) if 0 < size < 1 << 20 else 0


def _block(sizes: tuple[int, ...]) -> tuple[int, int]:
    return (sizes[0], sizes[1]) if len(sizes) == 2 else (0, 0)
