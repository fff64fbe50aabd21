"""Where does a replica go? Pure: hosts in, a choice or the reasons against out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fleet.engines.catalog import resolve
from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.placement.request import Placement, PlacementRequest, Unplaceable
from fleet.placement.view import HostView, ModelFile
from fleet.sizing.estimate import replica_memory

_EXCLUDED = "excluded after failures there, and others could run it (forgotten after a while, or by `holdfast restart`)"

_NO_DOCKER = "has no Docker engine: install one there, or set spec.runtime to 'auto' or 'process'"


@dataclass(frozen=True)
class Choice:
    placement: Placement
    generation: int
    """Of the host's inventory that it was made on."""
    replicas_there: int
    """Of the deployment, that were on the host then."""


def need(request: PlacementRequest, model: ModelFile) -> int:
    """Bytes that one replica takes, on each of its GPUs or in RAM."""
    if request.spec.memory_bytes is not None:
        return request.spec.memory_bytes
    adapter = resolve(request.spec.engine)
    whole = replica_memory(
        model.size_bytes,
        request.spec.max_model_len or adapter.default_context,
        request.spec.concurrency or adapter.default_concurrency,
    )
    return -(-whole // max(1, request.spec.placement.gpus_per_replica or 1))


def choose(request: PlacementRequest, hosts: Sequence[HostView]) -> Choice | Unplaceable:
    """The best host with room, or why there is none.

    GPUs before CPU. Replicas of one deployment spread over hosts; different deployments pack onto the fullest host
    that has room. Excluded hosts are used only where no other host could ever run the replica; that there is no room on
    the others now is a reason to wait.
    """
    if not hosts:
        return Unplaceable(
            reasons=("no host is ready for new replicas: start one with `holdfast host`, see `holdfast hosts`",)
        )
    elsewhere = any(h.host_id not in request.excluded_hosts and not _unable(request, h) for h in hosts)
    excluded = request.excluded_hosts if elsewhere else ()
    options: list[tuple[tuple[bool, int, int, str], Choice]] = []
    reasons: list[str] = []
    for host in hosts:
        verdict = _EXCLUDED if host.host_id in excluded else _fit(request, host)
        if isinstance(verdict, str):
            reasons.append(f"{host.name}: {verdict}")
        else:
            left = host.ram_free_bytes if not verdict.gpu_uuids else sum(g.free_bytes for g in host.gpus)
            rank = (not verdict.gpu_uuids, host.replicas_of_deployment, left, host.host_id)
            options.append((rank, Choice(verdict, host.generation, host.replicas_of_deployment)))
    if not options:
        return Unplaceable(reasons=tuple(reasons))
    return min(options, key=lambda option: option[0])[1]


def _fit(request: PlacementRequest, host: HostView) -> Placement | str:
    """A placement on ``host``, or why not."""
    why_not = _unsuited(request, host)
    if why_not or host.model is None:
        return why_not
    bytes_needed, kinds = need(request, host.model), _accelerators(request, host)
    if request.spec.placement.gpus_per_replica != 0:
        gpus = _fullest_that_fit(host, kinds, bytes_needed, request.spec.placement.gpus_per_replica or 1)
        if gpus:
            return Placement(
                host_id=host.host_id, gpu_uuids=gpus, memory_bytes=bytes_needed, model_path=host.model.path
            )
    if request.spec.placement.gpus_per_replica:
        best = max((g.free_bytes for g in host.gpus if g.kind in kinds), default=0)
        count = request.spec.placement.gpus_per_replica
        why_not = f"needs {count} GPUs with {_gib(bytes_needed)} free; the best has {_gib(best)}"
        return why_not + _cordoned(host)
    if host.ram_free_bytes < bytes_needed:
        free = f"{_gib(host.ram_free_bytes)} of {_gib(host.ram_total_bytes)} is free"
        return f"needs {_gib(bytes_needed)} of RAM, {free}" + _cordoned(host)
    return Placement(host_id=host.host_id, memory_bytes=bytes_needed, model_path=host.model.path)


def _unable(request: PlacementRequest, host: HostView) -> bool:
    """Whether ``host`` could not run the replica even if nothing else ran there."""
    empty = replace(
        host,
        ram_free_bytes=host.ram_total_bytes,
        gpus=tuple(replace(g, free_bytes=g.total_bytes) for g in host.gpus),
    )
    return isinstance(_fit(request, empty), str)


def _unsuited(request: PlacementRequest, host: HostView) -> str:
    """Why ``host`` cannot run the replica, whatever its room; empty: it can."""
    missing = {k: v for k, v in request.spec.placement.host_selector.items() if host.labels.get(k) != v}
    if missing:
        return "lacks label " + _listed(missing)
    if not host.reserved_for.items() <= request.labels.items():
        return f"is reserved for deployments with label {_listed(host.reserved_for)}"
    if request.spec.runtime not in ("auto", *host.runtimes):
        return _NO_DOCKER if request.spec.runtime == "docker" else f"runs no engines as {request.spec.runtime}"
    if request.spec.runtime == "docker" and not _builds(request, host):
        return f"has no image for {request.spec.engine}: name one in spec.container.image"
    if not _builds(request, host):
        return f"cannot run {request.spec.engine} {request.spec.engine_version}".rstrip()
    return f"does not have the file {request.spec.model_path}" if host.model is None else ""


def _builds(request: PlacementRequest, host: HostView) -> list[EngineBuild]:
    """What could run it there. An image is what it is: no version is asked of it."""
    spec = request.spec
    if _own_image(request, host):
        return [EngineBuild(engine=spec.engine, version="", origin="image", image=spec.container.image or "")]
    suited = (b for b in host.engines if b.engine == spec.engine and _runs_in(b, request, host))
    return [b for b in suited if _is_version(b, spec.engine_version)]


def _own_image(request: PlacementRequest, host: HostView) -> bool:
    return bool(request.spec.container.image) and request.spec.runtime != "process" and "docker" in host.runtimes


def _runs_in(build: EngineBuild, request: PlacementRequest, host: HostView) -> bool:
    runtime = "docker" if build.origin == "image" else "process"
    return request.spec.runtime in ("auto", runtime) and runtime in host.runtimes


def _is_version(build: EngineBuild, version: str) -> bool:
    return build.origin == "image" or version in ("", build.version)


def _accelerators(request: PlacementRequest, host: HostView) -> set[AcceleratorKind]:
    """Which kinds of GPU its engine can use there. Of a deployment's own image only its author knows: it gets GPUs if
    it asks for them."""
    if _own_image(request, host):
        return {gpu.kind for gpu in host.gpus} if request.spec.placement.gpus_per_replica else set()
    return {kind for b in _builds(request, host) for kind in b.accelerators} - {AcceleratorKind.CPU}


def _cordoned(host: HostView) -> str:
    return "".join(f"; GPU {uuid} is cordoned: {reason}" for uuid, reason in host.cordoned_gpus)


def _fullest_that_fit(host: HostView, kinds: set[AcceleratorKind], bytes_needed: int, count: int) -> tuple[str, ...]:
    """So many cards of one kind; none if there are not."""
    for kind in sorted(kinds):
        suited = [
            g for g in host.gpus if g.kind is kind and g.free_bytes >= bytes_needed and not (g.part and count > 1)
        ]
        if len(suited) >= count:
            return tuple(g.uuid for g in sorted(suited, key=lambda g: (g.free_bytes, g.uuid))[:count])
    return ()


def _listed(labels: dict[str, str]) -> str:
    return ", ".join(f"{k}={v}" for k, v in sorted(labels.items()))


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
