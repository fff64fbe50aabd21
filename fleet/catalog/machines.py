"""GPU machines that clouds rent out, with the list prices that are known. Pure; the data is part of the package.

Prices are what a cloud listed on a day, in one region, before taxes and discounts. They are kept as decimal numbers.
"""

import json
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import Field

from fleet.catalog.gpu_models import GpuModel, gpu_models
from fleet.inventory import AcceleratorKind
from fleet.model import Record
from fleet.sizing.sizing import GpuClass

Cloud = Literal["aws", "alibaba", "digitalocean"]


class Price(Record):
    """Of one machine for an hour."""

    amount: Decimal = Field(gt=0)
    """Of spot machines, whose price moves: the highest that was seen."""
    lowest: Decimal | None = None
    """Of spot machines: the lowest that was seen."""
    currency: str = "USD"
    region: str
    """``all``: in every region that has it."""
    date: str
    """Day or month on which it was listed: ``2026-07-20``, ``2025-12``."""


class Machine(Record):
    cloud: Cloud
    instance_type: str
    vendor: AcceleratorKind
    gpu: str
    """Name in ``gpu_models``."""
    gpus: int = Field(ge=1)
    fraction: bool = False
    """It has a share of one card, of ``listed_gib``."""
    listed_gib: float = Field(gt=0)
    """Memory of each card as the cloud lists it."""
    vcpu: int | None = Field(default=None, ge=1)
    ram_gib: float | None = Field(default=None, gt=0)
    on_demand: Price | None = None
    spot: Price | None = None
    note: str = ""

    @property
    def model(self) -> GpuModel:
        return gpu_models()[self.gpu]

    @property
    def memory_bytes(self) -> int:
        """Of each card, as its driver says."""
        return round(self.listed_gib * (1 << 30)) if self.fraction else self.model.memory_bytes

    @property
    def gpu_class(self) -> GpuClass:
        return self.model.gpu_class.model_copy(update={"memory_bytes": self.memory_bytes})

    @property
    def cheapest(self) -> Price | None:
        """On demand where it is to be had so."""
        return self.on_demand or self.spot


@cache
def machines() -> tuple[Machine, ...]:
    document = json.loads(files("fleet.catalog").joinpath("gpu_machines.json").read_text())
    return tuple(
        _machine(dict(zip(document["columns"], row, strict=True)), document["currency"]) for row in document["rows"]
    )


def _machine(row: dict[str, Any], currency: str) -> Machine:
    listed = {"currency": currency, "region": row["region"], "date": row["date"]}
    on_demand, high, low = row["on_demand"], row["spot_high"], row["spot_low"]
    return Machine.model_validate(
        row
        | {
            "on_demand": {"amount": on_demand, **listed} if on_demand else None,
            "spot": {"amount": high, "lowest": low, **listed} if high else None,
        }
    )
