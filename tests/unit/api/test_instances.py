"""Instances, and the logs that their hosts keep."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from fleet.access.tickets import Scope, TicketReader
from fleet.db.tables import InstanceRow
from fleet.deployments import Deployment
from fleet.serving import listen, serving
from fleet.specs import DeploymentSpec, ModelSource
from tests.doors import server_tls
from tests.unit.api.world import World, the_authority

URL = "/api/v1/instances"


def instance(name: str = "chat/1-abc", **changes: Any) -> InstanceRow:
    fields: dict[str, Any] = {
        "id": name,
        "deployment": name.split("/", maxsplit=1)[0],
        "revision": 1,
        "launch": 1,
        "slot": 1,
        "state": "ready",
        "host_id": "h1",
        "projection": 1,
    }
    return InstanceRow(**fields | changes)


class FakeHost:
    """A host's HTTP server that answers every log with ``answer``."""

    def __init__(self) -> None:
        self.answer: Response = PlainTextResponse("line\n")
        self.asked: list[Request] = []
        self.port = 0

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._log)])

    async def _log(self, request: Request) -> Response:
        self.asked.append(request)
        return self.answer


@pytest.fixture
async def host(world: World) -> AsyncIterator[FakeHost]:
    made, listening = FakeHost(), listen("127.0.0.1", 0)
    made.port = listening.getsockname()[1]
    world.add_host(http_port=made.port)
    world.add(instance())
    async with serving(made.app(), listening, lifespan="off", tls=server_tls("h1", the_authority())):
        yield made


async def test_instances_are_listed_and_read(world: World, api: httpx.AsyncClient) -> None:
    for name in ("chat/2-b", "chat/1-a", "other/1-c"):
        world.add(instance(name, gpu_uuids=["GPU-1"], endpoint="http://127.0.0.1:1", pid=7))
    assert [i["id"] for i in (await api.get(URL)).json()["items"]] == ["chat/1-a", "chat/2-b", "other/1-c"]
    chosen = (await api.get(URL, params={"deployment": "chat"})).json()["items"]
    assert [i["id"] for i in chosen] == ["chat/1-a", "chat/2-b"]
    one = (await api.get(f"{URL}/chat/1-a")).json()
    assert (one["gpu_uuids"], one["pid"], one["state"]) == (["GPU-1"], 7, "ready")
    assert one["workflow_url"].endswith("/workflows/instance%2Fchat%2F1-a")


@pytest.mark.parametrize("name", ["nope", "chat/9-x", "a%00b", "chat/1-a/logs"])
async def test_instance_that_does_not_exist_is_not_found(api: httpx.AsyncClient, name: str) -> None:
    for path in (f"{URL}/{name}", f"{URL}/{name}/logs"):
        assert (await api.get(path)).status_code == 404


async def test_log_comes_from_the_host_with_a_ticket_for_it(host: FakeHost, api: httpx.AsyncClient) -> None:
    answer = await api.get(f"{URL}/chat/1-abc/logs", params={"tail": 5, "attempt": 2})
    assert (answer.status_code, answer.text) == (200, "line\n")
    [asked] = host.asked
    assert asked.url.path == "/engines/chat/1-abc/log"
    assert dict(asked.query_params) == {"tail": "5", "follow": "false", "attempt": "2"}
    ticket = asked.headers["authorization"].removeprefix("Bearer ")
    said = TicketReader([the_authority().tickets.public_key], "h1").read(ticket)
    assert (said.scope, said.instance_id) == (Scope.HOST, "chat/1-abc")
    assert "hf-key-admin" not in ticket


async def test_followed_log_is_passed_on_as_it_comes(host: FakeHost, api: httpx.AsyncClient) -> None:
    async def lines() -> AsyncIterator[str]:
        for number in range(3):
            yield f"line {number}\n"

    host.answer = StreamingResponse(lines())
    answer = await api.get(f"{URL}/chat/1-abc/logs", params={"follow": "true"})
    assert answer.text == "line 0\nline 1\nline 2\n"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (JSONResponse({"detail": "chat/1-abc has no attempt 9 on this host"}, 404), 404),
        (PlainTextResponse("Not Found", 404), 503),
        (JSONResponse(["x"], 404), 503),
        (JSONResponse({}, 404), 503),
        (JSONResponse({"detail": "no valid ticket"}, 401), 503),
        (PlainTextResponse("", 500), 503),
    ],
)
async def test_host_that_has_no_answer_is_a_problem_with_a_remedy(
    host: FakeHost, api: httpx.AsyncClient, answer: Response, status: int
) -> None:
    host.answer = answer
    got = await api.get(f"{URL}/chat/1-abc/logs")
    assert got.status_code == status, got.text
    assert got.json()["hint"]


async def test_metrics_of_an_engine_come_from_its_host(host: FakeHost, api: httpx.AsyncClient) -> None:
    host.answer = PlainTextResponse("llamacpp:requests_processing 0\n")
    answer = await api.get(f"{URL}/chat/1-abc/metrics")
    assert (answer.status_code, answer.text) == (200, "llamacpp:requests_processing 0\n")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert host.asked[0].url.path == "/engines/chat/1-abc/metrics"


