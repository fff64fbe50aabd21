"""A bad day: eight cards, of which one is lost, one cut, one sick and one nearly full of somebody else's work."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import select

from fleet.db import claims
from fleet.db.gpu_status import apply_status
from fleet.db.hosts import ready_hosts, save_registration
from fleet.db.migrate import upgrade
from fleet.db.session import Database
from fleet.db.tables import GpuRow, HostRow
from fleet.inventory import Inventory, Registration
from fleet.placement.request import Placement
from fleet.states import HostState
from fleet.telemetry import HostStatus
from tests.unit.host.nvml import Nvml, card, host_says, instance

GiB = 1 << 30
MiB = 1 << 20


@pytest.fixture
def stranger() -> Iterator[int]:
    """Process id of a program that is none of ours."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child.pid
        child.kill()


@pytest.fixture
def engine() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as child:
        yield child.pid
        child.kill()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'holdfast.db'}"
    upgrade(url)
    made = Database(url)
    host = HostRow(id="h1", name="box", state=HostState.READY, credential_hash="x")
    made.write(lambda s: s.add(host))
    yield made
    made.close()


def machine(stranger: int, engine: int, *, lost: bool = True, full: bool = True) -> list[str]:
    small = {"name": "NVIDIA L4", "memory": 24 << 10, "used": 300}
    cut = [card(5, mig="on", name="NVIDIA H100 80GB HBM3", memory=81_559)]
    cut += [
        instance("MIG-1", 40_448, "3g.40gb"),
        instance("MIG-2", 9_856, "1g.10gb", 9_000, f"process = {stranger} 9000"),
    ]
    return [
        *(card(number, **small) for number in range(3)),
        card(3, f"process = {engine} 10240", **small | {"used": 10_600}),
        card(4, **small, **({"lost": "yes"} if lost else {})),
        "\n".join(cut),
        card(6, **small, **{"ecc": 12}),
        card(7, f"process = {stranger} {23 << 10}", **small | {"used": 23 << 10}) if full else card(7, **small),
    ]


def registered(database: Database, inventory: Inventory) -> None:
    said = Registration(inventory=inventory, address="127.0.0.1", http_port=1, version="1")
    database.write(lambda s: save_registration(s, "h1", said))


def told(database: Database, status: HostStatus) -> None:
    database.write(lambda s: apply_status(s, "h1", status))


def rows(database: Database) -> dict[str, GpuRow]:
    return {row.uuid: row for row in database.read(lambda s: list(s.exec(select(GpuRow)).all()))}


def free(database: Database) -> dict[str, int]:
    [found] = database.read(lambda s: ready_hosts(s, "m"))
    return {gpu.uuid: gpu.free_bytes for gpu in found.view.gpus}


def claim(database: Database, instance_id: str, memory: int, *gpus: str) -> None:
    placement = Placement(host_id="h1", memory_bytes=memory, gpu_uuids=gpus)
    generation = database.read(lambda s: s.get_one(HostRow, "h1")).generation
    database.write(lambda s: claims.claim(s, instance_id, 1, placement, {placement.host_id: generation}))


def test_eight_cards_of_which_four_are_not_what_they_should_be(
    nvml: Nvml, tmp_path: Path, database: Database, stranger: int, engine: int
) -> None:
    nvml.has(*machine(stranger, engine, lost=False, full=False))
    registered(database, host_says(nvml, tmp_path)[0])
    claim(database, "chat/0-a", 12 * GiB, "GPU-3")
    ours = json.dumps([{"instance": "chat/0-a", "pids": [engine], "gpus": ["GPU-3"], "memory": 12 * GiB}])

    nvml.has(*machine(stranger, engine))
    inventory, status, _ = host_says(nvml, tmp_path, ours)

    # All of them are there, each with its own trouble and no other's.
    cards = {gpu.uuid: gpu for gpu in inventory.gpus}
    assert list(cards) == [*(f"GPU-{n}" for n in range(6)), "MIG-1", "MIG-2", "GPU-6", "GPU-7"]
    sick = {uuid: gpu.reason for uuid, gpu in cards.items() if not gpu.healthy}
    assert sick == {
        "GPU-4": "GPU is lost (NVML 15)",
        "GPU-6": "12 uncorrectable ECC errors since the driver was loaded",
    }
    assert (cards["GPU-4"].name, cards["GPU-4"].memory_bytes) == ("NVIDIA L4", 24 * GiB)
    foreign = {gpu.uuid: gpu.foreign_bytes // MiB for gpu in status.gpus}
    assert foreign["GPU-7"] == 23 << 10
    assert foreign["GPU-3"] == 10_600 - 10_240, "what our engine uses is not foreign"
    assert {(p.pid, p.gpu_uuid, p.memory_bytes // MiB) for p in status.foreign} == {
        (stranger, "GPU-7", 23 << 10),
        (stranger, "MIG-2", 9_000),
    }

    # The ledger hears it from the status alone, and again from a registration.
    for _ in range(2):
        told(database, status)
        assert {u: r.reason for u, r in rows(database).items() if not r.healthy} == sick
        assert {uuid: size // MiB for uuid, size in free(database).items()} == {
            "GPU-0": 24_576 - 300,
            "GPU-1": 24_576 - 300,
            "GPU-2": 24_576 - 300,
            "GPU-3": 24_576 - 360 - (12 << 10),
            "MIG-1": 40_448,
            "MIG-2": 856,
            "GPU-7": 1024,
        }
        registered(database, inventory)

    for card_of_trouble, memory in (("GPU-4", 1), ("GPU-5", 1), ("GPU-6", 1), ("GPU-7", GiB + 1)):
        with pytest.raises(claims.ClaimLost):
            claim(database, f"other/0-{card_of_trouble}", memory, card_of_trouble)
    claim(database, "other/1-a", GiB, "GPU-7")
    assert rows(database)["GPU-3"].used == 12 * GiB, "what runs there stays"

    # What gets well is used again.
    nvml.has(*machine(stranger, engine, lost=False, full=False))
    told(database, host_says(nvml, tmp_path, ours)[1])
    assert {u for u, r in rows(database).items() if not r.healthy} == {"GPU-6"}
    assert free(database)["GPU-4"] // MiB == 24_576 - 300
    assert free(database)["GPU-7"] // MiB == 24_576 - 300 - 1024
