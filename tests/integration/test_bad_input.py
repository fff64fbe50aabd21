"""Bad input gets a clear 4xx that names the field and the remedy, and changes nothing."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stack import Stack, eventually

pytestmark = pytest.mark.slow

MODEL = "$MODEL"

BAD_SPECS: list[tuple[str, Any, int, str]] = [
    ("unknown field", {"name": "x", "spec": {"model": {"path": MODEL}, "replica": 2}}, 422, "spec.replica"),
    ("unknown field on top", {"name": "x", "spec": {"model": {"path": MODEL}}, "nmae": 1}, 422, "nmae"),
    ("no model", {"name": "x", "spec": {}}, 422, "spec.model"),
    ("no name", {"spec": {"model": {"path": MODEL}}}, 422, "name"),
    ("bad name", {"name": "Über uns", "spec": {"model": {"path": MODEL}}}, 422, "name"),
    ("name with a slash", {"name": "a/b", "spec": {"model": {"path": MODEL}}}, 422, "name"),
    ("replicas -1", {"name": "x", "spec": {"model": {"path": MODEL}, "replicas": -1}}, 422, "spec.replicas"),
    ("replicas 1e9", {"name": "x", "spec": {"model": {"path": MODEL}, "replicas": 10**9}}, 422, "spec.replicas"),
    (
        "replicas of no type",
        {"name": "x", "spec": {"model": {"path": MODEL}, "replicas": "many"}},
        422,
        "spec.replicas",
    ),
    ("missing file", {"name": "x", "spec": {"model": {"path": "/no/such.gguf"}}}, 422, "spec.model.path"),
    ("a folder", {"name": "x", "spec": {"model": {"path": "/tmp"}}}, 422, "spec.model.path"),
    ("not a model", {"name": "x", "spec": {"model": {"path": "/etc/passwd"}}}, 422, "spec.model.path"),
    ("path with ..", {"name": "x", "spec": {"model": {"path": "../x.gguf"}}}, 422, "spec.model.path"),
    ("path with NUL", {"name": "x", "spec": {"model": {"path": "a\x00b"}}}, 422, "spec.model.path"),
    ("unknown engine", {"name": "x", "spec": {"model": {"path": MODEL}, "engine": "warp"}}, 422, "spec.engine"),
    (
        "unknown version",
        {"name": "x", "spec": {"model": {"path": MODEL}, "engine_version": "9.9"}},
        422,
        "spec.engine_version",
    ),
    (
        "a flag of ours",
        {"name": "x", "spec": {"model": {"path": MODEL}, "engine_args": ["--port", "1"]}},
        422,
        "spec.engine_args.0",
    ),
    ("bad variable", {"name": "x", "spec": {"model": {"path": MODEL}, "env": {"A=B": "c"}}}, 422, "spec.env"),
    ("spec of no type", {"name": "x", "spec": []}, 422, "spec"),
    ("a list", [1, 2], 422, "body"),
    ("a string", "x", 422, "body"),
    ("null", None, 422, "body"),
]


@pytest.mark.parametrize(("body", "status", "field"), [b[1:] for b in BAD_SPECS], ids=[b[0] for b in BAD_SPECS])
def test_a_bad_deployment_is_refused_with_field_and_remedy(
    stack: Stack, small_model: Path, body: Any, status: int, field: str
) -> None:
    filled = _fill(body, str(small_model))
    answer = stack.http.post("/deployments", json=filled)
    problem = answer.json()
    assert answer.status_code == status, problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["field"].startswith(field)
    assert problem["hint"]
    assert problem["detail"]
    assert stack.ok(stack.http.get("/deployments"))["items"] == []


def test_a_duplicate_name_is_refused_and_changes_nothing(stack: Stack, small_model: Path) -> None:
    stack.deploy("taken", str(small_model), replicas=0)
    again = stack.http.post("/deployments", json={"name": "taken", "spec": {"model": {"path": str(small_model)}}})
    assert (again.status_code, again.json()["field"]) == (409, "name")
    assert stack.deployment("taken")["spec"]["replicas"] == 0
    assert stack.deployment("taken")["status"]["generation"] == 1


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"spec": {"replicas": -1}}, "spec.replicas"),
        ({"spec": {"replicas": 10**9}}, "spec.replicas"),
        ({"spec": {"replcias": 1}}, "spec.replcias"),
        ({"spec": {"model": None}}, "spec.model"),
        ({"spec": None}, "spec"),
        ({"name": "other"}, "name"),
        ({"status": {}}, "status"),
        ({"spec": {"env": {"NEW": "********"}}}, "spec.env.NEW"),
        ({"labels": {"a": 1}}, "labels.a"),
    ],
)
def test_a_bad_change_is_refused_and_changes_nothing(
    stack: Stack, small_model: Path, patch: dict[str, Any], field: str
) -> None:
    stack.deploy("still", str(small_model), replicas=0)
    before = stack.deployment("still")
    answer = stack.http.patch("/deployments/still", json=patch)
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"].startswith(field)
    assert stack.deployment("still") == before


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"", 422),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"name": ' + b"9" * 100_000 + b"}", 400),
        (b'{"name": NaN}', 422),
        (b"x" * (50 << 20), 413),
    ],
    ids=["cut off", "empty", "not UTF-8", "deep", "huge number", "NaN", "50 MB"],
)
@pytest.mark.parametrize("path", ["/api/v1/deployments", "/v1/chat/completions"])
def test_a_body_that_is_no_json_object_is_refused(stack: Stack, path: str, content: bytes, status: int) -> None:
    headers = {"authorization": f"Bearer {stack.key}", "content-type": "application/json"}
    try:
        answer = httpx.post(f"{stack.url}{path}", content=content, headers=headers, timeout=30)
    except httpx.WriteError:
        assert status == 413  # refused, and the connection closed, before everything was sent
        return
    allowed = (status,) if path.startswith("/api") else (400, 404, 413, 422)
    assert answer.status_code in allowed, answer.text[:500]
    assert len(answer.content) < 4000


@pytest.mark.parametrize("key", [None, "wrong", "Ünïcode".encode().decode("latin-1")])
def test_a_wrong_key_is_refused(stack: Stack, key: str | None) -> None:
    headers = {} if key is None else {"authorization": f"Bearer {key}".encode("latin-1")}
    for method, path in (
        ("GET", "/api/v1/deployments"),
        ("POST", "/api/v1/deployments"),
        ("GET", "/api/v1/hosts"),
        ("GET", "/metrics"),
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
    ):
        answer = httpx.request(method, f"{stack.url}{path}", headers=headers, json={} if method == "POST" else None)
        assert answer.status_code == 401, (method, path, answer.text)
    for path in ("/healthz", "/readyz", "/version"):
        assert httpx.get(f"{stack.url}{path}").status_code == 200


def test_an_inference_key_serves_but_does_not_manage(stack: Stack) -> None:
    made = stack.ok(stack.http.post("/api-keys", json={"name": "app", "scope": "inference"}))
    headers = {"authorization": f"Bearer {made['key']}"}

    def models() -> int:
        return httpx.get(f"{stack.url}/v1/models", headers=headers).status_code

    eventually(lambda: models() == 200, within=1.5, what="the gateway knows the key")
    assert httpx.get(f"{stack.url}/api/v1/deployments", headers=headers).status_code == 403
    stack.ok(stack.http.delete(f"/api-keys/{made['id']}"))
    eventually(lambda: models() == 401, within=1.5, what="the gateway refuses the key")


def test_an_unknown_model_is_a_404_in_the_shape_of_openai(stack: Stack) -> None:
    answer = httpx.post(
        f"{stack.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {stack.key}"},
        json={"model": "nothing", "messages": []},
    )
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def _fill(body: Any, model: str) -> Any:
    if isinstance(body, dict):
        return {k: _fill(v, model) for k, v in body.items()}
    return model if body == MODEL else body
