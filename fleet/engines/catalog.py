"""The engines that Holdfast can run."""

from fleet.engines.adapter import EngineAdapter
from fleet.engines.custom import Custom
from fleet.engines.llama_cpp import LlamaCpp
from fleet.engines.sglang import SGLang
from fleet.engines.spec import EngineSpec
from fleet.engines.vllm import Vllm

ADAPTERS: dict[str, EngineAdapter] = {adapter.name: adapter for adapter in (LlamaCpp(), Vllm(), SGLang(), Custom())}


def resolve(engine: str) -> EngineAdapter:
    """The adapter for ``engine``. ``auto``, where nobody has looked at the model: llama.cpp, which every host can run;
    who knows the model asks ``fleet.engines.choice``."""
    return ADAPTERS["llama_cpp" if engine == "auto" else engine]


def adapter_for(spec: EngineSpec) -> EngineAdapter:
    """The adapter for one replica's engine: a custom one is what its deployment says."""
    return Custom(spec.custom) if spec.engine == Custom.name else resolve(spec.engine)
