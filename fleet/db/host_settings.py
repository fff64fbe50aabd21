"""What people set of a host, over what it says of itself: labels, whom it is kept for, what placement leaves alone."""

import hashlib
import json
from collections.abc import Callable

from sqlalchemy import update
from sqlmodel import Session, col, select

from fleet.db import registry
from fleet.db.tables import GpuRow, HostRow
from fleet.errors import NotFound, PreconditionFailed
from fleet.inventory import Inventory
from fleet.model import Record
from fleet.placement.room import gpu_room


class HostSettings(Record):
    labels: dict[str, str] = {}
    """Those given by people."""
    reserved_for: dict[str, str] = {}
    reserve: dict[str, int] = {}
    """``ram_bytes``, ``vram_bytes``; what is not named is as the host says."""

    @property
    def tag(self) -> str:
        """Another one for any other settings."""
        text = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_of(row: HostRow) -> HostSettings:
    return HostSettings(labels=row.given_labels, reserved_for=row.reserved_for, reserve=row.reserve)


def change(
    session: Session, host_id: str, wanted: Callable[[HostSettings], HostSettings], if_tag: str | None = None
) -> None:
    """``wanted``: from what is set to what is to be. The same again changes nothing.

    A change makes placements void that were decided before it and are not claimed yet; what runs there stays.
    Raises NotFound, and PreconditionFailed when the settings' tag is not ``if_tag`` any more.
    """
    row = session.get(HostRow, host_id, with_for_update=True, populate_existing=True)
    if row is None:
        raise NotFound(f"there is no host {host_id!r}", hint="GET /api/v1/hosts lists what there is")
    before = settings_of(row)
    if if_tag is not None and if_tag != before.tag:
        raise PreconditionFailed(f"{host_id} was changed meanwhile", hint="read it again and repeat the change")
    after = wanted(before)
    if after == before:
        return
    row.given_labels, row.reserved_for, row.reserve = after.labels, after.reserved_for, after.reserve
    if row.inventory:  # else it has not registered yet, and this is looked at when it does
        _settle(session, row, Inventory.model_validate(row.inventory))
    session.add(row)


def revoke_key(session: Session, host_id: str) -> None:
    """From now on no relay takes this host's word. Twice is once; of a host that is not there it is nothing."""
    without = update(HostRow).where(col(HostRow.id) == host_id, col(HostRow.public_key) != "").values(public_key="")
    if session.execute(without).rowcount:  # type: ignore[attr-defined]
        registry.bump(session)


def ram_allocatable(inventory: Inventory, reserve: dict[str, int]) -> int:
    """Bytes of RAM that may be claimed, with what a person has reserved instead of what the host has."""
    reserved = reserve.get("ram_bytes")
    return inventory.ram_allocatable_bytes if reserved is None else max(0, inventory.ram_bytes - reserved)


def vram_reserved(inventory: Inventory, reserve: dict[str, int]) -> int:
    """Bytes of each GPU that placement leaves alone."""
    return reserve.get("vram_bytes", inventory.vram_reserved_bytes)


def _settle(session: Session, row: HostRow, inventory: Inventory) -> None:
    row.labels = inventory.labels | row.given_labels
    row.ram_allocatable = ram_allocatable(inventory, row.reserve)
    generation, row.generation = row.generation, row.generation + 1
    reserved = vram_reserved(inventory, row.reserve)
    current = (GpuRow.host_id == row.id, GpuRow.generation == generation)
    # Cards that are not reported any more keep their old generation.
    locked = select(GpuRow).where(*current).order_by(col(GpuRow.uuid)).with_for_update()
    for gpu in session.exec(locked.execution_options(populate_existing=True)).all():
        gpu.generation, gpu.allocatable = row.generation, gpu_room(gpu.memory_bytes, gpu.foreign_bytes, reserved)
        session.add(gpu)
