"""Which parser of tool calls and of reasoning a model family needs, as vLLM 0.32 and SGLang 0.5.23 name them. Pure."""

import re
from typing import NamedTuple

from fleet.placement.request import ModelCard
from fleet.sizing.facts import Task


class Parsers(NamedTuple):
    """Empty: none is known."""

    tool: str = ""
    reasoning: str = ""


class Family(NamedTuple):
    type: str
    """Regular expression for the whole of ``model_type`` in config.json."""
    name: str
    """For a part of the model's name; empty: any."""
    vllm: Parsers
    sglang: Parsers


NONE = Parsers()

_FAMILIES = (
    Family("qwen3(_moe)?", "coder", Parsers("qwen3_coder"), Parsers("qwen3_coder")),
    Family(r"qwen3_(next|5|6).*", "coder|instruct", Parsers("qwen3_coder"), Parsers("qwen3_coder")),
    Family(r"qwen3_(5|6).*", "", Parsers("qwen3_coder", "qwen3"), Parsers("qwen3_coder", "qwen3")),
    # Those that never think would have their whole answer taken for thoughts.
    Family(r"qwen3(_moe|_vl|_vl_moe)?", "instruct", Parsers("hermes"), Parsers("qwen25")),
    Family(
        r"qwen3(_moe|_vl|_vl_moe|_next)?", "thinking", Parsers("hermes", "qwen3"), Parsers("qwen25", "qwen3-thinking")
    ),
    Family(r"qwen3(_moe|_vl|_vl_moe|_next)?", "", Parsers("hermes", "qwen3"), Parsers("qwen25", "qwen3")),
    Family("qwen2.*", "", Parsers("hermes"), Parsers("qwen25")),
    Family("deepseek_v41", "", Parsers("deepseek_v41", "deepseek_v41"), Parsers("deepseekv41", "deepseek-v41")),
    Family("deepseek_v4", "", Parsers("deepseek_v4", "deepseek_v4"), Parsers("deepseekv4", "deepseek-v4")),
    Family("deepseek_v32", "", Parsers("deepseek_v32", "deepseek_v3"), Parsers("deepseekv32", "deepseek-v3")),
    Family("deepseek_v3", r"v3\.1", Parsers("deepseek_v31", "deepseek_v3"), Parsers("deepseekv31", "deepseek-v3")),
    Family("deepseek_v3", "r1", Parsers("deepseek_v3", "deepseek_r1"), Parsers("deepseekv3", "deepseek-r1")),
    Family("deepseek_v3", "", Parsers("deepseek_v3"), Parsers("deepseekv3")),
    Family(r"glm4_moe|glm_moe.*|glm5.*", r"4\.7|glm-?5", Parsers("glm47", "glm45"), Parsers("glm47", "glm45")),
    Family("glm_moe.*|glm5.*|glm4_moe_lite", "", Parsers("glm47", "glm45"), Parsers("glm47", "glm45")),
    Family("glm4_moe|glm4v_moe|glm46v", "", Parsers("glm45", "glm45"), Parsers("glm45", "glm45")),
    Family("gpt_oss", "", Parsers("openai", "openai_gptoss"), Parsers("gpt-oss", "gpt-oss")),
    Family("kimi_k3", "", Parsers("kimi_k3", "kimi_k3"), Parsers("kimi_k3", "kimi_k3")),
    Family("kimi_k2|kimi_k25", "instruct", Parsers("kimi_k2"), Parsers("kimi_k2")),
    Family("kimi_k2|kimi_k25", "", Parsers("kimi_k2", "kimi_k2"), Parsers("kimi_k2", "kimi_k2")),
    Family("llama4.*", "", Parsers("llama4_pythonic"), Parsers("pythonic")),
    Family("llama|mllama", r"llama-?3", Parsers("llama3_json"), Parsers("llama3")),
    Family(
        "mistral.*|ministral.*|mixtral|pixtral",
        "magistral",
        Parsers("mistral", "mistral"),
        Parsers("mistral", "mistral"),
    ),
    Family("mistral.*|ministral.*|mixtral|pixtral", "instruct", Parsers("mistral"), Parsers("mistral")),
    Family("minimax_m3.*", "", Parsers("minimax_m3", "minimax_m3"), Parsers("minimax-m3", "minimax-m3")),
    Family("minimax(_m2.*)?", "", Parsers("minimax_m2", "minimax_m2"), Parsers("minimax-m2", "minimax")),
    Family("gemma4.*", "", Parsers("gemma4", "gemma4"), Parsers("gemma4", "gemma4")),
    Family("hunyuan_v1_moe", "a13b", Parsers("hunyuan_a13b", "hunyuan_a13b"), Parsers("hunyuan", "hunyuan")),
    Family("hy_v3", "", Parsers("hy_v3", "hy_v3"), NONE),
    Family("hy_v4", "", Parsers("hy_v4", "hy_v4"), NONE),
    Family("step3p5.*", "", Parsers("step3p5", "step3p5"), Parsers("step3p5", "step3p5")),
    Family("step3.*", "", Parsers("step3", "step3"), Parsers("step3", "step3")),
    Family("seed_oss", "", Parsers("seed_oss", "seed_oss"), NONE),
    Family("ernie4_5.*", "thinking", Parsers("ernie45", "ernie45"), NONE),
    Family("olmo3", "", Parsers("olmo3", "olmo3"), NONE),
    Family("granitemoehybrid", "", Parsers("granite4"), NONE),
    Family("granite", "", Parsers("granite"), NONE),
    Family("nemotron_h.*", "", Parsers("qwen3_coder", "nemotron_v3"), Parsers("qwen3_coder", "nemotron_3")),
)
"""The first that matches counts."""


def parsers_for(engine: str, card: ModelCard, model_path: str) -> Parsers:
    """``engine``: vllm or sglang. By model type, and where one type has several ways, by the name of file or folder."""
    if card.task != Task.GENERATE:
        return NONE
    name = model_path.rstrip("/").rsplit("/", 1)[-1]
    for family in _FAMILIES:
        if re.fullmatch(family.type, card.model_type) and re.search(family.name, name, re.IGNORECASE):
            return family.vllm if engine == "vllm" else family.sglang
    return NONE
