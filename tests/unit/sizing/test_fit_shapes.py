import pytest

from fleet.sizing.facts import ModelFacts
from fleet.sizing.shapes import shapes
from fleet.sizing.sizing import Shape
from tests.unit.sizing.checkpoints import facts_of

QWEN_8B = facts_of("Qwen/Qwen3-8B")
QWEN_VL = facts_of("Qwen/Qwen2.5-VL-7B-Instruct")
"""28 heads, 4 KV heads."""


def sizes(*found: Shape) -> list[tuple[int, int, int]]:
    return [(s.tensor_parallel, s.pipeline_parallel, s.hosts) for s in found]


@pytest.mark.parametrize(
    ("engine", "model", "most", "hosts", "gpus", "expected"),
    [
        ("vllm", QWEN_8B, 8, 1, None, [(1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1)]),
        ("vllm", QWEN_VL, 8, 1, None, [(1, 1, 1), (2, 1, 1), (4, 1, 1)]),
        ("vllm", QWEN_8B, 4, 2, None, [(1, 1, 1), (2, 1, 1), (1, 2, 2), (4, 1, 1), (2, 2, 2), (4, 2, 2)]),
        ("sglang", QWEN_8B, 8, 2, 8, [(8, 1, 1), (4, 2, 2)]),
        ("vllm", QWEN_8B, 8, 1, 6, [(2, 3, 1)]),
        ("vllm", QWEN_8B, 8, 2, 16, [(8, 2, 2)]),
        ("vllm", QWEN_8B, 4, 1, 16, []),
        ("vllm", QWEN_8B, 8, 1, 0, [(1, 1, 1)]),
        ("llama_cpp", QWEN_8B, 3, 1, None, [(1, 1, 1), (1, 2, 1), (1, 3, 1)]),
        ("llama_cpp", QWEN_8B, 2, 3, None, [(1, 1, 1), (1, 2, 1), (1, 2, 2), (1, 3, 3)]),
        ("llama_cpp", QWEN_8B, 2, 3, 3, [(1, 3, 3)]),
        ("llama_cpp", QWEN_8B, 3, 4, 5, []),
        ("llama_cpp", QWEN_8B, 0, 1, None, [(1, 1, 1)]),
        ("llama_cpp", QWEN_8B, 0, 3, None, [(1, 1, 1), (1, 2, 2), (1, 3, 3)]),
    ],
)
def test_shapes(
    engine: str, model: ModelFacts, most: int, hosts: int, gpus: int | None, expected: list[tuple[int, int, int]]
) -> None:
    found = shapes(engine, model, most_gpus_per_host=most, most_hosts=hosts, gpus=gpus)
    assert sizes(*found) == expected
