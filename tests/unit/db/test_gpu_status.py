"""What hosts' statuses change in the ledger: which cards take claims, and how much."""

from datetime import UTC, datetime
from typing import Any

import pytest

from fleet.db import claims, gpus
from fleet.db.gpu_status import NOT_REPORTED, apply_status
from fleet.db.hosts import ready_hosts, save_registration
from fleet.db.session import Database
from fleet.db.tables import GpuRow, HostRow
from fleet.inventory import AcceleratorKind, Gpu, Inventory, Registration
from fleet.states import HostState
from fleet.telemetry import GpuStatus, HostStatus
from tests.unit.db.ledger import claim, on, used

GiB = 1 << 30


def gpu(uuid: str, memory: int = 24 * GiB, **changes: Any) -> Gpu:
    facts = {"uuid": uuid, "kind": AcceleratorKind.NVIDIA, "name": "t", "index": 0, "memory_bytes": memory}
    return Gpu.model_validate(facts | changes)


def register(database: Database, *cards: Gpu, host_id: str = "h1", **changes: Any) -> None:
    inventory = Inventory(
        hostname="box",
        machine_id="m",
        boot_id="b",
        os="linux",
        arch="x86_64",
        cpu_count=2,
        ram_bytes=GiB,
        ram_allocatable_bytes=GiB,
        disk_bytes=1,
        disk_free_bytes=1,
        gpus=cards,
    ).model_copy(update=changes)
    said = Registration(inventory=inventory, address="127.0.0.1", http_port=1, version="1")
    database.write(lambda s: save_registration(s, host_id, said))


@pytest.fixture
def host(database: Database) -> HostRow:
    row = HostRow(id="h1", name="h1", state=HostState.READY, credential_hash="h1")
    database.write(lambda s: s.add(row))
    register(database, gpu("g1"), gpu("g2", index=1))
    return row


def status(*said: GpuStatus) -> HostStatus:
    return HostStatus(boot_id="b", inventory="i", at=datetime.now(UTC), gpus=said)


def g(uuid: str, foreign: int = 0, **changes: Any) -> GpuStatus:
    return GpuStatus(uuid=uuid, memory_used_bytes=foreign, foreign_bytes=foreign, **changes)


def tell(database: Database, *said: GpuStatus, host_id: str = "h1") -> bool:
    return database.write(lambda s: apply_status(s, host_id, status(*said)))


def row(database: Database, uuid: str) -> GpuRow:
    return database.read(lambda s: s.get_one(GpuRow, uuid))


def generation(database: Database) -> int:
    return database.read(lambda s: s.get_one(HostRow, "h1")).generation


def offered(database: Database) -> dict[str, int]:
    [found] = database.read(lambda s: ready_hosts(s, "m"))
    return {card.uuid: card.free_bytes for card in found.view.gpus}


def test_memory_that_others_use_is_not_given_out(database: Database, host: HostRow) -> None:
    assert tell(database, g("g1", 23 * GiB), g("g2"))
    assert offered(database) == {"g1": GiB, "g2": 24 * GiB}
    with pytest.raises(claims.ClaimLost):
        claim(database, "a", 1, on("h1", 2 * GiB, "g1"), generation(database))
    claim(database, "a", 1, on("h1", GiB, "g1"), generation(database))
    assert tell(database, g("g1", 0), g("g2"))
    assert offered(database) == {"g1": 23 * GiB, "g2": 24 * GiB}


def test_noise_and_what_was_said_before_changes_nothing(database: Database, host: HostRow) -> None:
    before = generation(database)
    assert not tell(database, g("g1", 200 << 20), g("g2"))
    assert tell(database, g("g1", 12 * GiB), g("g2"))
    for noise in (0, 200 << 20, -200 << 20):
        assert not tell(database, g("g1", 12 * GiB + noise), g("g2"))
    assert row(database, "g1").foreign_bytes == 12 * GiB
    assert generation(database) == before, "decisions that are under way stay good as long as they fit"


def test_what_others_use_is_remembered_while_the_driver_does_not_tell(database: Database, host: HostRow) -> None:
    tell(database, g("g1", 12 * GiB), g("g2"))
    assert not tell(database, GpuStatus(uuid="g1"), GpuStatus(uuid="g2"))
    assert offered(database) == {"g1": 12 * GiB, "g2": 24 * GiB}


def test_sick_card_takes_no_claims_at_once_and_takes_them_again_when_it_is_well(
    database: Database, host: HostRow
) -> None:
    claim(database, "a", 1, on("h1", GiB, "g1"), generation(database))
    assert tell(database, g("g1", healthy=False, reason="Xid 79"), g("g2"))
    assert offered(database) == {"g2": 24 * GiB}
    with pytest.raises(claims.ClaimLost):
        claim(database, "b", 1, on("h1", GiB, "g1"), generation(database))
    assert (row(database, "g1").reason, used(database)["g1"]) == ("Xid 79", GiB)
    assert tell(database, g("g1"), g("g2"))
    assert (row(database, "g1").healthy, row(database, "g1").reason) == (True, "")
    claim(database, "b", 1, on("h1", GiB, "g1"), generation(database))


