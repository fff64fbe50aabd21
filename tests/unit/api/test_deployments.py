"""Deployments: made, changed and deleted, by people and by programs that ask twice."""

from typing import Any

import httpx
import pytest

from fleet.access.sealing import MASK
from fleet.db.tables import DeploymentRow
from fleet.host_client import FileFacts
from tests.unit.api.world import SPEC, World, inventory

URL = "/api/v1/deployments"


async def make(api: httpx.AsyncClient, name: str = "chat", key: str = "", **spec: Any) -> httpx.Response:
    headers = {"idempotency-key": key} if key else {}
    return await api.post(URL, json={"name": name, "spec": {**SPEC, **spec}}, headers=headers)


async def patch(api: httpx.AsyncClient, body: Any, etag: str | None = None, name: str = "chat") -> httpx.Response:
    headers = {} if etag is None else {"if-match": etag}
    return await api.patch(f"{URL}/{name}", json=body, headers=headers)


async def test_deployment_is_made_and_can_be_read(world: World, api: httpx.AsyncClient) -> None:
    answer = await make(api, replicas=2)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"{URL}/chat"
    assert answer.headers["etag"] == '"1"'
    shown = answer.json()
    assert (shown["name"], shown["spec"]["replicas"], shown["engine"]) == ("chat", 2, "llama_cpp")
    assert (shown["engine_version"], shown["status"]["desired_replicas"]) == ("0.1.2", 2)
    assert shown["status"]["workflow_url"].endswith("/workflows/deployment%2Fchat")
    read = await api.get(answer.headers["location"])
    assert (read.json(), read.headers["etag"]) == (shown, '"1"')
    assert [d["name"] for d in (await api.get(URL)).json()["items"]] == ["chat"]


async def test_answer_comes_although_no_controller_runs(world: World, api: httpx.AsyncClient) -> None:
    world.workflows.idle = True
    answer = await make(api)
    assert answer.status_code == 201
    assert "waits for a controller" in answer.json()["status"]["message"]


async def test_name_that_is_taken_is_a_conflict_and_changes_nothing(world: World, api: httpx.AsyncClient) -> None:
    before = (await make(api, replicas=1)).json()
    answer = await make(api, replicas=5)
    assert (answer.status_code, answer.json()["field"]) == (409, "name")
    assert (await api.get(f"{URL}/chat")).json() == before


async def test_same_request_sent_again_is_the_same_deployment(api: httpx.AsyncClient) -> None:
    first, second = await make(api, key="abc"), await make(api, key="abc")
    assert second.status_code == 201
    assert second.json() == first.json()
    assert (await make(api, key="another")).status_code == 409
    assert (await make(api)).status_code == 409


@pytest.mark.parametrize("key", ["", "x" * 201])
async def test_idempotency_key_has_a_sensible_length(api: httpx.AsyncClient, key: str) -> None:
    body = {"name": "chat", "spec": SPEC}
    answer = await api.post(URL, json=body, headers={"idempotency-key": key})
    assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")


# -- checks that need the fleet ------------------------------------------------------------------------------------

MISSING = FileFacts(path="/m", exists=False)
FOLDER = FileFacts(path="/m", exists=True)
TEXT = FileFacts(
    path="/m", exists=True, readable=True, size_bytes=9, model_error="/m is not a GGUF file", model_hint="name another"
)


@pytest.mark.parametrize(
    ("facts", "word"), [(MISSING, "no host has the file"), (FOLDER, "not a model"), (TEXT, "not a GGUF")]
)
async def test_model_that_no_host_can_run_is_refused(
    world: World, api: httpx.AsyncClient, facts: FileFacts, word: str
) -> None:
    world.add_host()
    world.files.facts = {"h1": facts}
    answer = await make(api)
    said = answer.json()
    assert (answer.status_code, said["field"], word in said["detail"]) == (422, "spec.model.path", True), said
    assert "h1-name" in said["detail"]
    assert said["hint"]
    assert world.workflows.deployments == {}


