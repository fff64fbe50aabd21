"""Whatever is sent, to whichever route: a clear answer and never an error of ours."""

import json
import random
import re
from datetime import UTC, datetime
from itertools import cycle
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import Session

from fleet.db.routes import ProviderRow, RouteRow
from fleet.db.tables import GpuRow
from fleet.routes import ProviderSpec, RouteSpec
from tests.unit.api.test_auth import operations
from tests.unit.api.test_instances import instance
from tests.unit.api.world import ADMIN, SPEC, World

OPERATIONS = sorted(operations())
ODD_TEXT = [
    "",
    "\0",
    "\ud800",
    "\udfff\ud800",
    "a\0b",
    "..",
    "/",
    "%",
    "%00",
    "💥",
    "\u202e",
    "x" * 5000,
    "'; --",
    "{}",
]
KINDS = ["", "application/json", "text/plain", "x"]
ODD_NUMBERS: list[Any] = [0, -1, 2**31, 2**63, -(2**63) - 1, 10**400, 1.5, 1e308, float("inf"), float("nan"), -0.0]
FIELDS = [
    *("name", "spec", "labels", "model", "path", "source", "engine", "engine_version", "replicas", "engine_args"),
    *("env", "max_model_len", "concurrency", "placement", "host_selector", "gpus_per_replica", "cpu_threads"),
    *("resources", "memory_bytes", "health", "start_timeout_s", "runtime", "scope", "ttl_s", "description", "token"),
    *("reserved_for", "reserve", "ram_bytes", "vram_bytes", "max_uses", "evacuate", "deadline_s", "reason"),
    *("targets", "deployment", "provider", "weight", "aliases", "fallbacks", "base_url", "api_key", "headers"),
]

