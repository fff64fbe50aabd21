"""Fixtures: large engines, installed as hosts install them, and models in the forms that they load.

All of it is kept below ``~/.cache/holdfast-tests``.
"""

import asyncio
import subprocess
from pathlib import Path

import pytest

from fleet.engines.vllm import CPU_SUFFIX, Vllm
from tests.engine_fixtures import find_small_model, one_installer
from worker_host.install import Engines

_CACHE = Path.home() / ".cache" / "holdfast-tests"
_CONVERT = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
source, target = sys.argv[1:]
folder, file = source.rsplit("/", 1)
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
config = GgufConfig(dequantize=True)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.bfloat16, quantization_config=config)
model.save_pretrained(target)
tokenizer.save_pretrained(target)
"""


@pytest.fixture(scope="session")
def vllm_binary() -> Path:
    """vLLM for CPUs."""
    folder = _CACHE / "engines"
    with one_installer(folder):
        return asyncio.run(Engines(folder, ()).ensure(Vllm(), Vllm.default_version + CPU_SUFFIX))


@pytest.fixture(scope="session")
def safetensors_model(vllm_binary: Path) -> Path:
    """The small model, unpacked to 16 bit: a folder of the Hugging Face kind."""
    target = _CACHE / "models" / "smollm2-135m-instruct"
    python = vllm_binary.with_name("python")
    with one_installer(target.parent):
        if not (target / "tokenizer.json").exists():
            pip = [str(python), "-m", "pip", "install", "--quiet", "gguf", "accelerate"]
            subprocess.run(pip, check=True)
            subprocess.run([str(python), "-c", _CONVERT, str(find_small_model()), str(target)], check=True)
    return target