def test_cordon_stays_whatever_is_reported(database: Database, host: HostRow) -> None:
    database.write(lambda s: gpus.cordon(s, "g1", "fan"))
    for said in (g("g1", healthy=False, reason="hot"), g("g1"), g("g1", 5 * GiB)):
        tell(database, said, g("g2"))
        assert (row(database, "g1").cordoned, row(database, "g1").cordon_reason) == (True, "fan")
    assert offered(database) == {"g2": 24 * GiB}


def test_card_that_a_status_does_not_name_is_away(database: Database, host: HostRow) -> None:
    assert tell(database, g("g2"), g("g9"))
    assert (row(database, "g1").healthy, row(database, "g1").reason) == (False, NOT_REPORTED)
    assert tell(database, g("g1"), g("g2"))
    assert row(database, "g1").healthy


def test_claims_that_do_not_fit_any_more_stay_and_their_room_is_not_given_out_twice(
    database: Database, host: HostRow
) -> None:
    claim(database, "a", 1, on("h1", 10 * GiB, "g1"), generation(database))
    claim(database, "b", 1, on("h1", 10 * GiB, "g1"), generation(database))
    tell(database, g("g1", 20 * GiB), g("g2"))
    assert offered(database)["g1"] == -16 * GiB
    database.write(lambda s: claims.release(s, "b", 1))
    with pytest.raises(claims.ClaimLost):
        claim(database, "c", 1, on("h1", GiB, "g1"), generation(database))
    database.write(lambda s: claims.release(s, "a", 1))
    claim(database, "c", 1, on("h1", 4 * GiB, "g1"), generation(database))


def test_what_others_use_counts_against_what_is_kept_for_them(database: Database, host: HostRow) -> None:
    register(database, gpu("g1"), gpu("g2", index=1), vram_reserved_bytes=4 * GiB)
    assert offered(database) == {"g1": 20 * GiB, "g2": 20 * GiB}
    tell(database, g("g1", 3 * GiB), g("g2", 10 * GiB))
    assert offered(database) == {"g1": 20 * GiB, "g2": 14 * GiB}


def test_registering_again_forgets_nothing_that_statuses_said(database: Database, host: HostRow) -> None:
    tell(database, g("g1", 12 * GiB), g("g2"))
    claim(database, "a", 1, on("h1", GiB, "g1"), generation(database))
    register(database, gpu("g1", driver_version="2"), gpu("g2", index=1))
    assert offered(database)["g1"] == 11 * GiB
    assert row(database, "g1").details["driver_version"] == "2"
    register(database, gpu("g1"), gpu("g2", index=1), gpu("g3", index=2))
    assert offered(database) == {"g1": 11 * GiB, "g2": 24 * GiB, "g3": 24 * GiB}


def test_status_of_a_host_that_is_unknown_or_has_another_card_of_that_name_is_harmless(
    database: Database, host: HostRow
) -> None:
    assert not tell(database, g("g1", 23 * GiB), host_id="h9")
    other = HostRow(id="h2", name="h2", state=HostState.READY, credential_hash="h2")
    database.write(lambda s: s.add(other))
    assert not tell(database, g("g1", 23 * GiB), host_id="h2"), "it has not registered yet"
    register(database, gpu("g1"), host_id="h2")
    tell(database, g("g1", 23 * GiB), host_id="h2")
    assert row(database, "g1").foreign_bytes == 0
    assert row(database, "g1@h2").reason == "host h1 reports the same card"


# -- cards that go and come -----------------------------------------------------------------------------------------


def test_card_that_fell_off_the_bus_stays_known_and_comes_back(database: Database, host: HostRow) -> None:
    first, second = gpu("a", pci_address="0000:10:00.0"), gpu("b", index=1, pci_address="0000:11:00.0")
    register(database, first, second)
    claim(database, "m", 1, on("h1", GiB, "b"), generation(database))
    register(database, first)
    away = row(database, "b")
    assert (away.healthy, away.reason, away.used) == (False, NOT_REPORTED, GiB)
    assert not tell(database, g("a")), "that it is away is known"
    assert offered(database) == {"a": 24 * GiB}
    register(database, first, second)
    assert offered(database) == {"a": 24 * GiB, "b": 23 * GiB}


def test_card_in_the_place_of_another_replaces_it(database: Database, host: HostRow) -> None:
    register(database, gpu("a", pci_address="0000:10:00.0"))
    register(database, gpu("new", pci_address="0000:10:00.0"))
    assert database.read(lambda s: s.get(GpuRow, "a")) is None


def test_instances_of_a_card_that_is_cut_anew_are_forgotten(database: Database, host: HostRow) -> None:
    cut = {"pci_address": "0000:10:00.0", "parent_uuid": "p"}
    parent = gpu("p", 0, partitioned=True, pci_address="0000:10:00.0")
    register(database, parent, gpu("m1", 10 * GiB, **cut), gpu("m2", 10 * GiB, **cut))
    assert offered(database) == {"m1": 10 * GiB, "m2": 10 * GiB}, "the card itself is not offered"
    [found] = database.read(lambda s: ready_hosts(s, "m"))
    assert all(card.part for card in found.view.gpus)
    register(database, parent, gpu("m3", 20 * GiB, **cut))
    assert offered(database) == {"m3": 20 * GiB}
    assert database.read(lambda s: s.get(GpuRow, "m1")) is None
