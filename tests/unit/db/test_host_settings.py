"""What people set of a host, and how it meets placement: what was decided before a change is void after it."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from temporalio.client import Client

from activities import placement
from activities.placement import PlacementActivities
from activities.preemption import RoomMaker
from activities.waiting import WaitingInstances
from fleet.access.sealing import master_sealer
from fleet.db import claims
from fleet.db.host_settings import HostSettings, change, settings_of
from fleet.db.hosts import save_registration
from fleet.db.session import Database
from fleet.db.tables import DeploymentRow, GpuRow, HostRow
from fleet.engines.spec import EngineSpec
from fleet.errors import NotFound, PreconditionFailed
from fleet.host_client import FileFacts, HostAddress
from fleet.inventory import AcceleratorKind, EngineBuild, Gpu
from fleet.model_files import ModelFiles
from fleet.placement.request import PlacementRequest, PlaceResult
from fleet.specs import PlacementSpec
from fleet.states import HostState
from tests.unit.db.ledger import assert_the_books_are_right, claim, on
from tests.unit.db.test_hosts import registration

ML = {"team": "ml"}
CARD = Gpu(uuid="g1", kind=AcceleratorKind.NVIDIA, name="t", memory_bytes=1000, index=0)


class EveryFile:
    """Each host has each file."""

    async def on(self, hosts: list[HostAddress], path: str) -> dict[str, FileFacts | None]:
        facts = FileFacts(path=path, exists=True, readable=True, size_bytes=1, is_gguf=True)
        return {h.host_id: facts for h in hosts}


def joined(database: Database, host_id: str = "h1", ram: int = 100, **settings: Any) -> None:
    row = HostRow(id=host_id, name=host_id, state=HostState.READY, credential_hash=host_id)
    database.write(lambda s: s.add(row))
    if settings:
        set_(database, host_id, **settings)
    engines = (EngineBuild(engine="llama_cpp", version="1"),)
    database.write(lambda s: save_registration(s, host_id, registration(ram, (CARD,), engines=engines)))


def set_(database: Database, host_id: str = "h1", if_tag: str | None = None, **settings: Any) -> None:
    database.write(lambda s: change(s, host_id, lambda before: before.model_copy(update=settings), if_tag))


def host(database: Database, host_id: str = "h1") -> HostRow:
    return database.read(lambda s: s.get_one(HostRow, host_id))


def deployment(database: Database, labels: dict[str, str], name: str = "chat") -> None:
    fields: dict[str, Any] = dict.fromkeys(("generation", "revision", "launch", "desired_replicas", "projection"), 1)
    row = DeploymentRow(
        name=name,
        labels=labels,
        spec={},
        engine="llama_cpp",
        engine_version="1",
        phase="deploying",
        ready_replicas=0,
        created_at=datetime.now(UTC),
        **fields,
    )
    database.write(lambda s: s.merge(row))


async def place(database: Database, fence: int = 1, **changes: Any) -> PlaceResult:
    request = PlacementRequest(
        instance_id="chat/1-a",
        deployment="chat",
        fence=fence,
        spec=EngineSpec(
            engine="llama_cpp",
            engine_version="1",
            model_path="m.gguf",
            served_name="chat",
            memory_bytes=10,
            placement=PlacementSpec(gpus_per_replica=0),
        ),
    )
    room = RoomMaker(database, cast(Client, None), drain=timedelta(seconds=1))
    placing = PlacementActivities(
        database, cast(ModelFiles, EveryFile()), master_sealer("x"), cast(WaitingInstances, None), room
    )
    return await placing.place_instance(request.model_copy(update=changes))


def test_what_is_set_holds_over_what_the_host_reports_now_and_later(database: Database) -> None:
    joined(database, labels={"rack": "4"}, reserve={"ram_bytes": 150, "vram_bytes": 400})
    for own in ({}, {"rack": "own", "zone": "a"}):
        again = registration(100, (CARD,), labels=own)
        database.write(lambda s, r=again: save_registration(s, "h1", r))  # type: ignore[misc]
        row = host(database)
        assert (row.labels, row.ram_allocatable) == (own | {"rack": "4"}, 50)
        assert database.read(lambda s: s.get_one(GpuRow, "g1").allocatable) == 600


@pytest.mark.parametrize(
    "settings", [{"labels": {"a": "b"}}, {"reserved_for": ML}, {"reserve": {"ram_bytes": 190}}], ids=str
)
def test_decision_that_was_made_before_a_change_is_void(database: Database, settings: dict[str, Any]) -> None:
    joined(database)
    before = host(database).generation
    set_(database, **settings)
    for wanted in (on("h1", 5), on("h1", 5, "g1")):
        with pytest.raises(claims.ClaimLost):
            claim(database, "chat/1-a", 1, wanted, before)
    for number, wanted in enumerate((on("h1", 5), on("h1", 5, "g1"))):
        claim(database, f"chat/{number}-a", 1, wanted, host(database).generation)
    assert_the_books_are_right(database)


def test_same_again_changes_nothing(database: Database) -> None:
    joined(database)
    set_(database, labels={"a": "b"})
    before = host(database).model_dump()
    set_(database, labels={"a": "b"})
    assert host(database).model_dump() == before


def test_reserve_above_what_is_claimed_leaves_claims_and_lets_nothing_new_in(database: Database) -> None:
    joined(database)
    claim(database, "chat/1-a", 1, on("h1", 60), host(database).generation)
    set_(database, reserve={"ram_bytes": 190})
    assert (host(database).ram_allocatable, host(database).ram_used) == (10, 60)
    with pytest.raises(claims.ClaimLost):
        claim(database, "chat/2-b", 1, on("h1", 1), host(database).generation)


def test_change_of_a_host_that_is_not_there_is_refused(database: Database) -> None:
    with pytest.raises(NotFound):
        set_(database, "nope", labels={})


def test_tag_guards_against_changes_by_others(database: Database) -> None:
    joined(database)
    tag = settings_of(host(database)).tag
    set_(database, if_tag=tag, labels={"a": "b"})
    with pytest.raises(PreconditionFailed):
        set_(database, if_tag=tag, labels={"a": "c"})
    assert host(database).given_labels == {"a": "b"}


def test_of_changes_at_once_none_is_lost(database: Database) -> None:
    joined(database)

    def add(number: int) -> None:
        def wanted(before: HostSettings) -> HostSettings:
            return before.model_copy(update={"labels": {**before.labels, f"k{number}": "v"}})

        database.write(lambda s: change(s, "h1", wanted))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    assert len(host(database).given_labels) == 24


def test_claims_and_changes_at_once_keep_the_books(database: Database) -> None:
    joined(database, ram=1000)

    def one(number: int) -> None:
        if number % 4 == 0:
            set_(database, reserve={"ram_bytes": 1000 + number, "vram_bytes": number})
            return
        for _ in range(50):
            generation = host(database).generation
            try:
                claim(database, f"chat/{number}-a", 1, on("h1", 20, *(["g1"] if number % 2 else [])), generation)
            except claims.ClaimLost:
                continue
            return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(32)))
    assert_the_books_are_right(database)


async def test_reserved_host_gets_what_it_is_for(database: Database) -> None:
    joined(database, reserved_for=ML)
    deployment(database, {"team": "web"})
    refused = (await place(database)).unplaceable
    assert refused is not None
    assert refused.message == "box: is reserved for deployments with label team=ml"
    deployment(database, {"team": "ml", "more": "x"})
    placed = (await place(database)).placement
    assert placed is not None
    assert placed.host_id == "h1"


async def test_deployment_whose_first_word_is_on_its_way_is_waited_for(database: Database) -> None:
    """Its workflow starts its instances before it has written itself down."""
    joined(database, reserved_for=ML)
    placing = asyncio.create_task(place(database))
    await asyncio.sleep(0.25)
    deployment(database, ML)
    assert (await placing).placement is not None


async def test_deployment_that_nobody_knows_is_not_let_in(database: Database) -> None:
    joined(database, reserved_for=ML)
    assert (await place(database)).unplaceable is not None


async def test_host_that_is_reserved_while_a_replica_is_placed_is_not_taken(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the decision and the claim."""
    joined(database, "h1", ram=20)
    joined(database, "h2", ram=1000)
    deployment(database, {})
    decide, seen = placement.place, []

    def place_and_be_late(*asked: Any, **more: Any) -> Any:
        decision = decide(*asked, **more)
        seen.append(decision.seats[0].host_id)
        if len(seen) == 1:
            set_(database, "h1", reserved_for=ML)
        return decision

    monkeypatch.setattr(placement, "place", place_and_be_late)
    placed = (await place(database)).placement
    assert placed is not None
    assert (seen, placed.host_id) == (["h1", "h2"], "h2")
