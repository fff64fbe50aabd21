"""Parsers of tool calls and reasoning, by model family."""

import pytest

from fleet.engines.parsers import Parsers, parsers_for
from fleet.placement.request import ModelCard


@pytest.mark.parametrize(
    ("model_type", "name", "vllm", "sglang"),
    [
        ("qwen2", "Qwen2.5-7B-Instruct", ("hermes", ""), ("qwen25", "")),
        ("qwen3", "Qwen3-8B", ("hermes", "qwen3"), ("qwen25", "qwen3")),
        ("qwen3_moe", "Qwen3-30B-A3B-Instruct-2507", ("hermes", ""), ("qwen25", "")),
        ("qwen3_moe", "Qwen3-30B-A3B-Thinking-2507", ("hermes", "qwen3"), ("qwen25", "qwen3-thinking")),
        ("qwen3_moe", "Qwen3-Coder-30B-A3B-Instruct", ("qwen3_coder", ""), ("qwen3_coder", "")),
        ("qwen3_5_moe", "Qwen3.5-35B-A3B", ("qwen3_coder", "qwen3"), ("qwen3_coder", "qwen3")),
        ("deepseek_v3", "DeepSeek-R1-0528", ("deepseek_v3", "deepseek_r1"), ("deepseekv3", "deepseek-r1")),
        ("deepseek_v3", "DeepSeek-V3-0324", ("deepseek_v3", ""), ("deepseekv3", "")),
        ("deepseek_v3", "DeepSeek-V3.1", ("deepseek_v31", "deepseek_v3"), ("deepseekv31", "deepseek-v3")),
        ("deepseek_v32", "DeepSeek-V3.2", ("deepseek_v32", "deepseek_v3"), ("deepseekv32", "deepseek-v3")),
        ("glm4_moe", "GLM-4.6-FP8", ("glm45", "glm45"), ("glm45", "glm45")),
        ("glm4_moe", "GLM-4.7", ("glm47", "glm45"), ("glm47", "glm45")),
        ("glm_moe_dsa", "GLM-5", ("glm47", "glm45"), ("glm47", "glm45")),
        ("gpt_oss", "gpt-oss-20b", ("openai", "openai_gptoss"), ("gpt-oss", "gpt-oss")),
        ("kimi_k2", "Kimi-K2-Instruct", ("kimi_k2", ""), ("kimi_k2", "")),
        ("llama", "Llama-3.1-8B-Instruct", ("llama3_json", ""), ("llama3", "")),
        ("llama", "SmolLM2-135M-Instruct", ("", ""), ("", "")),
        ("mistral", "Mistral-7B-Instruct-v0.3", ("mistral", ""), ("mistral", "")),
        ("minimax_m2", "MiniMax-M2.5", ("minimax_m2", "minimax_m2"), ("minimax-m2", "minimax")),
        ("gemma4", "gemma-4-12B-it", ("gemma4", "gemma4"), ("gemma4", "gemma4")),
        ("unheard_of", "x", ("", ""), ("", "")),
        ("", "", ("", ""), ("", "")),
    ],
)
def test_family_is_known_by_its_type_and_name(
    model_type: str, name: str, vllm: tuple[str, str], sglang: tuple[str, str]
) -> None:
    card = ModelCard(model_type=model_type)
    assert parsers_for("vllm", card, f"/models/{name}/") == Parsers(*vllm)
    assert parsers_for("sglang", card, name) == Parsers(*sglang)


def test_models_that_do_not_chat_need_none() -> None:
    assert parsers_for("vllm", ModelCard(model_type="qwen3", task="embed"), "Qwen3-Embedding-8B") == Parsers()