async def test_reason_and_remedy_are_those_of_the_reader(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()
    world.files.facts = {"h1": TEXT}
    said = (await make(api)).json()
    assert (said["detail"], said["hint"]) == ("/m is not a GGUF file (asked: h1-name)", "name another")


async def test_one_host_that_can_read_the_model_is_enough(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()
    world.add_host("h2", "2")
    world.files.facts = {"h1": TEXT}
    assert (await make(api)).status_code == 201


async def test_one_host_with_the_model_is_enough(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()
    world.add_host("h2", "2")
    world.files.facts = {"h1": MISSING}
    assert (await make(api)).status_code == 201


async def test_host_that_does_not_answer_gets_the_benefit_of_the_doubt(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()
    world.add_host("h2", "2")
    world.files.facts = {"h1": MISSING, "h2": None}
    assert (await make(api)).status_code == 201


async def test_version_is_the_default_one_or_what_the_hosts_have(world: World, api: httpx.AsyncClient) -> None:
    world.add_host(inventory=inventory(version="b7-abc").model_dump(mode="json"))
    assert (await make(api, "any")).json()["engine_version"] == ""
    assert (await make(api, "own", engine_version="b7-abc")).json()["engine_version"] == "b7-abc"
    assert (await make(api, "pypi", engine_version="0.1.2")).json()["engine_version"] == "0.1.2"
    answer = await make(api, "other", engine_version="9")
    assert (answer.status_code, answer.json()["field"]) == (422, "spec.engine_version")
    assert answer.json()["hint"].endswith("0.1.2, b7-abc")


async def test_argument_that_is_ours_is_refused_by_its_place(api: httpx.AsyncClient) -> None:
    answer = await make(api, engine_args=["--jinja", "--port=1"])
    assert (answer.status_code, answer.json()["field"]) == (422, "spec.engine_args.1")


# -- changes -------------------------------------------------------------------------------------------------------


async def test_what_a_change_does_not_name_stays(world: World, api: httpx.AsyncClient) -> None:
    await make(api, replicas=1, concurrency=8, placement={"host_selector": {"zone": "a"}})
    answer = await patch(api, {"spec": {"replicas": 3, "placement": {"gpus_per_replica": 0}}, "labels": {"team": "ml"}})
    assert (answer.status_code, answer.headers["etag"]) == (200, '"2"')
    spec = answer.json()["spec"]
    assert (spec["replicas"], spec["concurrency"]) == (3, 8)
    assert (spec["placement"]["host_selector"], spec["placement"]["gpus_per_replica"]) == ({"zone": "a"}, 0)
    assert answer.json()["labels"] == {"team": "ml"}


async def test_null_takes_away_and_a_list_replaces_the_whole_list(api: httpx.AsyncClient) -> None:
    await make(api, concurrency=8, engine_args=["--jinja", "--temp", "1"])
    spec = (await patch(api, {"spec": {"concurrency": None, "engine_args": ["--jinja"]}})).json()["spec"]
    assert (spec["concurrency"], spec["engine_args"]) == (None, ["--jinja"])


async def test_change_that_changes_nothing_is_no_new_generation(api: httpx.AsyncClient) -> None:
    await make(api, replicas=2, env={"A": "value"})
    for body in ({}, {"spec": {"replicas": 2}}, {"spec": {"env": {"A": "value"}}}, {"spec": {"env": {"A": MASK}}}):
        assert (await patch(api, body)).headers["etag"] == '"1"', body


async def test_secrets_are_sealed_and_never_shown(world: World, api: httpx.AsyncClient) -> None:
    answer = await make(api, env={"TOKEN": "s3cret-value"})
    row = world.database.read(lambda s: s.get_one(DeploymentRow, "chat"))
    assert "s3cret" not in answer.text + str(row.model_dump())
    assert answer.json()["spec"]["env"] == {"TOKEN": MASK}
    assert world.master.open(row.spec["env"]["TOKEN"]) == "s3cret-value"
    await patch(api, {"spec": {"env": {"MORE": "another-one"}}})
    kept = world.workflows.deployments["chat"].spec.env
    assert {name: world.master.open(value) for name, value in kept.items()} == {
        "TOKEN": "s3cret-value",
        "MORE": "another-one",
    }
    await patch(api, {"spec": {"env": {"TOKEN": None}}})
    assert set(world.workflows.deployments["chat"].spec.env) == {"MORE"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "other"}, "name"),
        ({"status": {}}, "status"),
        ({"spec": None}, "spec"),
        ({"spec": {"model": None}}, "spec.model"),
        ({"spec": {"replicas": -1}}, "spec.replicas"),
        ({"spec": {"replica": 1}}, "spec.replica"),
        ({"spec": {"env": {"NEW": MASK}}}, "spec.env.NEW"),
        ({"spec": {"engine_args": ["--port", "1"]}}, "spec.engine_args.0"),
        ({"labels": []}, "labels"),
        ([], "body"),
        ("x", "body"),
    ],
)
async def test_bad_change_names_the_field_and_changes_nothing(api: httpx.AsyncClient, body: Any, field: str) -> None:
    before = (await make(api)).json()
    answer = await patch(api, body)
    assert (answer.status_code, answer.json().get("field")) == (422, field), answer.text
    assert (await api.get(f"{URL}/chat")).json() == before


@pytest.mark.parametrize("etag", ['"1"', 'W/"1"', "1", "*", " * "])
async def test_change_of_what_was_read_is_taken(api: httpx.AsyncClient, etag: str) -> None:
    await make(api)
    assert (await patch(api, {"spec": {"replicas": 2}}, etag)).status_code == 200


async def test_change_of_what_was_changed_meanwhile_is_refused(api: httpx.AsyncClient) -> None:
    await make(api)
    await patch(api, {"spec": {"replicas": 2}}, '"1"')
    answer = await patch(api, {"spec": {"replicas": 3}}, '"1"')
    assert answer.status_code == 412
    assert (await api.get(f"{URL}/chat")).json()["spec"]["replicas"] == 2


@pytest.mark.parametrize("etag", ["", "x", '"x"', "-1", "1.5", "9" * 50, "²"])
async def test_etag_that_is_none_of_ours_is_refused(api: httpx.AsyncClient, etag: str) -> None:
    await make(api)
    headers = [(b"if-match", etag.encode("latin-1"))]
    answer = await api.patch(f"{URL}/chat", json={}, headers=headers)
    assert (answer.status_code, answer.json()["field"]) == (422, "If-Match")


async def test_scaling_works_while_the_hosts_with_the_model_are_away(world: World, api: httpx.AsyncClient) -> None:
    await make(api, engine_version="0.1.2")
    world.add_host()
    world.files.facts = {"h1": MISSING}
    assert (await patch(api, {"spec": {"replicas": 2}})).status_code == 200
    assert (await patch(api, {"spec": {"model": {"path": "new.gguf"}}})).status_code == 422


async def test_stop_start_and_restart(world: World, api: httpx.AsyncClient) -> None:
    await make(api, replicas=2)
    stopped = await api.post(f"{URL}/chat/stop")
    assert (stopped.status_code, stopped.json()["status"]["desired_replicas"]) == (202, 0)
    started = await api.post(f"{URL}/chat/start")
    assert (started.json()["status"]["desired_replicas"], started.json()["spec"]["replicas"]) == (2, 2)
    launch = world.workflows.deployments["chat"].launch
    assert (await api.post(f"{URL}/chat/restart")).status_code == 202
    assert world.workflows.deployments["chat"].launch == launch + 1


async def test_deployment_is_deleted_and_may_be_deleted_twice(api: httpx.AsyncClient) -> None:
    await make(api)
    for _ in range(2):
        answer = await api.delete(f"{URL}/chat")
        assert (answer.status_code, answer.json()["status"]["phase"]) == (202, "deleting")


@pytest.mark.parametrize("name", ["nope", "a%00b", "%F0%9F%92%A5", "UPPER"])
async def test_what_does_not_exist_is_not_found(api: httpx.AsyncClient, name: str) -> None:
    calls = [api.get(f"{URL}/{name}"), api.patch(f"{URL}/{name}", json={}), api.delete(f"{URL}/{name}")]
    calls += [api.post(f"{URL}/{name}/{verb}") for verb in ("stop", "start", "restart")]
    for call in calls:
        answer = await call
        assert (answer.status_code, bool(answer.json()["hint"])) == (404, True)


async def test_lists_are_paged_and_chosen_by_label(api: httpx.AsyncClient) -> None:
    for name, team in (("a", "x"), ("b", "y"), ("c", "x")):
        await api.post(URL, json={"name": name, "labels": {"team": team}, "spec": SPEC})
    first = (await api.get(URL, params={"limit": 2})).json()
    assert ([d["name"] for d in first["items"]], first["next_cursor"]) == (["a", "b"], "b")
    second = (await api.get(URL, params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert ([d["name"] for d in second["items"]], second["next_cursor"]) == (["c"], None)
    chosen = (await api.get(URL, params=[("label", "team=x")])).json()
    assert [d["name"] for d in chosen["items"]] == ["a", "c"]


@pytest.mark.parametrize(
    ("params", "field"), [({"limit": 0}, "limit"), ({"limit": 501}, "limit"), ({"cursor": "x" * 201}, "cursor")]
)
async def test_bad_page_is_refused(api: httpx.AsyncClient, params: dict[str, Any], field: str) -> None:
    answer = await api.get(URL, params=params)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_while_temporal_is_away_all_can_be_read_and_nothing_changes(world: World, api: httpx.AsyncClient) -> None:
    await make(api)
    world.workflows.down = True
    for call in (make(api, "new"), patch(api, {"spec": {"replicas": 2}}), api.delete(f"{URL}/chat")):
        answer = await call
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert (await api.get(f"{URL}/chat")).json()["spec"]["replicas"] == 1
