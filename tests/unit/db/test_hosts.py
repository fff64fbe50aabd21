"""What a host says of itself, and how the ledger follows."""

from typing import Any

import pytest
from sqlmodel import Session, select

from fleet.db import claims, gpus, registry
from fleet.db.hosts import ReadyHost, ready_hosts, record_state, save_registration
from fleet.db.session import Database
from fleet.db.tables import GpuRow, HostRow
from fleet.inventory import AcceleratorKind, Gpu, Inventory, Registration
from fleet.states import HostState
from tests.unit.db.ledger import assert_the_books_are_right, claim, on, rows, used


def gpu(uuid: str, memory: int = 100, **changes: Any) -> Gpu:
    fields: dict[str, Any] = {"uuid": uuid, "kind": AcceleratorKind.NVIDIA, "name": "t", "index": 0}
    return Gpu.model_validate(fields | {"memory_bytes": memory} | changes)


def registration(ram: int = 100, gpus: tuple[Gpu, ...] = (), **changes: Any) -> Registration:
    inventory = Inventory(
        hostname="box",
        machine_id="m",
        boot_id="b",
        os="linux",
        arch="x86_64",
        cpu_count=2,
        ram_bytes=ram * 2,
        ram_allocatable_bytes=ram,
        disk_bytes=1,
        disk_free_bytes=1,
        gpus=gpus,
    )
    return Registration(inventory=inventory.model_copy(update=changes), address="127.0.0.1", http_port=1, version="1")


def joined(database: Database, host_id: str = "h1") -> None:
    row = HostRow(id=host_id, name=host_id, state=HostState.READY, credential_hash=host_id)
    database.write(lambda s: s.add(row))


def register(database: Database, said: Registration, host_id: str = "h1") -> None:
    database.write(lambda s: save_registration(s, host_id, said))


def host(database: Database, host_id: str = "h1") -> HostRow:
    return database.read(lambda s: s.get_one(HostRow, host_id))


def test_first_registration_makes_room_that_can_be_claimed(database: Database) -> None:
    joined(database)
    register(database, registration(gpus=(gpu("g1"), gpu("g2"))))
    generation = host(database).generation
    claim(database, "a", 1, on("h1", 100), generation)
    claim(database, "b", 1, on("h1", 100, "g1", "g2"), generation)
    assert_the_books_are_right(database)


def test_registering_again_with_the_same_hardware_keeps_the_generation(database: Database) -> None:
    joined(database)
    register(database, registration(gpus=(gpu("g1"),)))
    before = host(database).generation
    register(database, registration(gpus=(gpu("g1", driver_version="9"),), disk_free_bytes=0, labels={"a": "b"}))
    assert host(database).generation == before
    assert host(database).labels == {"a": "b"}


def test_what_a_host_tells_of_ports_and_its_fabric_is_kept(database: Database) -> None:
    joined(database)
    register(database, registration(port_range=(21000, 21009), fabric_address="10.0.0.7"))
    row = host(database)
    assert (row.port_first, row.port_last, row.fabric_address) == (21000, 21009, "10.0.0.7")
    assert row.fingerprint == registration(port_range=(21000, 21009), fabric_address="10.0.0.7").inventory.fingerprint()
    register(database, registration(port_range=(21000, 21001), fabric_address="10.0.0.7"))
    assert (host(database).generation, host(database).port_last) == (row.generation, 21001)
    register(database, registration(fabric_address="10.0.0.8"))
    moved = host(database)
    assert (moved.port_first, moved.port_last, moved.fabric_address) == (0, 0, "10.0.0.8")
    assert moved.generation > row.generation, "gangs were told the address of before"


@pytest.mark.parametrize(
    "changed",
    [
        registration(99, (gpu("g1"),)),
        registration(100, (gpu("g1", 99),)),
        registration(100, (gpu("g1", healthy=False),)),
        registration(100, (gpu("g1"), gpu("g2"))),
        registration(100, ()),
    ],
    ids=["ram", "memory", "health", "more", "fewer"],
)
def test_changed_hardware_makes_decisions_about_the_old_one_void(database: Database, changed: Registration) -> None:
    joined(database)
    register(database, registration(gpus=(gpu("g1"),)))
    before = host(database).generation
    register(database, changed)
    for placement in (on("h1", 1), on("h1", 1, "g1")):
        with pytest.raises(claims.ClaimLost):
            claim(database, "a", 1, placement, before)


