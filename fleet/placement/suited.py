"""Which hosts suit a replica whatever runs on them now, and which cards. Pure."""

from collections.abc import Collection
from functools import cached_property

from fleet.placement.builds import Software, fitting, runs_in_ram, usable_kinds
from fleet.placement.decision import Filter
from fleet.placement.fleet import Fleet
from fleet.placement.request import PlacementRequest
from fleet.placement.table import Mask
from fleet.sizing.sizing import GpuClass


class Suited:
    """Answers are by row of the fleet's hosts, true where a host suits."""

    def __init__(self, request: PlacementRequest, fleet: Fleet, files: Collection[str] | None) -> None:
        self._request, self._fleet, self._files = request, fleet, files
        self._spec = request.spec

    @cached_property
    def hosts(self) -> Mask:
        """By all lasting filters."""
        mask = self._fleet.host["alive"].copy()
        for _, suits in self.filters():
            mask &= suits
        return mask

    def filters(self) -> list[tuple[Filter, Mask]]:
        """That last, in the order in which they are asked."""
        fleet = self._fleet
        asked = [
            (Filter.RESERVED, fleet.where_reserved(lambda kept: kept.items() <= self._request.labels.items())),
            (Filter.RUNTIME, fleet.where_software(lambda s: self._spec.runtime in ("auto", *s.runtimes))),
            (Filter.IMAGE, fleet.where_software(lambda s: self._spec.runtime != "docker" or self._fits(s))),
            (Filter.ENGINE, fleet.where_software(self._fits)),
        ]
        if self._spec.placement.host_selector:
            asked.insert(0, (Filter.LABELS, self.labelled()))
        if self._files is not None:
            asked.append((Filter.FILE, fleet.rows(self._files)))
        return asked

    def labelled(self) -> Mask:
        mask = self._fleet.host["alive"].copy()
        for name, value in self._spec.placement.host_selector.items():
            mask &= self.has_label(name, value)
        return mask

    def has_label(self, name: str, value: str) -> Mask:
        column, codes = self._fleet.label(name)
        found: Mask = column == codes.get(value, -2)
        return found

    @cached_property
    def unavoided(self) -> Mask:
        """No other deployment is there that this one avoids."""
        mask, avoid = self._fleet.host["alive"].copy(), self._spec.placement.avoid.items()
        if not avoid:
            return mask
        known = self._fleet.deployment_labels
        others = {d for d, labels in known.items() if avoid <= labels.items()} - {self._request.deployment}
        for deployment in others:
            mask[list(self._fleet.replicas(deployment))] = False
        return mask

    def usable(self, gpu_class: GpuClass) -> Mask:
        """Whose engine can use cards of that class."""
        return self._fleet.where_software(lambda s: gpu_class.kind in usable_kinds(self._spec, s))

    @cached_property
    def in_ram(self) -> Mask:
        """Whose engine runs on CPUs."""
        return self._fleet.where_software(lambda s: runs_in_ram(self._spec, s))

    @cached_property
    def named_cards(self) -> Mask | None:
        """By row of cards. None: no card is named, any will do."""
        named = self._spec.placement.gpu_ids
        return self._fleet.cards_by_uuid(named) if named else None

    def _fits(self, software: Software) -> bool:
        return bool(fitting(self._spec, software))