@pytest.mark.parametrize(("at_host", "status"), [(404, 404), (401, 503), (500, 503)])
async def test_engine_without_metrics_is_a_problem_with_a_remedy(
    host: FakeHost, api: httpx.AsyncClient, at_host: int, status: int
) -> None:
    host.answer = JSONResponse({"detail": "no"}, at_host)
    answer = await api.get(f"{URL}/chat/1-abc/metrics")
    assert (answer.status_code, bool(answer.json()["hint"])) == (status, True)


@pytest.mark.parametrize("address", ["127.0.0.1", "not a host", "["])
async def test_host_that_cannot_be_reached_is_a_503(world: World, api: httpx.AsyncClient, address: str) -> None:
    world.add_host(address=address)
    world.add(instance())
    for what in ("logs", "metrics"):
        answer = await api.get(f"{URL}/chat/1-abc/{what}")
        assert (answer.status_code, "does not answer" in answer.json()["detail"]) == (503, True)


async def test_instance_without_a_host_has_no_log(world: World, api: httpx.AsyncClient) -> None:
    world.add(instance("chat/1-a", host_id=None, state="pending", message="no room"))
    world.add(instance("chat/2-b", host_id="gone"))
    waiting = await api.get(f"{URL}/chat/1-a/logs")
    assert (waiting.status_code, "no room" in waiting.json()["detail"]) == (404, True)
    assert (await api.get(f"{URL}/chat/2-b/logs")).status_code == 404


@pytest.mark.parametrize(
    ("params", "field"),
    [({"tail": -1}, "tail"), ({"tail": 10**9}, "tail"), ({"attempt": 0}, "attempt"), ({"follow": "?"}, "follow")],
)
async def test_bad_question_for_a_log_is_refused(
    world: World, api: httpx.AsyncClient, params: dict[str, Any], field: str
) -> None:
    world.add(instance())
    answer = await api.get(f"{URL}/chat/1-abc/logs", params=params)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


# -- approval ------------------------------------------------------------------------------------------------------


async def test_failed_instance_is_tried_again_when_a_person_says_so(world: World, api: httpx.AsyncClient) -> None:
    world.add(instance(state="failed"))
    answer = await api.post(f"{URL}/chat/1-abc/approve-retry")
    assert (answer.status_code, answer.json()) == (202, {"instances": ["chat/1-abc"]})
    assert world.workflows.approved == ["chat/1-abc"]


@pytest.mark.parametrize("state", ["ready", "recovering", "pending"])
async def test_instance_that_is_not_failed_needs_no_approval(world: World, api: httpx.AsyncClient, state: str) -> None:
    world.add(instance(state=state))
    answer = await api.post(f"{URL}/chat/1-abc/approve-retry")
    assert (answer.status_code, state in answer.json()["detail"]) == (409, True)
    assert answer.json()["hint"]
    assert world.workflows.approved == []


async def test_instance_that_does_not_exist_cannot_be_approved(api: httpx.AsyncClient) -> None:
    assert (await api.post(f"{URL}/chat/9-z/approve-retry")).status_code == 404
    assert (await api.post(f"{URL}/a%00b/approve-retry")).status_code == 404


async def test_all_failed_instances_of_a_deployment_are_approved_together(world: World, api: httpx.AsyncClient) -> None:
    await deployed(world)
    for number in range(45):
        world.add(instance(f"chat/{number:02}-x", state="failed" if number else "ready"))
    world.add(instance("chatty/1-x", state="failed"))
    world.workflows.not_failed.add("chat/07-x")
    answer = await api.post("/api/v1/deployments/chat/approve-retry")
    expected = [f"chat/{number:02}-x" for number in range(1, 45) if number != 7]
    assert (answer.status_code, answer.json()) == (202, {"instances": expected})
    assert sorted(world.workflows.approved) == expected


async def test_deployment_without_a_failed_instance_needs_no_approval(world: World, api: httpx.AsyncClient) -> None:
    await deployed(world)
    world.add(instance())
    world.add(instance("chat/2-x", state="failed"))
    world.workflows.not_failed.add("chat/2-x")
    answer = await api.post("/api/v1/deployments/chat/approve-retry")
    assert (answer.status_code, "holdfast instances" in answer.json()["hint"]) == (409, True)
    for name in ("other", "a%00b"):
        assert (await api.post(f"/api/v1/deployments/{name}/approve-retry")).status_code == 404


async def test_approval_waits_for_temporal(world: World, api: httpx.AsyncClient) -> None:
    await deployed(world)
    world.add(instance(state="failed"))
    world.workflows.down = True
    for path in (f"{URL}/chat/1-abc", "/api/v1/deployments/chat"):
        assert (await api.post(f"{path}/approve-retry")).status_code == 503


async def deployed(world: World) -> None:
    spec = DeploymentSpec(model=ModelSource(path="m.gguf"))
    await world.workflows.create_deployment(
        Deployment(name="chat", spec=spec, engine="llama_cpp", engine_version="1", created_at=datetime.now(UTC))
    )
