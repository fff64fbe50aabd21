"""Hosts as people see and set them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.relay.authenticate import Authenticator
from api.relay.directory import HostDirectory
from api.relay.refusal import Refused
from fleet.access.authority import new_key, public_key_of
from fleet.access.tickets import sign_pass
from fleet.db import registry
from fleet.db.hosts import ready_hosts
from fleet.db.tables import ClaimRow, GpuRow, HostRow, HostStatusRow
from fleet.inventory import AcceleratorKind, Gpu
from fleet.join import AUTHORIZATION
from fleet.states import ClaimState, HostState
from fleet.telemetry import GpuStatus, HostStatus
from tests.unit.api.world import World, inventory

GIB = 1 << 30
HOST = "/api/v1/hosts/h1"
GPU = Gpu(uuid="GPU-1", kind=AcceleratorKind.NVIDIA, name="H200", memory_bytes=141 * GIB, index=0)


def gpu_row(host_id: str = "h1", **changes: Any) -> GpuRow:
    kept = {"uuid": GPU.uuid, "index": 0, "kind": "nvidia", "name": GPU.name, "memory_bytes": GPU.memory_bytes}
    return GpuRow(**{**kept, "host_id": host_id, "allocatable": GPU.memory_bytes, **changes})


def claim(instance_id: str, fence: int, host_id: str = "h1") -> ClaimRow:
    return ClaimRow(
        instance_id=instance_id,
        fence=fence,
        host_id=host_id,
        memory_bytes=GIB,
        state=ClaimState.BOUND,
        placement={},
    )


def said(**changes: Any) -> HostStatus:
    gpu = GpuStatus(uuid="GPU-1", memory_used_bytes=3 * GIB, foreign_bytes=GIB, utilization=0.5, temperature_c=60)
    return HostStatus(boot_id="b", inventory="i", at=datetime.now(UTC), gpus=(gpu,)).model_copy(update=changes)


def row(world: World) -> HostRow:
    return world.database.read(lambda s: s.get_one(HostRow, "h1"))


async def test_hosts_are_listed_by_label(world: World, api: httpx.AsyncClient) -> None:
    world.add_host("h1", labels={"zone": "a"})
    world.add_host("h2", "2", labels={"zone": "b"})
    world.add(gpu_row("h2"))
    listed = (await api.get("/api/v1/hosts")).json()["items"]
    assert [(h["id"], len(h["gpus"])) for h in listed] == [("h1", 0), ("h2", 1)]
    chosen = (await api.get("/api/v1/hosts", params={"label": "zone=b"})).json()["items"]
    assert [h["id"] for h in chosen] == ["h2"]


async def test_host_is_shown_with_all_that_is_known_of_it(world: World, api: httpx.AsyncClient) -> None:
    now = datetime.now(UTC)
    world.add_host(
        boot_id="boot-1",
        version="0.1.0",
        joined_with="join-1",
        certificate_expires_at=now + timedelta(days=20),
        tunnel_only=True,
        tunnel_url="http://relay:8482",
        reserved_for={"team": "ml"},
        status=said().model_dump(mode="json"),
        status_at=now - timedelta(seconds=7),
        inventory=inventory(gpus=(GPU,)).model_dump(mode="json"),
    )
    world.add(gpu_row(foreign_bytes=GIB, details=GPU.model_dump(mode="json") | {"pci_address": "0000:3b:00.0"}))
    seen = (await api.get(HOST)).json()
    assert (seen["boot_id"], seen["version"], seen["joined_with"]) == ("boot-1", "0.1.0", "join-1")
    assert (seen["reach"], seen["tunnel_connected"], seen["reserved_for"]) == ("tunnel", True, {"team": "ml"})
    assert 7 <= seen["status_age_s"] < 60
    assert seen["status"]["gpus"][0]["temperature_c"] == 60
    [gpu] = seen["gpus"]
    assert (gpu["foreign_bytes"], gpu["details"]["pci_address"]) == (GIB, "0000:3b:00.0")
    assert gpu["status"]["memory_used_bytes"] == 3 * GIB
    assert "credential" not in str(seen)
    assert seen["workflow_url"].endswith("host%2Fh1")


async def test_host_that_has_said_nothing_yet_is_shown_too(world: World, api: httpx.AsyncClient) -> None:
    world.add_host(inventory={})
    seen = (await api.get(HOST)).json()
    assert (seen["status"], seen["status_age_s"], seen["reach"], seen["tunnel_connected"]) == (
        None,
        None,
        "direct",
        False,
    )


# -- what people set -----------------------------------------------------------------------------------------------


async def test_labels_are_laid_over_those_of_the_host_and_lifted_again(world: World, api: httpx.AsyncClient) -> None:
    own = inventory().model_copy(update={"labels": {"zone": "a", "disk": "ssd"}})
    world.add_host(inventory=own.model_dump(mode="json"), labels=own.labels)
    seen = (await api.patch(HOST, json={"labels": {"zone": "b", "rack": "4"}})).json()
    assert seen["labels"] == {"zone": "b", "disk": "ssd", "rack": "4"}
    assert seen["given_labels"] == {"zone": "b", "rack": "4"}
    seen = (await api.patch(HOST, json={"labels": {"zone": None}})).json()
    assert seen["labels"] == {"zone": "a", "disk": "ssd", "rack": "4"}
    seen = (await api.patch(HOST, json={"labels": None})).json()
    assert (seen["labels"], seen["given_labels"]) == ({"zone": "a", "disk": "ssd"}, {})


async def test_reserve_of_a_person_replaces_that_of_the_host(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()
    world.add(gpu_row(foreign_bytes=3 * GIB))
    seen = (await api.patch(HOST, json={"reserve": {"ram_bytes": 3 * GIB, "vram_bytes": 2 * GIB}})).json()
    assert (seen["ram_allocatable_bytes"], seen["reserve"]) == (5 * GIB, {"ram_bytes": 3 * GIB, "vram_bytes": 2 * GIB})
    assert seen["gpus"][0]["allocatable_bytes"] == 138 * GIB, "what others use counts against what is reserved"
    seen = (await api.patch(HOST, json={"reserve": {"vram_bytes": 10 * GIB}})).json()
    assert seen["gpus"][0]["allocatable_bytes"] == 131 * GIB
    seen = (await api.patch(HOST, json={"reserve": None})).json()
    assert (seen["ram_allocatable_bytes"], seen["gpus"][0]["allocatable_bytes"]) == (7 * GIB, 138 * GIB)
    seen = (await api.patch(HOST, json={"reserve": {"ram_bytes": 1 << 50}})).json()
    assert seen["ram_allocatable_bytes"] == 0


async def test_change_makes_older_decisions_about_the_host_void(world: World, api: httpx.AsyncClient) -> None:
    world.add_host(generation=4)
    world.add(gpu_row(generation=4))
    world.add(gpu_row(uuid="GPU-away", generation=2, healthy=False))
    await api.patch(HOST, json={"reserved_for": {"team": "ml"}})
    gpus = world.database.read(lambda s: {u: s.get_one(GpuRow, u).generation for u in ("GPU-1", "GPU-away")})
    assert (row(world).generation, gpus) == (5, {"GPU-1": 5, "GPU-away": 2})
    await api.patch(HOST, json={"reserved_for": {"team": "ml"}})
    assert row(world).generation == 5, "the same again is no change"


async def test_what_is_set_before_the_host_registers_is_kept(world: World, api: httpx.AsyncClient) -> None:
    world.add_host(inventory={}, ram_allocatable=0)
    changed = await api.patch(HOST, json={"labels": {"rack": "4"}, "reserve": {"ram_bytes": GIB}})
    assert (changed.status_code, changed.json()["given_labels"]) == (200, {"rack": "4"})


async def test_placement_hears_whom_a_host_is_for(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()
    await api.patch(HOST, json={"reserved_for": {"team": "ml"}})
    [ready] = world.database.read(lambda s: ready_hosts(s, ""))
    assert ready.view.reserved_for == {"team": "ml"}


async def test_change_of_what_somebody_else_changed_is_refused(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()
    read = (await api.get(HOST)).headers["etag"]
    changed = await api.patch(HOST, json={"labels": {"a": "b"}}, headers={"If-Match": read})
    assert changed.status_code == 200
    assert changed.headers["etag"] != read
    late = await api.patch(HOST, json={"labels": {"a": "c"}}, headers={"If-Match": read})
    assert (late.status_code, row(world).given_labels) == (412, {"a": "b"})
    for match in ("*", changed.headers["etag"], f"W/{changed.headers['etag']}"):
        again = await api.patch(HOST, json={"labels": {"a": "b"}}, headers={"If-Match": match})
        assert again.status_code == 200
        assert again.headers["etag"] == changed.headers["etag"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"labels": {"-": "x"}}, "labels.-.[key]"),
        ({"labels": {"a": 1}}, "labels.a"),
        ({"labels": {"a": "x" * 64}}, "labels.a"),
        ({"labels": {f"k{n}": "v" for n in range(33)}}, "labels"),
        ({"labels": "x"}, "labels"),
        ({"reserved_for": {"a": "\0"}}, "reserved_for.a"),
        ({"reserve": {"ram_bytes": -1}}, "reserve.ram_bytes"),
        ({"reserve": {"vram_bytes": 1 << 51}}, "reserve.vram_bytes"),
        ({"reserve": {"disk_bytes": 1}}, "reserve.disk_bytes"),
        ({"state": "ready"}, "state"),
    ],
)
async def test_bad_change_is_refused_and_changes_nothing(
    world: World, api: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    world.add_host()
    before = row(world).model_dump()
    answer = await api.patch(HOST, json={"labels": {"good": "one"}} | body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert row(world).model_dump() == before


async def test_what_is_not_there_is_neither_shown_nor_changed(world: World, api: httpx.AsyncClient) -> None:
    for host_id in ("nope", "a%00b", "%F0%9F%92%A5"):
        path = f"/api/v1/hosts/{host_id}"
        answers = [await api.get(path), await api.patch(path, json={}), await api.get(f"{path}/status")]
        assert [a.status_code for a in answers] == [404] * 3


keys = st.sampled_from(["a", "b", "c"])
values = st.none() | st.sampled_from(["x", "y"])


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(keys, values), max_size=4), st.dictionaries(keys, st.sampled_from(["own"])))
async def test_labels_are_always_the_given_ones_over_the_hosts_own(
    world: World, patches: list[dict[str, str | None]], own: dict[str, str]
) -> None:
    told = inventory().model_copy(update={"labels": own}).model_dump(mode="json")
    world.database.write(lambda s: s.merge(HostRow(id="h1", name="h", state="ready", credential_hash="x")))
    world.database.write(lambda s: _reset(s.get_one(HostRow, "h1"), told, own))
    given_labels: dict[str, str] = {}
    async with world.client() as client:
        for one in patches:
            seen = (await client.patch(HOST, json={"labels": one})).json()
            given_labels = {k: v for k, v in (given_labels | one).items() if v is not None}
            assert (seen["given_labels"], seen["labels"]) == (given_labels, own | given_labels)


def _reset(host: HostRow, told: dict[str, Any], own: dict[str, str]) -> None:
    host.inventory, host.labels, host.given_labels = told, own, {}


# -- what it said --------------------------------------------------------------------------------------------------


async def test_history_of_a_host_is_read_from_a_time_on(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()
    start = datetime(2026, 11, 20, 10, tzinfo=UTC)
    for number in range(5):
        status = said(cpu_utilization=number / 10).model_dump(mode="json")
        world.add(HostStatusRow(host_id="h1", at=start + timedelta(seconds=10 * number), status=status))

    async def read(**params: Any) -> list[float]:
        items = (await api.get(f"{HOST}/status", params=params)).json()["items"]
        return [item["status"]["cpu_utilization"] for item in items]

    assert await read() == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert await read(since="2026-11-20T10:00:20Z") == [0.3, 0.4]
    assert await read(since="2026-11-20T12:00:20+02:00", limit=1) == [0.4]


@pytest.mark.parametrize("since", ["yesterday", "2026-11-20T10:00:00", "0001-01-01T00:00:00+14:00", ""])
async def test_odd_time_is_refused(world: World, api: httpx.AsyncClient, since: str) -> None:
    world.add_host()
    answer = await api.get(f"{HOST}/status", params={"since": since})
    assert (answer.status_code, answer.json()["field"]) == (422, "since")


# -- trust ---------------------------------------------------------------------------------------------------------


async def test_revoked_host_is_believed_nothing_from_then_on(world: World, api: httpx.AsyncClient) -> None:
    key = new_key()
    world.add_host(public_key=public_key_of(key), boot_id="b")
    directory = HostDirectory(world.database)
    door = Authenticator(directory)
    headers = {AUTHORIZATION: f"Bearer {sign_pass(key, 'h1', 'b')}"}
    assert (await door.identify(headers)).host.id == "h1"
    version = world.database.read(registry.version)
    for _ in range(2):
        answer = await api.post(f"{HOST}/revoke")
        assert (answer.status_code, answer.json()["id"]) == (202, "h1")
    assert world.database.read(registry.version) == version + 1, "so that relays look again"
    await directory._refresh()
    with pytest.raises(Refused):
        await door.identify(headers)
    assert (await api.post("/api/v1/hosts/nope/revoke")).status_code == 404


# -- forgetting ----------------------------------------------------------------------------------------------------


async def test_only_a_lost_host_without_instances_is_forgotten(world: World, api: httpx.AsyncClient) -> None:
    world.add_host("h1")
    assert (await api.delete("/api/v1/hosts/h1")).status_code == 409
    world.add_host("h2", "2", state=HostState.LOST)
    world.add(claim("chat/1-a", 1, host_id="h2"))
    answer = await api.delete("/api/v1/hosts/h2")
    assert (answer.status_code, "chat/1-a" in answer.json()["detail"]) == (409, True)
    world.add_host("h3", "3", state=HostState.LOST)
    world.add(HostStatusRow(host_id="h3", at=datetime.now(UTC), status={}))
    assert (await api.delete("/api/v1/hosts/h3")).status_code == 204
    assert (await api.get("/api/v1/hosts/h3")).status_code == 404
    assert (await api.delete("/api/v1/hosts/nope")).status_code == 404
    left = world.database.read(lambda s: s.get(HostStatusRow, ("h3", datetime.now(UTC))))
    assert left is None
