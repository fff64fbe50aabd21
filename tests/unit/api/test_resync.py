"""Lost workflows are begun anew from the database, in an order in which nothing is left unsaid."""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from sqlmodel import Session, select

from api.relay.registering import register
from fleet.batches import Batch, BatchStatus
from fleet.db.batches import BatchRow
from fleet.db.projections import deployment_row, instance_row
from fleet.db.tables import ClaimRow, DeploymentRow, EndpointRow, HostRow, InstanceRow
from fleet.deployments import Deployment, InstanceView
from fleet.hosts import Host
from fleet.instances import InstanceNews
from fleet.inventory import Registration
from fleet.states import ClaimState, HostState, InstanceState
from tests.unit.api.world import World, registration
from tests.unit.fleet.test_resync import claim, host_row, ready
from tests.unit.fleet.worlds import deployment

NOTHING = {
    "hosts": {"started": 0, "existing": 0},
    "instances": {"started": 0, "existing": 0},
    "deployments": {"started": 0, "existing": 0},
    "batches": {"started": 0, "existing": 0},
    "orphans": [],
}


@pytest.fixture
def fleet(world: World) -> World:
    """Host h1 with one replica of m, all of it lost."""
    world.add(host_row(Host(host_id="h1", name="box", registrations=2, projection=4)))
    world.add(deployment_row(with_views(deployment(1).with_(projection=8), ready().instance_id), "run-1"))
    world.add(instance_row(ready()))
    world.add(EndpointRow(instance_id="m/1-a", deployment="m", model="m", url="http://x", fence=3, state="ready"))
    world.add(claim(3))
    world.workflows.gone = {"host/h1", "deployment/m", "instance/m/1-a"}
    return world


def with_views(made: Deployment, *instance_ids: str) -> Deployment:
    views = {i: InstanceView(instance_id=i, slot=n, launch=1) for n, i in enumerate(instance_ids, 1)}
    return made.with_(instances=views)


def rows(world: World, table: Any) -> list[Any]:
    return list(world.database.read(lambda s: s.exec(select(table)).all()))


def change(world: World, table: Any, key: Any, **values: Any) -> None:
    def write(session: Session) -> None:
        row = session.get_one(table, key)
        for name, value in values.items():
            setattr(row, name, value)

    world.database.write(write)


async def resync(api: httpx.AsyncClient) -> Any:
    answer = await api.post("/api/v1/system/resync")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_all_that_is_lost_is_begun_anew_in_order_and_once(fleet: World, api: httpx.AsyncClient) -> None:
    one = {"started": 1, "existing": 0}
    assert await resync(api) == NOTHING | {"hosts": one, "instances": one, "deployments": one}
    begun = fleet.workflows.taken_up
    assert list(begun) == ["host/h1", "instance/m/1-a", "deployment/m"]
    assert begun["instance/m/1-a"] == ready()
    assert (begun["deployment/m"].run_id, begun["deployment/m"].projection) == ("run-1", 8)
    assert begun["deployment/m"].instances["m/1-a"].state is InstanceState.READY
    assert begun["host/h1"].registrations == 2
    assert fleet.workflows.told == []
    again = {"started": 0, "existing": 1}
    assert await resync(api) == NOTHING | {"hosts": again, "instances": again, "deployments": again}
    assert [c.state for c in rows(fleet, ClaimRow)] == [ClaimState.BOUND]


async def test_a_healthy_system_is_left_alone(fleet: World, api: httpx.AsyncClient) -> None:
    fleet.workflows.gone = set()
    fleet.add(claim(2))  # being given back by its workflow at this moment
    before = [r.model_dump() for table in (HostRow, DeploymentRow, InstanceRow, ClaimRow) for r in rows(fleet, table)]
    await resync(api)
    after = [r.model_dump() for table in (HostRow, DeploymentRow, InstanceRow, ClaimRow) for r in rows(fleet, table)]
    assert (before, fleet.workflows.taken_up) == (after, {})