texts = st.sampled_from(ODD_TEXT) | st.text(max_size=20) | st.text(st.characters(categories=["Cs", "Cc"]), max_size=3)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(ODD_NUMBERS) | texts
names = st.sampled_from(FIELDS) | texts
bodies = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5), max_leaves=25
)
ROUTE: dict[str, Any] = {
    "targets": [{"deployment": "chat", "weight": 2}, {"provider": "chat", "model": "gpt-x"}],
    "aliases": ["x/y"],
    "fallbacks": {"general": ["chat"]},
    "headers": {"set": {"x-a": "b"}, "forward": ["x-c"]},
}
PROVIDER: dict[str, Any] = {"base_url": "http://127.0.0.1:1/v1", "api_key": "sk", "headers": {"x-a": "b"}}
VALID: dict[str, Any] = {
    "/api/v1/deployments": {"name": "new", "labels": {"a": "b"}, "spec": {**SPEC, "env": {"A": "b"}}},
    "/api/v1/deployments/{name}": {"labels": {"a": "b"}, "spec": {"replicas": 2, "env": {"A": "c"}}},
    "/api/v1/hosts/{host_id}/drain": {"evacuate": True, "deadline_s": 60, "reason": "new disk"},
    "/api/v1/instances/{instance_id}/drain": {"deadline_s": 60, "reason": "test"},
    "/api/v1/api-keys": {"name": "x", "scope": "inference", "ttl_s": 60},
    "/api/v1/join-tokens": {"description": "x", "ttl_s": 60, "max_uses": 3},
    "/api/v1/hosts/{host_id}": {
        "labels": {"zone": "a", "rack": None},
        "reserved_for": {"team": "ml"},
        "reserve": {"ram_bytes": 1 << 30, "vram_bytes": None},
    },
    "/api/v1/gpus/{uuid}/cordon": {"reason": "Xid 79"},
    "/api/v1/routes": {"name": "new", "labels": {"a": "b"}, "spec": ROUTE},
    "/api/v1/routes/{name}": {"labels": {"a": None}, "spec": ROUTE},
    "/api/v1/providers": {"name": "new", "spec": PROVIDER},
    "/api/v1/providers/{name}": {"spec": {**PROVIDER, "in_flight": 3}},
}
ids = st.sampled_from(["chat", "chat/1-abc", "h1", "key-1", "new"]) | texts
SETTINGS = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def mutated(value: Any, replacement: Any, chance: random.Random) -> Any:
    """``value`` with one of its parts replaced, renamed or left out."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(sorted(value))
        rest = {k: v for k, v in value.items() if k != key}
        match chance.randrange(6):
            case 0:
                return rest
            case 1:
                return {**rest, str(replacement): value[key]}
            case _:
                return {**rest, key: mutated(value[key], replacement, chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        return [mutated(value[0], replacement, chance), *value[1:]]
    return replacement


@pytest.fixture
def busy_world(world: World) -> World:
    """With one of everything."""
    world.add_host()
    world.add(instance())
    world.add(GpuRow(uuid="chat", host_id="h1", index=0, kind="nvidia", name="t", memory_bytes=1, allocatable=1))
    world.database.write(_add_names)
    return world


def _add_names(session: Session) -> None:
    now = datetime.now(UTC)
    spec = ProviderSpec.model_validate(PROVIDER).model_dump(mode="json", exclude={"api_key"})
    session.add(ProviderRow(name="chat", spec=spec, created_at=now, updated_at=now))
    target = RouteSpec.model_validate({"targets": [{"provider": "chat"}]}).model_dump(mode="json")
    session.add(RouteRow(name="chat", spec=target, created_at=now, updated_at=now))


async def send(world: World, method: str, path: str, **what: Any) -> httpx.Response:
    async with world.client(ADMIN) as client:
        return await client.request(method, path, **what)


def asks_a_host(path: str) -> bool:
    """There is none that answers."""
    return path.endswith(("/logs", "/metrics")) and "instances" in path


def check(answer: httpx.Response, unavailable: bool = False) -> None:
    """Not an error of ours; and if an error, one that says so in the usual shape and in short."""
    assert answer.status_code < 500 or (unavailable and answer.status_code == 503), answer.text
    if answer.status_code < 400:
        return
    said = answer.json()
    assert said["status"] == answer.status_code
    assert said["title"]
    assert said["detail"]
    assert len(answer.content) < 60_000


def url(path: str, values: list[str]) -> str:
    """``path`` with its names replaced by ``values`` in turn, escaped as they come."""
    quoted = cycle("".join(f"%{byte:02X}" for byte in v.encode(errors="surrogatepass")) or "%20" for v in values)
    return re.sub(r"\{.*?\}", lambda _: next(quoted), path)


JSON = {"content-type": "application/json"}


@SETTINGS
@given(operation=st.sampled_from(OPERATIONS), body=bodies, name=ids)
async def test_any_json_at_any_route(busy_world: World, operation: tuple[str, str], body: Any, name: str) -> None:
    method, path = operation
    target = url(path, ["h1" if "host_id}/" in path else name])
    check(await send(busy_world, method, target, content=json.dumps(body), headers=JSON), unavailable=asks_a_host(path))


@SETTINGS
@given(
    path=st.sampled_from(sorted(VALID)),
    part=scalars | bodies,
    chance=st.randoms(use_true_random=False),
    ascii_=st.booleans(),
)
async def test_almost_right_json(busy_world: World, path: str, part: Any, chance: random.Random, ascii_: bool) -> None:
    world = busy_world
    if "chat" not in world.workflows.deployments:
        body = {"name": "chat", "spec": {**SPEC, "env": {"A": "b"}}}
        assert (await send(world, "POST", "/api/v1/deployments", json=body)).status_code == 201
    method = "PATCH" if path.endswith(("{name}", "{host_id}")) else "POST"
    target = url(path, ["h1" if "host_id" in path else "chat"])
    text = json.dumps(mutated(VALID[path], part, chance), ensure_ascii=ascii_)
    check(await send(world, method, target, content=text.encode(errors="surrogatepass"), headers=JSON))


@SETTINGS
@given(path=st.sampled_from(OPERATIONS).filter(lambda o: o[0] == "GET").map(lambda o: o[1]), data=st.data())
async def test_any_query_at_any_list(busy_world: World, path: str, data: st.DataObject) -> None:
    keys = (
        st.sampled_from(
            [
                *("limit", "cursor", "label", "deployment", "tail", "follow", "attempt", "since", "actor", "action"),
                "outcome",
            ]
        )
        | texts
    )
    odd_times = st.sampled_from(["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-11-20T10:00:00Z"])
    values = texts | st.integers().map(str) | st.sampled_from(ODD_NUMBERS).map(str) | odd_times
    pairs = data.draw(st.lists(st.tuples(keys, values), max_size=4))
    query = "&".join(f"{url('{}', [k])}={url('{}', [v])}" for k, v in pairs)
    target = url(path, [data.draw(ids)])
    check(await send(busy_world, "GET", f"{target}?{query}"), unavailable=asks_a_host(path))


@SETTINGS
@given(
    operation=st.sampled_from(OPERATIONS),
    content=st.binary(max_size=200),
    kind=st.sampled_from(KINDS),
)
async def test_any_bytes_at_any_route(busy_world: World, operation: tuple[str, str], content: bytes, kind: str) -> None:
    method, path = operation
    target = url(path, ["h1" if "host_id}/" in path else "chat"])
    headers = {"content-type": kind} if kind else {}
    check(await send(busy_world, method, target, content=content, headers=headers), unavailable=asks_a_host(path))


@SETTINGS
@given(
    operation=st.sampled_from(OPERATIONS),
    value=st.binary(max_size=50).filter(lambda b: b"\n" not in b and b"\r" not in b and b"\0" not in b),
    name=st.sampled_from(["authorization", "if-match", "idempotency-key", "content-length", "cookie", "accept"]),
)
async def test_any_header_at_any_route(busy_world: World, operation: tuple[str, str], value: bytes, name: str) -> None:
    method, path = operation
    headers = [(name.encode(), value)]
    check(await send(busy_world, method, url(path, ["chat"]), headers=headers), unavailable=asks_a_host(path))


@pytest.mark.parametrize(("method", "path"), [o for o in OPERATIONS if o[0] in ("POST", "PATCH")])
async def test_any_depth_at_any_route(busy_world: World, method: str, path: str) -> None:
    world = busy_world
    await send(world, "POST", "/api/v1/deployments", json={"name": "chat", "spec": SPEC})
    target = url(path, ["h1" if "host_id}/" in path else "chat"])
    for depth in (10, 100, 300, 500, 700, 800, 850, 900, 925, 950, 975, 1000, 5000, 100_000):
        for opening, closing in (("[", "]"), ('{"spec":', "}"), ('{"labels":', "}")):
            content = opening * depth + "1" + closing * depth
            check(await send(world, method, target, content=content, headers=JSON))
            nested = '{"spec": {"model": ' + content + "}}"
            check(await send(world, method, target, content=nested, headers=JSON))


@pytest.mark.parametrize(("method", "path"), [o for o in OPERATIONS if o[0] in ("POST", "PATCH")])
async def test_fifty_megabytes_at_any_route(busy_world: World, method: str, path: str) -> None:
    answer = await send(busy_world, method, url(path, ["h1"]), content=b" " * (50 << 20), headers=JSON)
    assert answer.status_code == 413