def test_claims_stay_in_the_books_when_the_hardware_changes(database: Database) -> None:
    joined(database)
    register(database, registration(gpus=(gpu("g1"), gpu("g2"))))
    generation = host(database).generation
    claim(database, "a", 1, on("h1", 30), generation)
    claim(database, "b", 1, on("h1", 40, "g1"), generation)
    register(database, registration(200, (gpu("g1"), gpu("g2"), gpu("g3"))))
    assert used(database) == {"h1": 30, "g1": 40, "g2": 0, "g3": 0}
    register(database, registration(200, (gpu("g2"), gpu("g3"))))
    register(database, registration(200, (gpu("g1"), gpu("g2"), gpu("g3"))))
    assert used(database) == {"h1": 30, "g1": 40, "g2": 0, "g3": 0}


def test_a_card_that_two_hosts_report_stays_with_the_first_while_it_lives(database: Database) -> None:
    joined(database)
    joined(database, "h2")
    register(database, registration(gpus=(gpu("g1"),)))
    register(database, registration(gpus=(gpu("g1"), gpu("g2"))), "h2")
    first, second, clone = (database.read(lambda s, u=u: s.get_one(GpuRow, u)) for u in ("g1", "g2", "g1@h2"))
    assert (first.host_id, first.healthy) == ("h1", True)
    assert (second.host_id, second.healthy) == ("h2", True)
    assert (clone.host_id, clone.healthy, clone.reason) == ("h2", False, "host h1 reports the same card")


def test_a_card_that_was_moved_leaves_its_lost_host_and_what_it_owed(database: Database) -> None:
    joined(database)
    register(database, registration(gpus=(gpu("g1"),)))
    claim(database, "a", 1, on("h1", 60, "g1"), host(database).generation)
    database.write(lambda s: claims.give_up(s, "a", 1))
    database.write(lambda s: record_state(s, "h1", HostState.LOST, "", 1))
    joined(database, "h2")
    register(database, registration(gpus=(gpu("g1"),)), "h2")
    database.write(lambda s: claims.confirm_gone(s, "h1", set()))
    moved = database.read(lambda s: s.get_one(GpuRow, "g1"))
    assert (moved.host_id, moved.used) == ("h2", 0)


def test_hosts_that_are_ready_are_offered_with_what_is_free(database: Database) -> None:
    for host_id in ("h1", "h2", "h3"):
        joined(database, host_id)
    register(database, registration(gpus=(gpu("g1"), gpu("g2", healthy=False))))
    register(database, registration(), "h2")
    register(database, registration(), "h3")
    claim(database, "m/1-x", 1, on("h1", 30, "g1"), host(database).generation)
    claim(database, "mm/1-x", 1, on("h1", 20), host(database).generation)
    database.write(lambda s: record_state(s, "h3", HostState.LOST, "", 1))
    offered = {found.view.host_id: found for found in database.read(lambda s: ready_hosts(s, "m"))}
    assert sorted(offered) == ["h1", "h2"]
    assert _free(offered["h1"]) == (80, [("g1", 70)], 1)
    assert _free(offered["h2"]) == (100, [], 0)


def test_hosts_in_maintenance_and_cordoned_gpus_are_not_offered(database: Database) -> None:
    for host_id in ("h1", "h2"):
        joined(database, host_id)
    register(database, registration(gpus=(gpu("g1"), gpu("g2"))))
    register(database, registration(), "h2")
    database.write(lambda s: gpus.cordon(s, "g2", "Xid 79"))
    for closed in ("cordoned", "draining", "drained"):
        maintain(database, "h2", closed)
        [offered] = database.read(lambda s: ready_hosts(s, "m"))
        assert [g.uuid for g in offered.view.gpus] == ["g1"]
        assert offered.view.cordoned_gpus == (("g2", "Xid 79"),)
    maintain(database, "h2", "none")
    assert len(database.read(lambda s: ready_hosts(s, "m"))) == 2


