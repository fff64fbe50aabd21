"""Health, version, metrics and the documentation."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from fleet.db.session import Database
from tests.unit.api.test_hosts import gpu_row, said
from tests.unit.api.test_instances import instance
from tests.unit.api.world import SPEC, World, the_app


async def test_health_needs_nothing_but_the_process(world: World, api: httpx.AsyncClient) -> None:
    world.workflows.down = True
    assert (await api.get("/healthz")).json() == {"status": "ok"}
    assert set((await api.get("/version")).json()) == {"name", "version"}


async def test_readiness_says_what_is_missing(
    world: World, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await api.get("/readyz")).json() == {"status": "ok", "database": True, "temporal": True}
    world.workflows.down = True
    answer = await api.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")

    def broken(_self: Database, _query: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("disk I/O error"))

    monkeypatch.setattr(Database, "read", broken)
    answer = await api.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "down")


async def test_metrics_count_what_there_is_by_state(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()
    world.add(instance("chat/1-a"))
    world.add(instance("chat/2-b", state="starting"))
    await api.post("/api/v1/deployments", json={"name": "chat", "spec": SPEC})
    answer = await api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'holdfast_instances{state="ready"} 1.0' in answer.text
    assert 'holdfast_instances{state="starting"} 1.0' in answer.text
    assert 'holdfast_hosts{state="ready"} 1.0' in answer.text
    assert "holdfast_deployments{state=" in answer.text


async def test_metrics_show_hosts_and_their_gpus(world: World, api: httpx.AsyncClient) -> None:
    now = datetime.now(UTC)
    status = said(cpu_utilization=0.5).model_dump(mode="json")
    more: dict[str, Any] = {"status": status, "status_at": now - timedelta(seconds=30), "tunnel_url": "http://r"}
    world.add_host("h1", certificate_expires_at=now + timedelta(days=1), **more)
    world.add_host("h2", "2")
    world.add(gpu_row(allocatable=100, used=40, foreign_bytes=7))
    world.add(gpu_row("h2", uuid="GPU-2", cordoned=True))
    world.add(gpu_row("h2", uuid="GPU-3", healthy=False, cordoned=True))
    seen = {}
    for line in (await api.get("/metrics")).text.splitlines():
        name, _, value = line.rpartition(" ")
        seen[name] = value
    assert [seen[f'holdfast_gpus{{state="{s}"}}'] for s in ("ready", "cordoned", "failed")] == ["1.0", "1.0", "1.0"]
    memory = 'holdfast_gpu_memory_bytes{gpu="GPU-1",host="h1",part="%s"}'
    assert [seen[memory % part] for part in ("allocatable", "claimed", "foreign")] == ["100.0", "40.0", "7.0"]
    assert seen['holdfast_gpu_healthy{gpu="GPU-3",host="h2"}'] == "0.0"
    assert seen['holdfast_gpu_temperature_celsius{gpu="GPU-1",host="h1"}'] == "60.0"
    assert 30 <= float(seen['holdfast_host_status_age_seconds{host="h1"}']) < 90
    assert 'holdfast_host_status_age_seconds{host="h2"}' not in seen, "it has said nothing yet"
    assert 86_000 < float(seen['holdfast_host_certificate_expires_seconds{host="h1"}']) <= 86_400
    assert seen['holdfast_host_tunnel_connected{host="h1"}'] == "1.0"


async def test_documentation_is_read_without_the_internet(api: httpx.AsyncClient) -> None:
    page = (await api.get("/docs")).text
    assert "/openapi.json" in page
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(links) >= 2
    for link in links:
        assert not re.match(r"(?:https?:)?//", link), link
        if not link.startswith("data:"):
            answer = await api.get(link)
            assert (answer.status_code, len(answer.content) > 1000) == (200, True), link


async def test_description_of_the_api_is_whole(api: httpx.AsyncClient) -> None:
    schema = (await api.get("/openapi.json")).json()
    assert schema["openapi"].startswith("3.1")
    assert schema == the_app().openapi()
    names = set(schema["components"]["schemas"])
    used = set(re.findall(r"'#/components/schemas/([^']+)'", str(schema)))
    assert used <= names
    operations = [o for path in schema["paths"].values() for o in path.values()]
    assert len({o["operationId"] for o in operations}) == len(operations)
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            assert operation["summary"]
            assert any(code.startswith("2") for code in operation["responses"])
            named = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert named == set(re.findall(r"\{(.*?)\}", path))
