"""The fleet as one request may see it: without the room that is kept for others. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fleet.placement.view import GpuView, HostView, Occupant


@dataclass(frozen=True)
class Nominated:
    """What is kept for others, as far as the one who asks has to mind it, and for itself."""

    bytes_on: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """By (host id, GPU's UUID; empty: RAM): what is kept there for others beyond what those still hold who go for it.
    So the rest of a card can be used meanwhile."""
    leaving: frozenset[str] = frozenset()
    """Instances that were told to go, whatever their hosts say of them yet."""
    bound_for: tuple[str, ...] = ()
    """Hosts that are kept for a replacement of the deployment that asks: it goes to one of them, if it can."""


def visible(hosts: Sequence[HostView], kept: Nominated) -> list[HostView]:
    """``hosts`` as the one who asks may use them."""
    touched = {host_id for host_id, _ in kept.bytes_on}
    return [_visible(h, kept, touched) for h in hosts]


def _visible(host: HostView, kept: Nominated, touched: set[str]) -> HostView:
    leaves = any(o.instance_id in kept.leaving and not o.leaving for o in host.occupants)
    if not leaves and host.host_id not in touched:
        return host
    return replace(
        host,
        ram_free_bytes=host.ram_free_bytes - kept.bytes_on.get((host.host_id, ""), 0),
        gpus=tuple(_less(g, kept.bytes_on.get((host.host_id, g.uuid), 0)) for g in host.gpus),
        occupants=tuple(_marked(o, kept.leaving) for o in host.occupants),
    )


def _less(gpu: GpuView, kept: int) -> GpuView:
    return replace(gpu, free_bytes=gpu.free_bytes - kept) if kept else gpu


def _marked(occupant: Occupant, leaving: frozenset[str]) -> Occupant:
    return replace(occupant, leaving=True) if occupant.instance_id in leaving else occupant
