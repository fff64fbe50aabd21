"""Adapters, as PEFT saves them and as llama.cpp wants them."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from fleet.sizing.files import ReadError, ReadProblem
from fleet.sizing.lora import read_lora
from tests.unit.sizing.checkpoints import write_safetensors
from tests.unit.sizing.decoders import Weight

CONFIG = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["q_proj", "v_proj"],
    "base_model_name_or_path": "Qwen/Qwen3-8B",
}
PREFIX = "base_model.model.model.layers.0.self_attn."


def adapter(folder: Path, rank: int = 16, **config: Any) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    weights = [
        Weight(f"{PREFIX}{module}.lora_{side}.weight", shape)
        for module, out in (("q_proj", 4096), ("v_proj", 1024))
        for side, shape in (("A", (rank, 4096)), ("B", (out, rank)))
    ]
    write_safetensors(folder / "adapter_model.safetensors", tuple(weights))
    return folder


def refused(path: Path) -> ReadError:
    with pytest.raises(ReadError) as error:
        read_lora(path)
    assert error.value.message
    return error.value


def test_folder(tmp_path: Path) -> None:
    lora = read_lora(adapter(tmp_path), "poet")
    assert (lora.name, lora.rank, lora.alpha, lora.base_model) == ("poet", 16, 32, "Qwen/Qwen3-8B")
    assert lora.target_modules == ("q_proj", "v_proj")
    assert lora.elements == 16 * (4096 + 4096 + 4096 + 1024)
    assert lora.bytes == 2 * lora.elements
    assert read_lora(tmp_path).name == tmp_path.name


def test_rank_is_the_largest_that_is_anywhere(tmp_path: Path) -> None:
    assert read_lora(adapter(tmp_path, rank_pattern={"v_proj": 64})).rank == 64
    assert read_lora(adapter(tmp_path, rank=32)).rank == 32


def test_modules_by_a_rule_are_found_by_their_tensors(tmp_path: Path) -> None:
    assert read_lora(adapter(tmp_path, target_modules="all-linear")).target_modules == ("q_proj", "v_proj")


def test_pickled_adapter_is_known_by_its_size(tmp_path: Path) -> None:
    (adapter(tmp_path) / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    lora = read_lora(tmp_path)
    assert (lora.elements, lora.bytes) == (0, (tmp_path / "adapter_model.bin").stat().st_size)


def test_gguf(tmp_path: Path) -> None:
    path = tmp_path / "poet.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 32.0)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((8, 256), np.float16))
    writer.add_tensor("blk.0.attn_q.weight.lora_b", np.zeros((512, 8), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    lora = read_lora(path)
    assert (lora.name, lora.rank, lora.alpha, lora.target_modules) == ("poet", 8, 32, ("attn_q",))
    assert (lora.elements, lora.bytes) == (8 * (256 + 512), 2 * 8 * (256 + 512))


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"peft_type": "PROMPT_TUNING"}, ReadProblem.UNSUPPORTED),
        ({"r": 0}, ReadProblem.MALFORMED),
        ({"r": "many"}, ReadProblem.MALFORMED),
        ({"lora_alpha": []}, ReadProblem.MALFORMED),
    ],
)
def test_what_is_no_lora_is_refused(tmp_path: Path, config: dict[str, Any], kind: ReadProblem) -> None:
    assert refused(adapter(tmp_path, **config)).kind is kind


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    assert refused(tmp_path).kind is ReadProblem.UNSUPPORTED
    assert refused(tmp_path / "nope").kind is ReadProblem.MISSING
    (adapter(tmp_path) / "adapter_model.safetensors").unlink()
    assert refused(tmp_path).kind is ReadProblem.MISSING
    write_safetensors(tmp_path / "adapter_model.safetensors", (Weight("x", (1,)),))
    assert refused(tmp_path).kind is ReadProblem.UNSUPPORTED