async def test_an_empty_fleet_has_nothing_to_begin(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()  # has joined, and not registered
    assert await resync(api) == NOTHING


async def test_old_claims_are_given_up_before_an_instance_goes_on(fleet: World, api: httpx.AsyncClient) -> None:
    fleet.add(claim(2))
    states: list[str] = []
    fleet.workflows.meanwhile = lambda w: states.extend(c.state for c in rows(fleet, ClaimRow)) if "inst" in w else None
    await resync(api)
    assert sorted(states) == ["bound", "releasing"]
    assert {c.fence: c.state for c in rows(fleet, ClaimRow)} == {2: "releasing", 3: "bound"}


async def test_an_instance_on_a_lost_host_is_placed_anew(fleet: World, api: httpx.AsyncClient) -> None:
    change(fleet, HostRow, "h1", state=HostState.LOST)
    await resync(api)
    moved = fleet.workflows.taken_up["instance/m/1-a"]
    assert (moved.placement, moved.fence, moved.state) == (None, 3, InstanceState.RECOVERING)
    assert [c.state for c in rows(fleet, ClaimRow)] == [ClaimState.RELEASING]


async def test_a_host_that_is_lost_before_its_instances_begin_is_told_to_them(
    fleet: World, api: httpx.AsyncClient
) -> None:
    def lose(workflow_id: str) -> None:
        if workflow_id == "instance/m/1-a":
            change(fleet, HostRow, "h1", state=HostState.LOST)

    fleet.workflows.meanwhile = lose
    await resync(api)
    assert ("m/1-a", "h1") in fleet.workflows.told


async def test_what_an_instance_says_before_its_deployment_begins_is_said_again(
    fleet: World, api: httpx.AsyncClient
) -> None:
    failed = ready(state=InstanceState.FAILED, placement=None, message="engine exited with 1", projection=12)

    def fail(workflow_id: str) -> None:
        if workflow_id == "deployment/m":
            change(fleet, InstanceRow, "m/1-a", **instance_row(failed).model_dump(exclude={"created_at", "updated_at"}))

    fleet.workflows.meanwhile = fail
    await resync(api)
    [(name, news)] = fleet.workflows.told
    assert (name, news.state, news.message) == ("m", InstanceState.FAILED, "engine exited with 1")
    assert not news.gone


async def test_an_instance_that_ends_before_its_deployment_begins_is_said_to_be_gone(
    fleet: World, api: httpx.AsyncClient
) -> None:
    def end(workflow_id: str) -> None:
        if workflow_id == "deployment/m":
            fleet.database.write(lambda s: s.delete(s.get_one(InstanceRow, "m/1-a")))

    fleet.workflows.meanwhile = end
    await resync(api)
    [(name, news)] = fleet.workflows.told
    assert name == "m"
    assert isinstance(news, InstanceNews)
    assert news.gone


async def test_what_ends_in_good_order_while_we_look_is_not_revived(fleet: World, api: httpx.AsyncClient) -> None:
    looked = fleet.workflows.missing

    async def look(workflow_ids: Any) -> set[str]:
        found = await looked(workflow_ids)
        for table, key in ((InstanceRow, "m/1-a"), (DeploymentRow, "m"), (HostRow, "h1")):
            fleet.database.write(lambda s, t=table, k=key: s.delete(s.get_one(t, k)))  # type: ignore[misc]
        return found

    fleet.workflows.missing = look  # type: ignore[method-assign]
    assert await resync(api) == NOTHING
    assert fleet.workflows.taken_up == {}


async def test_a_deployment_that_only_its_row_is_left_of_is_forgotten(world: World, api: httpx.AsyncClient) -> None:
    world.add(deployment_row(deployment().with_(deleting=True), "run-1"))
    world.workflows.gone = {"deployment/m"}
    assert await resync(api) == NOTHING | {"orphans": ["m"]}
    assert rows(world, DeploymentRow) == []


async def test_a_deployment_that_is_being_deleted_goes_on_with_it(fleet: World, api: httpx.AsyncClient) -> None:
    row = deployment_row(with_views(deployment().with_(deleting=True), "m/1-a"), "run-1")
    change(fleet, DeploymentRow, "m", durable=row.durable)
    await resync(api)
    assert fleet.workflows.taken_up["deployment/m"].deleting
    assert rows(fleet, DeploymentRow) != []


async def test_an_instance_without_a_deployment_is_cleaned_up(fleet: World, api: httpx.AsyncClient) -> None:
    fleet.database.write(lambda s: s.delete(s.get_one(DeploymentRow, "m")))
    assert (await resync(api))["orphans"] == ["m/1-a"]
    assert rows(fleet, InstanceRow) == []
    assert rows(fleet, EndpointRow) == []
    assert [c.state for c in rows(fleet, ClaimRow)] == [ClaimState.RELEASING], "its host has yet to stop the engine"


async def test_an_instance_without_a_deployment_that_lives_is_left_alone(fleet: World, api: httpx.AsyncClient) -> None:
    """It has just been begun, and its deployment is about to write its row."""
    fleet.database.write(lambda s: s.delete(s.get_one(DeploymentRow, "m")))
    fleet.workflows.gone = set()
    assert (await resync(api))["orphans"] == []
    assert len(rows(fleet, InstanceRow)) == 1


@pytest.mark.parametrize(("known", "orphans"), [(["m/1-a"], []), ([], ["m/1-a"])], ids=["knows it", "made anew"])
async def test_a_living_deployment_looks_after_lost_instances_that_it_knows(
    fleet: World, api: httpx.AsyncClient, known: list[str], orphans: list[str]
) -> None:
    fleet.workflows.gone = {"instance/m/1-a"}
    fleet.workflows.deployments["m"] = with_views(deployment(), *known)
    done = await resync(api)
    assert done["orphans"] == orphans
    assert done["instances"] == {"started": 0, "existing": 0}
    assert fleet.workflows.taken_up == {}
    assert len(rows(fleet, InstanceRow)) == len(known)


async def test_only_lost_workflows_are_listed(fleet: World, api: httpx.AsyncClient) -> None:
    fleet.add(deployment_row(deployment().with_(name="other"), "run-2"))
    answer = await api.get("/api/v1/system/lost")
    assert answer.json() == {"deployments": ["m"], "hosts": ["h1"]}
    assert fleet.workflows.taken_up == {}
    await resync(api)
    assert (await api.get("/api/v1/system/lost")).json() == {"deployments": [], "hosts": []}


async def test_without_temporal_it_is_a_503_with_a_hint_and_nothing_is_cleaned_up(
    fleet: World, api: httpx.AsyncClient
) -> None:
    fleet.workflows.down = True
    for method, path in (("POST", "resync"), ("GET", "lost")):
        answer = await api.request(method, f"/api/v1/system/{path}")
        assert answer.status_code == 503
        assert answer.json()["hint"]
    assert len(rows(fleet, InstanceRow)) == 1


async def test_only_administrators_may(fleet: World) -> None:
    fleet.add_key("hf-key-user", scope="inference")
    for key, status in (("hf-key-user", 403), (None, 401)):
        async with fleet.client(key) as client:
            assert (await client.post("/api/v1/system/resync")).status_code == status
            assert (await client.get("/api/v1/system/lost")).status_code == status


async def test_a_host_that_registers_goes_on_as_it_was_known(world: World) -> None:
    """Its own word may come before the resync: an empty Temporal must not forget what was asked of it."""
    before = Host(host_id="h1", name="box", registrations=3, projection=40)
    world.add_host(projection=40, durable=before.model_dump(mode="json"))
    said = Registration.model_validate(registration())
    boot_id = said.inventory.boot_id
    assert world.database.write(lambda s: register(s, "h1", boot_id, said, "10.0.0.7")) == before


async def test_a_lost_batch_goes_on_where_it_was(world: World, api: httpx.AsyncClient) -> None:
    at = datetime.now(UTC)
    common = {"key_id": "k", "endpoint": "/v1/embeddings", "input_file_id": "f", "completion_window": "24h"}
    state = Batch(
        batch_id="batch_1",
        endpoint="/v1/embeddings",
        created_at=at,
        expires_at=at,
        status=BatchStatus.IN_PROGRESS,
        next_window=5,
        under_way=(3, 4),
        again=(1,),
        projection=7,
    )
    durable = state.model_dump(mode="json")
    kept = {"status": "in_progress", "durable": durable, "projection": 7}
    world.add(BatchRow(id="batch_1", expires_at=at, **kept, **common))
    world.add(BatchRow(id="batch_2", expires_at=at, status="completed", projection=9, **common))
    world.add(BatchRow(id="batch_3", expires_at=at, **common))
    world.add(BatchRow(id="batch_4", expires_at=at, **kept, **common))
    world.workflows.gone = {"batch/batch_1", "batch/batch_2", "batch/batch_3"}
    assert (await resync(api))["batches"] == {"started": 2, "existing": 1}
    begun = world.workflows.taken_up
    assert set(begun) == {"batch/batch_1", "batch/batch_3"}
    assert begun["batch/batch_1"] == state.with_(under_way=(), again=(3, 4, 1)), "what was under way is gone on with"
    assert (begun["batch/batch_3"].status, begun["batch/batch_3"].projection) == ("validating", 0)
