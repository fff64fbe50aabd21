"""The fleet packed into arrays, kept up to date host by host. Pure: it changes nothing but itself."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from fleet.inventory import AcceleratorKind
from fleet.placement.builds import Software
from fleet.placement.decision import Decision, Seat
from fleet.placement.links import islands, nodes
from fleet.placement.table import Ints, Mask, Table
from fleet.placement.view import GpuView, HostView
from fleet.sizing.sizing import GpuClass

_HOST = {
    "alive": np.bool_,
    "ram_free": np.int64,
    "ram_total": np.int64,
    "ports_free": np.int64,
    "fabric": np.bool_,
    "software": np.int64,
    "reserved": np.int64,
    "gpus": np.int64,
    "gpu_free": np.int64,
}
_GPU = {
    "host": np.int64,
    "class": np.int64,  # 0: there is no card in this row
    "free": np.int64,
    "total": np.int64,
    "part": np.bool_,
    "foreign": np.float64,
    "island": np.int64,
    "node": np.int64,
}
T = TypeVar("T")
K = TypeVar("K")
_ClassKey = tuple[AcceleratorKind, str, int, str, bool]


@dataclass(frozen=True)
class Room:
    """What may be taken, by row of hosts and of cards."""

    gpu: Ints
    ram: Ints
    ports: Ints


class StaleDecision(ValueError):
    """It was made on a fleet that is no more."""


class Fleet:
    """Hosts and cards have rows, which stay the same until they are removed.

    ``host["ram_free"][row]``, ``gpu["free"][row]`` and so on are for reading only.
    """

    def __init__(self, hosts: int, gpus: int, deployment: str | None) -> None:
        self.host, self.gpu = Table(_HOST, hosts), Table(_GPU, gpus)
        self.classes: list[GpuClass | None] = [None]
        """By the code in ``gpu["class"]``."""
        self.software: list[Software] = []
        self.reserved: list[dict[str, str]] = []
        self.deployment_labels: dict[str, dict[str, str]] = {}
        self._rows: dict[str, int] = {}
        self._views: dict[int, HostView] = {}
        self._cards: dict[int, Ints] = {}
        self._card_of: dict[str, int] = {}
        self._taken: dict[int, list[Decision]] = {}
        self._replicas: dict[str, dict[int, int]] = {}
        self._class_codes: dict[_ClassKey, int] = {}
        self._software_codes: dict[Software, int] = {}
        self._reserved_codes: dict[frozenset[tuple[str, str]], int] = {}
        self._deployment = deployment
        self._order: Ints | None = None
        self._labels: dict[str, tuple[Ints, dict[str, int]]] = {}
        self._class_rows: dict[int, Ints] = {}

    @classmethod
    def of(cls, hosts: Sequence[HostView], deployment: str | None = None) -> "Fleet":
        """``deployment``: that ``HostView.replicas_of_deployment`` is about. None: ``occupants`` say who runs there."""
        fleet = cls(len(hosts), sum(len(h.gpus) for h in hosts), deployment)
        for host in hosts:
            fleet.update(host)
        return fleet

    # -- changes -------------------------------------------------------------------------------------------------------

    def update(self, host: HostView) -> None:
        """Put ``host`` in place of what was known of it. What was taken there is forgotten: ``host`` counts it."""
        row = self._rows.get(host.host_id)
        if row is None:
            row = int(self.host.add(1)[0])
            self._rows[host.host_id] = row
            self._cards[row] = np.empty(0, np.int64)
            self._forget_order()
        else:
            self._forget_replicas(row)
        known = self._views.get(row)
        if known is None or known.labels != host.labels:
            self._labels = {}
        self._views[row] = host
        self._taken.pop(row, None)
        self._write_host(row, host)
        self._write_cards(row, host, known)
        self._write_replicas(row, host)

    def remove(self, host_id: str) -> None:
        """Harmless where it is not known."""
        row = self._rows.pop(host_id, None)
        if row is None:
            return
        self._forget_replicas(row)
        self._drop_cards(row, self._views[row])
        self.host.drop(np.array([row]))
        for known in (self._views, self._cards, self._taken):
            known.pop(row, None)
        self._labels = {}
        self._forget_order()

    def take(self, decision: Decision) -> None:
        """Book it here, before the ledger's next word. All of it or nothing: raises StaleDecision."""
        for seat in decision.seats:
            self._check(seat)
        for seat in decision.seats:
            row = self._rows[seat.host_id]
            self._book(row, seat, decision.deployment, 1)
            self._taken.setdefault(row, []).append(decision)
        self.deployment_labels.setdefault(decision.deployment, decision.labels)

    def give_back(self, decision: Decision) -> None:
        """Undo ``take`` wherever the ledger has not had its word since; twice is once."""
        for seat in decision.seats:
            row = self._rows.get(seat.host_id)
            taken = self._taken.get(row, []) if row is not None else []
            if row is None or not any(d is decision for d in taken):
                continue
            self._taken[row] = [d for d in taken if d is not decision]
            self._book(row, seat, decision.deployment, -1)

    def copy(self) -> "Fleet":
        """Changes to either do not show in the other."""
        twin = object.__new__(Fleet)
        twin.__dict__.update(self.__dict__)
        twin.host, twin.gpu = self.host.copy(), self.gpu.copy()
        for name in (
            "classes",
            "software",
            "reserved",
            "_rows",
            "_views",
            "_cards",
            "_card_of",
            "_labels",
            "_class_rows",
        ):
            setattr(twin, name, getattr(self, name).copy())
        for name in ("_class_codes", "_software_codes", "_reserved_codes", "deployment_labels"):
            setattr(twin, name, getattr(self, name).copy())
        twin._taken = {row: taken.copy() for row, taken in self._taken.items()}
        twin._replicas = {name: counts.copy() for name, counts in self._replicas.items()}
        return twin

    # -- facts ---------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, host_id: str) -> bool:
        return host_id in self._rows

    def view(self, host_id: str) -> HostView:
        """As it is now, with what was taken. KeyError: not known."""
        row = self._rows[host_id]
        known, free = self._views[row], self.gpu["free"][self._cards[row]]
        taken = self._taken.get(row, [])
        mine = sum(d.deployment == self._deployment for d in taken)
        return replace(
            known,
            ram_free_bytes=int(self.host["ram_free"][row]),
            ports_free=int(self.host["ports_free"][row]),
            gpus=tuple(replace(g, free_bytes=int(f)) for g, f in zip(known.gpus, free, strict=True)),
            replicas_of_deployment=known.replicas_of_deployment + mine,
            occupants=known.occupants + tuple(d.occupant(host_id) for d in taken),
            deployment_labels={**{d.deployment: d.labels for d in taken}, **known.deployment_labels},
        )

    def room(self) -> Room:
        return Room(self.gpu["free"], self.host["ram_free"], self.host["ports_free"])

    def emptied(self) -> Room:
        """If nothing ran anywhere. How many ports a host has is known to nobody here."""
        ports = np.full(self.host.size, np.iinfo(np.int64).max)
        return Room(self.gpu["total"], self.host["ram_total"], ports)

    def rows(self, host_ids: Iterable[str]) -> Mask:
        """Those of ``host_ids`` that are known."""
        mask = np.zeros(self.host.size, np.bool_)
        mask[[row for row in map(self._rows.get, host_ids) if row is not None]] = True
        return mask

    def known(self, row: int) -> HostView:
        """As the ledger last said: for what does not change with claims."""
        return self._views[row]

    def cards(self, row: int) -> Ints:
        """Rows of a host's cards, in the order of ``HostView.gpus``."""
        return self._cards[row]

    def cards_by_uuid(self, uuids: Iterable[str]) -> Mask:
        mask = np.zeros(self.gpu.size, np.bool_)
        mask[[row for row in map(self._card_of.get, uuids) if row is not None]] = True
        return mask

    def class_cards(self, code: int) -> Ints:
        """Rows of all cards of a class."""
        if code not in self._class_rows:
            self._class_rows[code] = np.flatnonzero(self.gpu["class"] == code)
        return self._class_rows[code]

    def present_classes(self) -> list[tuple[int, GpuClass]]:
        present = ((code, gpu_class) for code, gpu_class in enumerate(self.classes) if gpu_class is not None)
        return [(code, gpu_class) for code, gpu_class in present if len(self.class_cards(code))]

    def order(self) -> Ints:
        """For each row of a host its place among all, by id."""
        order = self._order
        if order is None or len(order) != self.host.size:
            order = np.zeros(self.host.size, np.int64)
            order[[self._rows[host_id] for host_id in sorted(self._rows)]] = np.arange(len(self._rows))
            self._order = order
        return order

    def label(self, name: str) -> tuple[Ints, dict[str, int]]:
        """For each row of a host a code for the label's value (-1: it has none), and the codes."""
        known = self._labels.get(name)
        if known is None or len(known[0]) != self.host.size:
            codes: dict[str, int] = {}
            column = np.full(self.host.size, -1, np.int64)
            for host_id in sorted(self._rows):
                row = self._rows[host_id]
                value = self._views[row].labels.get(name)
                if value is not None:
                    column[row] = codes.setdefault(value, len(codes))
            known = self._labels[name] = (column, codes)
        return known

    def where_software(self, suits: Callable[[Software], bool]) -> Mask:
        """Hosts whose software suits. Asked once for each set of it."""
        return _where(self.software, self.host["software"], suits) & self.host["alive"]

    def where_reserved(self, suits: Callable[[dict[str, str]], bool]) -> Mask:
        return _where(self.reserved, self.host["reserved"], suits) & self.host["alive"]

    def replicas(self, deployment: str) -> dict[int, int]:
        """By row of a host, without those that are about to leave."""
        return self._replicas.get(deployment, {})

    def replicas_there(self, deployment: str, row: int) -> int:
        """Those that are about to leave too."""
        leaving = sum(o.leaving and o.deployment == deployment for o in self._views[row].occupants)
        counted_in = deployment == self._deployment
        return self.replicas(deployment).get(row, 0) + (0 if counted_in else leaving)

    # -- writing -------------------------------------------------------------------------------------------------------

    def _write_host(self, row: int, host: HostView) -> None:
        table, software = self.host, Software(host.engines, host.runtimes)
        table["alive"][row] = True
        table["ram_free"][row] = host.ram_free_bytes
        table["ram_total"][row] = host.ram_total_bytes
        table["ports_free"][row] = host.ports_free
        table["fabric"][row] = bool(host.fabric_address)
        table["gpus"][row] = len(host.gpus)
        table["gpu_free"][row] = sum(g.free_bytes for g in host.gpus)
        table["software"][row] = _code(self._software_codes, software, self.software, software)
        reserved = frozenset(host.reserved_for.items())
        table["reserved"][row] = _code(self._reserved_codes, reserved, self.reserved, host.reserved_for)

    def _write_cards(self, row: int, host: HostView, known: HostView | None) -> None:
        if known is not None and _same_cards(known.gpus, host.gpus):
            self.gpu["free"][self._cards[row]] = [g.free_bytes for g in host.gpus]
            self.gpu["foreign"][self._cards[row]] = [_foreign(g) for g in host.gpus]
            return
        self._drop_cards(row, known)
        if not host.gpus:
            return
        rows, gpus = self.gpu.add(len(host.gpus)), host.gpus
        self._cards[row] = rows
        self._card_of.update((g.uuid, int(r)) for g, r in zip(gpus, rows, strict=True))
        self.gpu["host"][rows] = row
        self.gpu["class"][rows] = [self._class_code(g) for g in gpus]
        self.gpu["free"][rows] = [g.free_bytes for g in gpus]
        self.gpu["total"][rows] = [g.total_bytes for g in gpus]
        self.gpu["part"][rows] = [g.part for g in gpus]
        self.gpu["foreign"][rows] = [_foreign(g) for g in gpus]
        self.gpu["island"][rows] = rows[islands(gpus)]
        self.gpu["node"][rows] = rows[nodes(gpus)]
        self._class_rows = {}

    def _drop_cards(self, row: int, known: HostView | None) -> None:
        if known is None or not known.gpus:
            return
        rows = self._cards[row]
        for gpu, card in zip(known.gpus, rows, strict=True):
            if self._card_of.get(gpu.uuid) == card:
                del self._card_of[gpu.uuid]
        self.gpu.drop(rows)
        self._cards[row] = np.empty(0, np.int64)
        self._class_rows = {}

    def _write_replicas(self, row: int, host: HostView) -> None:
        counts: dict[str, int] = {}
        for occupant in host.occupants:
            if not occupant.leaving:
                counts[occupant.deployment] = counts.get(occupant.deployment, 0) + 1
        if self._deployment is not None:
            counts[self._deployment] = host.replicas_of_deployment
        for deployment, count in counts.items():
            if count:
                self._replicas.setdefault(deployment, {})[row] = count
        self.deployment_labels.update(host.deployment_labels)

    def _forget_replicas(self, row: int) -> None:
        known, taken = self._views[row].occupants, self._taken.get(row, [])
        for deployment in {o.deployment for o in known} | {d.deployment for d in taken} | {self._deployment or ""}:
            if row in self.replicas(deployment):
                self._count(deployment, row, -self._replicas[deployment][row])

    def _count(self, deployment: str, row: int, more: int) -> None:
        counts = self._replicas.setdefault(deployment, {})
        counts[row] = counts.get(row, 0) + more
        if not counts[row]:
            del counts[row]
        if not counts:
            del self._replicas[deployment]

    def _check(self, seat: Seat) -> None:
        row = self._rows.get(seat.host_id)
        if row is None or self._views[row].generation != seat.generation:
            raise StaleDecision(f"host {seat.host_id} is gone or has changed: place again")
        rows, uuids = self._seat_rows(row, seat), set(seat.gpu_uuids)
        free = self.gpu["free"][rows]
        if len(rows) != len(uuids) or (free < seat.gpu_bytes).any():
            raise StaleDecision(f"cards of host {seat.host_id} have no room any more: place again")
        if self.host["ram_free"][row] < seat.ram_bytes or self.host["ports_free"][row] < seat.ports:
            raise StaleDecision(f"host {seat.host_id} has no RAM or no port left: place again")

    def _book(self, row: int, seat: Seat, deployment: str, sign: int) -> None:
        rows = self._seat_rows(row, seat)
        self.gpu["free"][rows] -= sign * seat.gpu_bytes
        self.host["gpu_free"][row] -= sign * seat.gpu_bytes * len(rows)
        self.host["ram_free"][row] -= sign * seat.ram_bytes
        self.host["ports_free"][row] -= sign * seat.ports
        self._count(deployment, row, sign)

    def _seat_rows(self, row: int, seat: Seat) -> Ints:
        chosen = [n for n, g in enumerate(self._views[row].gpus) if g.uuid in seat.gpu_uuids]
        rows: Ints = self._cards[row][chosen]
        return rows

    def _class_code(self, gpu: GpuView) -> int:
        key = (gpu.kind, gpu.name, gpu.total_bytes, gpu.compute_capability, gpu.unified)
        if key not in self._class_codes:
            self._class_codes[key] = len(self.classes)
            self.classes.append(gpu.gpu_class)
        return self._class_codes[key]

    def _forget_order(self) -> None:
        self._order = None
        self._labels = {}


def _code(codes: dict[K, int], key: K, values: list[T], value: T) -> int:
    if key not in codes:
        codes[key] = len(values)
        values.append(value)
    return codes[key]


def _where(values: list[T], column: Ints, suits: Callable[[T], bool]) -> Mask:
    if not values:
        return np.zeros(len(column), np.bool_)
    answers: Mask = np.fromiter((suits(value) for value in values), np.bool_, len(values))[column]
    return answers


def _foreign(gpu: GpuView) -> float:
    return gpu.foreign_bytes / gpu.total_bytes if gpu.total_bytes else 0.0


def _same_cards(one: tuple[GpuView, ...], other: tuple[GpuView, ...]) -> bool:
    """But for what is free on them."""
    return len(one) == len(other) and all(
        replace(a, free_bytes=b.free_bytes, foreign_bytes=b.foreign_bytes) == b for a, b in zip(one, other, strict=True)
    )
