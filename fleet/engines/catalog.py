"""The engines that Holdfast can run."""

from fleet.engines.adapter import EngineAdapter
from fleet.engines.llama_cpp import LlamaCpp

ADAPTERS: dict[str, EngineAdapter] = {adapter.name: adapter for adapter in (LlamaCpp(),)}


def resolve(engine: str) -> EngineAdapter:
    """The adapter for ``engine``; ``auto`` chooses by what the model is: today all models are GGUF files."""
    return ADAPTERS["llama_cpp" if engine == "auto" else engine]
