"""GPUs as people see them, and what they may ask of them."""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from fleet.db.tables import GpuFaultRow, GpuRow
from tests.unit.api.world import World

URL = "/api/v1/gpus"


@pytest.fixture(autouse=True)
def fleet(world: World) -> None:
    """Two hosts with a card each."""
    for number in (1, 2):
        world.add_host(f"h{number}", f"hf-host-{number}")
        row = GpuRow(
            uuid=f"GPU-{number}",
            host_id=f"h{number}",
            index=0,
            kind="nvidia",
            name="H200",
            memory_bytes=110,
            allocatable=100,
            used=30,
        )
        world.add(row)


async def test_gpus_are_listed_by_page(api: httpx.AsyncClient) -> None:
    first = (await api.get(URL, params={"limit": 1})).json()
    second = (await api.get(URL, params={"limit": 1, "cursor": first["next_cursor"]})).json()
    assert [g["uuid"] for g in first["items"] + second["items"]] == ["GPU-1", "GPU-2"]
    assert second["next_cursor"] is None


async def test_gpu_is_read_with_what_engines_said_of_it(world: World, api: httpx.AsyncClient) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    world.add(GpuFaultRow(gpu_uuid="GPU-1", instance_id="m/1-a", fence=3, reason="Xid 79", at=at))
    gpu = (await api.get(f"{URL}/GPU-1")).json()
    assert (gpu["host_id"], gpu["allocatable_bytes"], gpu["used_bytes"], gpu["cordoned"]) == ("h1", 100, 30, False)
    assert gpu["faults"] == [{"instance_id": "m/1-a", "fence": 3, "reason": "Xid 79", "at": "2026-01-01T00:00:00Z"}]
    assert (await api.get(f"{URL}/GPU-2")).json()["faults"] == []


async def test_cordon_stays_until_it_is_lifted_and_faults_go_with_it(world: World, api: httpx.AsyncClient) -> None:
    world.add(GpuFaultRow(gpu_uuid="GPU-1", instance_id="m/1-a", fence=3, reason="Xid 79"))
    for _ in range(2):
        closed = await api.post(f"{URL}/GPU-1/cordon", json={"reason": "to be replaced"})
        assert (closed.status_code, closed.json()["cordoned"]) == (200, True)
    assert (await api.get(f"{URL}/GPU-1")).json()["cordon_reason"] == "to be replaced"
    assert (await api.get(f"{URL}/GPU-2")).json()["cordoned"] is False
    for _ in range(2):
        opened = (await api.post(f"{URL}/GPU-1/uncordon")).json()
        assert (opened["cordoned"], opened["cordon_reason"], opened["faults"]) == (False, "", [])


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": "x" * 501}, {"reason": "a\0b"}, {"reason": 1}])
async def test_cordon_needs_a_reason(api: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await api.post(f"{URL}/GPU-1/cordon", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, "reason")
    assert (await api.get(f"{URL}/GPU-1")).json()["cordoned"] is False


@pytest.mark.parametrize("uuid", ["GPU-9", "%00", "a%00b"])
async def test_gpu_that_is_not_there_is_not_found(api: httpx.AsyncClient, uuid: str) -> None:
    for answer in (
        await api.get(f"{URL}/{uuid}"),
        await api.post(f"{URL}/{uuid}/cordon", json={"reason": "x"}),
        await api.post(f"{URL}/{uuid}/uncordon"),
    ):
        assert (answer.status_code, "lists" in answer.json()["hint"]) == (404, True)
