"""Which engine builds of a host can run a replica, and on which kinds of cards. Pure."""

from typing import NamedTuple

from fleet.engines.spec import EngineSpec
from fleet.inventory import AcceleratorKind, EngineBuild


class Software(NamedTuple):
    """What a host has to run engines; few sets of it differ in a fleet."""

    engines: tuple[EngineBuild, ...]
    runtimes: tuple[str, ...]


def fitting(spec: EngineSpec, software: Software) -> list[EngineBuild]:
    """What could run it there. An image is what it is: no version is asked of it."""
    if own_image(spec, software):
        return [EngineBuild(engine=spec.engine, version="", origin="image", image=spec.container.image or "")]
    suited = (b for b in software.engines if b.engine == spec.engine and _runs_in(b, spec, software))
    return [b for b in suited if _is_version(b, spec.engine_version)]


def own_image(spec: EngineSpec, software: Software) -> bool:
    return bool(spec.container.image) and spec.runtime != "process" and "docker" in software.runtimes


def usable_kinds(spec: EngineSpec, software: Software) -> frozenset[AcceleratorKind]:
    """Of cards. Of a deployment's own image only its author knows: it gets cards if it asks for them."""
    if own_image(spec, software):
        return kinds_of_all(bool(spec.placement.gpus_per_replica))
    return frozenset(kind for b in fitting(spec, software) for kind in b.accelerators) - {AcceleratorKind.CPU}


def runs_in_ram(spec: EngineSpec, software: Software) -> bool:
    return any(AcceleratorKind.CPU in b.accelerators for b in fitting(spec, software))


def kinds_of_all(any_kind: bool) -> frozenset[AcceleratorKind]:
    return frozenset(AcceleratorKind) - {AcceleratorKind.CPU} if any_kind else frozenset()


def identity(build: EngineBuild) -> tuple[str, str, str, str]:
    """Hosts of a gang must have the same; where a binary lies on each is all one."""
    origin = build.origin if build.origin in ("pypi", "image") else "binary"
    return (build.engine, build.version, origin, build.image)


def _runs_in(build: EngineBuild, spec: EngineSpec, software: Software) -> bool:
    runtime = "docker" if build.origin == "image" else "process"
    return spec.runtime in ("auto", runtime) and runtime in software.runtimes


def _is_version(build: EngineBuild, version: str) -> bool:
    return build.origin == "image" or version in ("", build.version)
