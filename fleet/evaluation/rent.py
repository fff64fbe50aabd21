"""What machines that can be rented would cost to run a model on. Pure.

Prices are list prices of the catalog: of one region and one day, on demand where a machine is to be had so.
"""

from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal

from fleet.catalog.machines import Cloud, Machine, Price
from fleet.model import Record
from fleet.sizing.sizing import Sizing

_CENT_OF_A_CENT = Decimal("0.0001")


class Money(Record):
    """For one hour."""

    amount: str
    """Decimal: ``"6.8800"``."""
    currency: str
    region: str
    """``all``: in every region that has it."""
    date: str
    """Day or month on which the price was listed."""
    spot: bool = False
    """Of spot machines, which may be taken back; the highest price that was seen."""


class Rental(Record):
    """One type of machine, for replicas of one sizing."""

    cloud: Cloud
    instance_type: str
    gpus: int
    """Cards of one machine."""
    fraction: bool = False
    """It has a share of one card."""
    replicas_per_machine: int
    """Of replicas that span machines: so many of them a machine takes part in."""
    machines: int
    """For all replicas that are asked for."""
    price_per_hour: Money | None
    """Of one machine; None: no price is known, ask the cloud."""
    price_per_replica: Money | None
    """Of one replica's part of a full machine, or of all machines that it spans."""
    price_for_all: Money | None
    """Of all ``machines``."""
    note: str = ""


def rentals(machines: Iterable[Machine], sizing: Sizing, replicas: int) -> tuple[Rental, ...]:
    """Machines whose cards are of the class that ``sizing`` is for and that hold a replica, or its share of one.

    Cheapest for all replicas first; those without a known price last.
    """
    found = [(m, shares) for m in machines if (shares := _shares(m, sizing))]
    return tuple(sorted((_rental(m, shares, sizing, replicas) for m, shares in found), key=rank))


def _shares(machine: Machine, sizing: Sizing) -> int:
    """So many replicas (or members of replicas that span machines) one machine holds."""
    per_card = machine.memory_bytes // sizing.gpu_bytes if sizing.gpu_bytes else 0
    by_cards = machine.gpus // sizing.shape.gpus_per_host * per_card
    if machine.ram_gib is None or not sizing.ram_bytes:
        return by_cards
    return min(by_cards, int(machine.ram_gib * (1 << 30)) // sizing.ram_bytes)


def _rental(machine: Machine, shares: int, sizing: Sizing, replicas: int) -> Rental:
    hosts = sizing.shape.hosts
    count = max(hosts, -(-max(1, replicas) * hosts // shares))
    price, spot = machine.cheapest, machine.on_demand is None
    return Rental(
        cloud=machine.cloud,
        instance_type=machine.instance_type,
        gpus=machine.gpus,
        fraction=machine.fraction,
        replicas_per_machine=shares,
        machines=count,
        price_per_hour=_money(price, spot, Decimal(1)),
        price_per_replica=_money(price, spot, Decimal(hosts) / shares),
        price_for_all=_money(price, spot, Decimal(count)),
        note=machine.note,
    )


def _money(price: Price | None, spot: bool, times: Decimal) -> Money | None:
    if price is None:
        return None
    amount = (price.amount * times).quantize(_CENT_OF_A_CENT, ROUND_HALF_UP)
    return Money(amount=str(amount), currency=price.currency, region=price.region, date=price.date, spot=spot)


def rank(rental: Rental) -> tuple[bool, Decimal, int, str, str]:
    """The cheapest first, those without a known price last."""
    total = rental.price_for_all
    amount = Decimal(total.amount) if total else Decimal(0)
    return (total is None, amount, rental.machines, rental.cloud, rental.instance_type)