def maintain(database: Database, host_id: str, maintenance: str) -> None:
    def change(session: Session) -> None:
        session.get_one(HostRow, host_id).maintenance = maintenance

    database.write(change)


def test_cordoned_gpu_stays_so_when_it_is_reported_anew_and_while_it_is_away(database: Database) -> None:
    joined(database)
    register(database, registration(gpus=(gpu("g1"), gpu("g2"))))
    database.write(lambda s: gpus.cordon(s, "g1", "Xid 79"))
    register(database, registration(200, gpus=(gpu("g1"), gpu("g2"))))
    assert cordon_of(database, "g1") == (True, "Xid 79", True)
    register(database, registration(200))
    assert cordon_of(database, "g1") == (True, "Xid 79", False)
    assert database.read(_all) == (["h1"], ["g1"]), "a card that was not cordoned is gone"
    register(database, registration(200, gpus=(gpu("g1"),)))
    assert cordon_of(database, "g1") == (True, "Xid 79", True)


def cordon_of(database: Database, uuid: str) -> tuple[bool, str, bool]:
    row = database.read(lambda s: s.get_one(GpuRow, uuid))
    return row.cordoned, row.cordon_reason, row.healthy


def test_state_of_a_host_only_goes_forward(database: Database) -> None:
    joined(database)
    database.write(lambda s: record_state(s, "h1", HostState.LOST, "no heartbeat", 5))
    for late in (4, 5):
        database.write(lambda s, late=late: record_state(s, "h1", HostState.READY, "", late))  # type: ignore[misc]
    assert (host(database).state, host(database).message) == ("lost", "no heartbeat")
    database.write(lambda s: record_state(s, "h1", HostState.READY, "", 6))
    assert host(database).state == "ready"


def test_forgotten_host_takes_its_gpus_and_claims_along(database: Database) -> None:
    for host_id in ("h1", "h2"):
        joined(database, host_id)
        register(database, registration(gpus=(gpu(f"{host_id}-g"),)), host_id)
        claim(database, host_id, 1, on(host_id, 10, f"{host_id}-g"), host(database, host_id).generation)
    for _ in range(2):
        database.write(lambda s: record_state(s, "h1", HostState.FORGOTTEN, "", 1))
        assert list(rows(database)) == [("h2", 1, "h2-g")]
        assert database.read(_all) == (["h2"], ["h2-g"])


def _free(found: ReadyHost) -> tuple[int, list[tuple[str, int]], int]:
    view = found.view
    return view.ram_free_bytes, [(g.uuid, g.free_bytes) for g in view.gpus], view.replicas_of_deployment


def _all(session: Session) -> tuple[list[str], list[str]]:
    return list(session.exec(select(HostRow.id)).all()), list(session.exec(select(GpuRow.uuid)).all())


def test_gateways_hear_of_it_when_the_state_of_a_host_changes(database: Database) -> None:
    joined(database, "h1")
    heard = []
    states = (HostState.READY, HostState.READY, HostState.SUSPECT, HostState.SUSPECT, HostState.READY, HostState.LOST)
    for projection, state in enumerate((*states, HostState.FORGOTTEN), 1):
        before = database.read(registry.version)
        database.write(lambda s, n=projection, to=state: record_state(s, "h1", to, "", n))  # type: ignore[misc]
        heard.append(database.read(registry.version) > before)
    assert heard[1:] == [False, True, False, True, True, True]


def test_gateways_do_not_hear_of_what_is_out_of_date(database: Database) -> None:
    joined(database, "h1")
    database.write(lambda s: record_state(s, "h1", HostState.READY, "", 5))
    before = database.read(registry.version)
    database.write(lambda s: record_state(s, "h1", HostState.SUSPECT, "", 4))
    assert database.read(registry.version) == before
