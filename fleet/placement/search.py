"""Looks for the best place of one replica in arrays. Pure."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from fleet.inventory import EngineBuild
from fleet.placement.builds import Software, fitting, identity
from fleet.placement.decision import Decision, Seat
from fleet.placement.domains import Domains
from fleet.placement.fleet import Fleet, Room
from fleet.placement.links import closest
from fleet.placement.needs import Need, Needs
from fleet.placement.options import Option, options
from fleet.placement.request import PlacementRequest
from fleet.placement.suited import Suited
from fleet.placement.table import Ints, Mask
from fleet.sizing.sizing import GpuClass

_SHARES_OF_OTHERS = (0.1, 0.5, 1.0)
"""Of a card's memory. Cards of which others use more are taken only where there are no better ones in the fleet."""

Key = tuple[int, ...]


@dataclass(frozen=True)
class _Spot:
    """A host, or of a gang all, as good as ``key`` says: less is better."""

    key: Key
    hosts: tuple[int, ...]
    option: Option
    cards: Ints
    """All that have room."""
    build: EngineBuild | None = None


class Search:
    """Made once for a request; ``best`` may be asked again after changes to the fleet's room."""

    def __init__(
        self,
        request: PlacementRequest,
        needs: Needs,
        fleet: Fleet,
        *,
        files: Collection[str] | None = None,
        near: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        self.request, self.needs, self.fleet, self.wish = request, needs, fleet, request.spec.placement
        self.suited = Suited(request, fleet, files)
        self.bands = options(self.wish, needs, fleet) if self.wish.gpus_per_replica != 0 else []
        self.cpu = tuple(n for n in needs.cpu if n.shape.hosts == 1 or self.wish.multi_host)
        if self.wish.gpus_per_replica:
            self.cpu = ()
        self._far = ~fleet.rows(near) if near else None
        self._tie = _turned(fleet.order(), len(fleet), seed)
        self._usable = {o.code: self.suited.usable(o.gpu_class) for band in self.bands for o in band}
        self.excluded = self._excluded()
        """Hosts that are left out since the replica failed there."""
        self.lasting = self.suited.hosts & ~self.excluded

    def best(self) -> Decision | None:
        hosts, room = self.lasting & self.suited.unavoided, self.fleet.room()
        spot = self._on_cards(hosts, room)
        return self._decided(spot) if spot else self._in_ram(hosts, room)

    def usable(self, option: Option) -> Mask:
        return self._usable[option.code]

    def cards_for(self, option: Option) -> Ints:
        """Rows of cards that it may use, whatever is free on them."""
        cards, named = self.fleet.class_cards(option.code), self.suited.named_cards
        if named is not None:
            cards = cards[named[cards]]
        return cards[~self.fleet.gpu["part"][cards]] if option.need.shape.gpus > 1 else cards

    def _excluded(self) -> Mask:
        """Hosts to leave out: none where no other host could ever run the replica. That there is no room on the others
        now is a reason to wait."""
        excluded = self.fleet.rows(self.request.excluded_hosts)
        if not excluded.any():
            return excluded
        others = self.suited.hosts & ~excluded
        return excluded if self._could_ever(others) else np.zeros_like(excluded)

    def _could_ever(self, hosts: Mask) -> bool:
        empty = self.fleet.emptied()
        if any(len(self._with_room(need, hosts & self.suited.in_ram, empty)) for need in self.cpu):
            return True
        return self._on_cards(hosts, empty, (1.0,)) is not None

    # -- on cards ------------------------------------------------------------------------------------------------------

    def _on_cards(self, hosts: Mask, room: Room, shares: tuple[float, ...] = _SHARES_OF_OTHERS) -> _Spot | None:
        if not self.bands or not hosts.any():
            return None
        most = float(self.fleet.gpu["foreign"].max())
        for number, share in enumerate(shares):
            if number and most <= shares[number - 1]:
                return None
            for band in self.bands:
                spots = [spot for option in band if (spot := self._spot(option, hosts, room, share))]
                if spots:
                    return min(spots, key=lambda spot: spot.key)
        return None

    def _spot(self, option: Option, hosts: Mask, room: Room, share: float) -> _Spot | None:
        need, host = option.need, self.fleet.gpu["host"]
        open_hosts = self._roomy(need, hosts & self.usable(option), room)
        cards = self.cards_for(option)
        cards = cards[(room.gpu[cards] >= need.gpu_bytes) & open_hosts[host[cards]]]
        if share < 1:
            cards = cards[self.fleet.gpu["foreign"][cards] <= share]
        counts = np.bincount(host[cards], minlength=self.fleet.host.size)
        able = np.flatnonzero(counts >= need.shape.gpus_per_host)
        if len(able) < need.shape.hosts:
            return None
        if need.shape.hosts > 1:
            return self._gang(option, able, cards, counts)
        key, best = self._ranked(able, self._columns(option, able, cards, counts, room))
        return _Spot(key, (best,), option, cards)

    def _columns(self, option: Option, able: Ints, cards: Ints, counts: Ints, room: Room) -> list[Ints]:
        """What tells better hosts from worse, the weightiest first. Less is better."""
        free = self.fleet.host["gpu_free"]
        split = [self._split(option.need.shape.gpus, cards)] if option.need.shape.gpus > 1 else []
        match self.wish.strategy:
            case "spread":
                most = _per_host(np.maximum, room.gpu, self.fleet.gpu["host"], cards, self.fleet.host.size)
                return [*self._replicas(), *split, -most, -free, *self._distance()]
            case "binpack":
                least = _per_host(np.minimum, room.gpu, self.fleet.gpu["host"], cards, self.fleet.host.size)
                return [*split, least, free, *self._distance()]
            case _:
                return [*self._replicas(), *split, counts, *self._distance(), free]

    def _replicas(self) -> list[Ints]:
        """Of the deployment: in each host's failure domain, and on the host."""
        there = self.fleet.replicas(self.request.deployment)
        if not there:
            return []
        on_host = np.zeros(self.fleet.host.size, np.int64)
        on_host[list(there)] = list(there.values())
        if not self.wish.spread_by:
            return [on_host]
        domain = Domains(self.fleet).of(self.wish.spread_by)
        return [np.bincount(domain, weights=on_host).astype(np.int64)[domain], on_host]

    def _distance(self) -> list[Ints]:
        """Hosts that have the files already are better."""
        return [] if self._far is None else [self._far.astype(np.int64)]

    def _split(self, gpus: int, cards: Ints) -> Ints:
        """0: so many cards with room are linked directly; 1: on one NUMA node; 2: neither."""
        level = np.full(self.fleet.host.size, 2, np.int64)
        for value, column in ((1, "node"), (0, "island")):
            groups = np.bincount(self.fleet.gpu[column][cards], minlength=self.fleet.gpu.size)
            level[self.fleet.gpu["host"][np.flatnonzero(groups >= gpus)]] = value
        return level

    def _ranked(self, able: Ints, columns: list[Ints]) -> tuple[Key, int]:
        """The best of ``able``, and how good it is."""
        key = []
        for column in (*columns, self._tie):
            values = column[able]
            least = values.min()
            key.append(int(least))
            able = able[values == least]
        return tuple(key), int(able[0])

    # -- gangs ---------------------------------------------------------------------------------------------------------

    def _gang(self, option: Option, able: Ints, cards: Ints, counts: Ints) -> _Spot | None:
        """Whole or not at all, with one build of the engine, in the tightest domain that holds it."""
        found = self._tightest(option.need.shape.hosts, able, counts)
        return _Spot(found[0], found[1], option, cards, found[2]) if found is not None else None

    def _tightest(self, size: int, able: Ints, left: Ints) -> tuple[Key, tuple[int, ...], EngineBuild] | None:
        """``size`` of ``able``, by rank, and the build that they share. ``left``: less of it is better."""
        able = able[self.fleet.host["fabric"][able]]
        domains, spots = Domains(self.fleet), []
        for build in self.gang_builds() if len(able) >= size else ():
            same = able[self._runs(build)[able]]
            found = domains.tightest(same, size, self.wish.spread_by, *self._gang_columns(left))
            if found is not None:
                spots.append((*found, build))
        return min(spots, key=lambda spot: spot[0], default=None)

    def _gang_columns(self, counts: Ints) -> tuple[list[Ints], list[Ints]]:
        replicas = [] if self.wish.strategy == "binpack" else self._replicas()
        left = -counts if self.wish.strategy == "spread" else counts
        return replicas, [left, *self._distance(), self.fleet.host["gpu_free"], self._tie]

    def gang_builds(self) -> list[EngineBuild]:
        """One of each identity, in an order that no host's place changes."""
        spec = self.request.spec
        builds = {identity(b): b for s in self.fleet.software for b in fitting(spec, s)}
        return [builds[key] for key in sorted(builds)]

    def _runs(self, build: EngineBuild) -> Mask:
        def has(software: Software) -> bool:
            return any(identity(b) == identity(build) for b in fitting(self.request.spec, software))

        return self.fleet.where_software(has)

    # -- in RAM --------------------------------------------------------------------------------------------------------

    def _in_ram(self, hosts: Mask, room: Room) -> Decision | None:
        for need in self.cpu:
            able = self._with_room(need, hosts & self.suited.in_ram, room)
            if need.shape.hosts > 1:
                if (gang := self._gang_in_ram(need, able)) is not None:
                    return gang
            elif len(able):
                free = self.fleet.host["ram_free"]
                packed = -free if self.wish.strategy == "spread" else free
                replicas = [] if self.wish.strategy == "binpack" else self._replicas()
                _, best = self._ranked(able, [*replicas, packed, *self._distance()])
                return self._decision(need, None, (self._seat(need, best, ()),), None)
        return None

    def _gang_in_ram(self, need: Need, able: Ints) -> Decision | None:
        found = self._tightest(need.shape.hosts, able, self.fleet.host["ram_free"])
        if found is None:
            return None
        _, rows, build = found
        return self._decision(need, None, tuple(self._seat(need, row, ()) for row in rows), build)

    def _with_room(self, need: Need, hosts: Mask, room: Room) -> Ints:
        return np.flatnonzero(self._roomy(need, hosts, room))

    @staticmethod
    def _roomy(need: Need, hosts: Mask, room: Room) -> Mask:
        return hosts & (room.ram >= need.ram_bytes) & (room.ports >= need.ports)

    # -- answers -------------------------------------------------------------------------------------------------------

    def _decided(self, spot: _Spot) -> Decision:
        need = spot.option.need
        seats = tuple(self._seat(need, row, self._chosen(spot, row)) for row in spot.hosts)
        return self._decision(need, spot.option.gpu_class, seats, spot.build)

    def _chosen(self, spot: _Spot, row: int) -> tuple[str, ...]:
        cards = self.fleet.cards(row)
        fit = np.flatnonzero(np.isin(cards, spot.cards[self.fleet.gpu["host"][spot.cards] == row]))
        free = [int(f) for f in self.fleet.gpu["free"][cards[fit]]]
        if self.wish.strategy == "spread":
            free = [-f for f in free]
        views = [self.fleet.known(row).gpus[n] for n in fit]
        return tuple(g.uuid for g in closest(views, free, spot.option.need.shape.gpus_per_host))

    def _seat(self, need: Need, row: int, uuids: tuple[str, ...]) -> Seat:
        view = self.fleet.known(row)
        return Seat(
            host_id=view.host_id,
            generation=view.generation,
            gpu_uuids=uuids,
            gpu_bytes=need.gpu_bytes if uuids else 0,
            ram_bytes=need.ram_bytes,
            ports=need.ports,
            replicas_there=self.fleet.replicas_there(self.request.deployment, row),
        )

    def _decision(
        self, need: Need, gpu_class: GpuClass | None, seats: tuple[Seat, ...], build: EngineBuild | None
    ) -> Decision:
        request = self.request
        return Decision(request.instance_id, request.deployment, need, gpu_class, seats, request.labels, build)


def _per_host(least_or_most: np.ufunc, free: Ints, host: Ints, cards: Ints, size: int) -> Ints:
    start = np.iinfo(np.int64).min if least_or_most is np.maximum else np.iinfo(np.int64).max
    found = np.full(size, start, np.int64)
    least_or_most.at(found, host[cards], free[cards])
    return found


def _turned(order: Ints, count: int, seed: int) -> Ints:
    """Who comes first of equals: by id, with another ``seed`` from another one on."""
    return (order - seed) % max(1, count)
