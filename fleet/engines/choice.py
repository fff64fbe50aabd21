"""Which engine runs a model: by what its files are and by what the hosts offer. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fleet.engines.adapter import EngineAdapter
from fleet.engines.catalog import ADAPTERS
from fleet.engines.custom import Custom
from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.sizing.facts import Format, ModelFacts
from fleet.sizing.sizing import GpuClass
from fleet.specs import DeploymentSpec

_PREFERRED = {
    Format.GGUF: ("llama_cpp", "vllm", "sglang"),
    Format.SAFETENSORS: ("vllm", "sglang", "llama_cpp"),
    Format.PYTORCH: ("vllm", "sglang", "llama_cpp"),
}


@dataclass(frozen=True)
class Offer:
    """What one host has for engines."""

    host: str
    builds: tuple[EngineBuild, ...]
    gpus: tuple[GpuClass, ...] = ()
    runtimes: tuple[str, ...] = ("process",)


@dataclass(frozen=True)
class EngineChoice:
    engine: str
    """Empty: none can run it, and ``reasons`` say why."""
    version: str = ""
    """To pin; empty: whatever build a host has of its own."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Of each engine that was not chosen, for people."""


def choose_engine(facts: ModelFacts | None, spec: DeploymentSpec, offers: Sequence[Offer]) -> EngineChoice:
    """The one that is asked for, or with ``auto`` the best that some host can run the model with.

    ``facts`` None: nobody has looked at the model, so its name decides. No ``offers``: no host is there yet, and hosts
    are not asked for.
    """
    format_ = facts.format if facts is not None else format_by_name(spec.model.file or spec.model.path or "")
    asked = () if spec.engine == "auto" else (spec.engine,)
    order = asked or _PREFERRED[format_]
    reasons = {name: _why_not(ADAPTERS[name], facts, format_, spec, offers) for name in order}
    chosen = next((name for name in order if not reasons[name]), "")
    reasons |= {name: _not_asked(name, asked) for name in ADAPTERS if name not in order}
    if not chosen:
        return EngineChoice("", reasons=reasons)
    for name in order:
        reasons[name] = reasons[name] or f"{chosen} is preferred for {format_} models"
    del reasons[chosen]
    return EngineChoice(chosen, _version(ADAPTERS[chosen], facts, spec, offers), reasons)


def format_by_name(path: str) -> Format:
    """A folder is of the Hugging Face kind, and so is a repository; a file is GGUF unless it says otherwise."""
    name = path.rstrip("/").rsplit("/", 1)[-1].lower()
    if name.endswith((".bin", ".pt", ".pth")):
        return Format.PYTORCH
    return Format.SAFETENSORS if name.endswith(".safetensors") else Format.GGUF


def _not_asked(name: str, asked: tuple[str, ...]) -> str:
    if asked:
        return f"the deployment asks for {asked[0]}"
    return (
        "is used only where a deployment asks for it and says how to run it"
        if name == Custom.name
        else "not considered"
    )


def _why_not(
    adapter: EngineAdapter,
    facts: ModelFacts | None,
    format_: Format,
    spec: DeploymentSpec,
    offers: Sequence[Offer],
) -> str:
    if format_ not in adapter.formats:
        return f"loads {' and '.join(sorted(adapter.formats))}, and this model is {format_}"
    if not offers:
        return adapter.supports(facts, spec.engine_version or adapter.default_version) if facts is not None else ""
    ways = [(build, gpu) for offer in offers for build, gpu in _ways(adapter, spec, offer)]
    if not ways:
        return _nobody_offers(adapter.name, spec)
    refusals = [adapter.supports(facts, build.version, gpu) if facts is not None else "" for build, gpu in ways]
    return "" if "" in refusals else refusals[0]


def _ways(adapter: EngineAdapter, spec: DeploymentSpec, offer: Offer) -> list[tuple[EngineBuild, GpuClass | None]]:
    """(build, card) that the host could run the engine with; None for its CPU, or where nothing is known of cards."""
    if spec.container.image is not None and spec.runtime != "process" and "docker" in offer.runtimes:
        return [(EngineBuild(engine=adapter.name, version="", origin="image"), None)]
    found: list[tuple[EngineBuild, GpuClass | None]] = []
    for build in offer.builds:
        if build.engine != adapter.name or not _is_asked(build, spec):
            continue
        cards = {gpu.kind: gpu for gpu in offer.gpus if gpu.kind in build.accelerators and _suits(gpu, spec)}
        if spec.placement.gpus_per_replica != 0:
            found += [(build, gpu) for gpu in offer.gpus if gpu.kind in cards and _suits(gpu, spec)]
        if AcceleratorKind.CPU in build.accelerators and not spec.placement.gpus_per_replica:
            found.append((build, None))
    return found


def _is_asked(build: EngineBuild, spec: DeploymentSpec) -> bool:
    runtime = "docker" if build.origin == "image" else "process"
    if spec.runtime not in ("auto", runtime):
        return False
    return spec.engine_version is None or build.origin == "image" or build.version in ("", spec.engine_version)


def _suits(gpu: GpuClass, spec: DeploymentSpec) -> bool:
    vendors, types = spec.placement.vendors, spec.placement.gpu_types
    if vendors and gpu.kind not in vendors:
        return False
    return not types or any(wanted.lower() in gpu.name.lower() for wanted in types)


def _nobody_offers(engine: str, spec: DeploymentSpec) -> str:
    version = f" {spec.engine_version}" if spec.engine_version else ""
    where = "a card that it can use" if spec.placement.gpus_per_replica else "what it runs on"
    return f"no host offers {engine}{version} with {where}"


def _version(adapter: EngineAdapter, facts: ModelFacts | None, spec: DeploymentSpec, offers: Sequence[Offer]) -> str:
    """That a person asks for; else our own where some host offers it, or the only one there is."""
    if spec.engine_version is not None:
        return spec.engine_version
    ways = [(build, gpu) for offer in offers for build, gpu in _ways(adapter, spec, offer)]
    able = {b.version for b, gpu in ways if facts is None or not adapter.supports(facts, b.version, gpu)}
    if not offers or adapter.default_version in able:
        return adapter.default_version
    return ""
