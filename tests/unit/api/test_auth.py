"""Who may call what: every route, with every kind of key."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from api import management
from tests.unit.api.world import ADMIN, World, the_app

OPEN = {"/healthz", "/readyz", "/version"}


def operations() -> Iterator[tuple[str, str]]:
    """(method, path) of all that the API offers."""
    for path, methods in the_app().openapi()["paths"].items():
        for method in methods:
            yield method.upper(), path


GUARDED = [o for o in operations() if o[1] not in OPEN]


def filled(path: str) -> str:
    return re.sub(r"\{.*?\}", "h1", path)


def test_all_routes_are_looked_at() -> None:
    assert len(GUARDED) >= 20
    assert {path for _, path in operations()} >= OPEN


@pytest.mark.parametrize(
    ("key", "status"),
    [
        (None, 401),
        ("wrong", 401),
        ("", 401),
        ("Ünïcode", 401),
        ("hf-revoked", 401),
        ("hf-expired", 401),
        ("hf-revoked-inference", 401),
        ("hf-inference", 403),
        ("hf-host-1", 401),
    ],
)
async def test_without_a_valid_admin_key_no_route_opens(world: World, key: str | None, status: int) -> None:
    world.add_key("hf-revoked", revoked=True)
    world.add_key("hf-expired", expired=True)
    world.add_key("hf-revoked-inference", "inference", revoked=True)
    world.add_key("hf-inference", "inference")
    world.add_host()
    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode("latin-1").strip())]
    async with world.client(None) as client:
        for method, path in GUARDED:
            answer = await client.request(method, filled(path), headers=headers)
            assert answer.status_code == status, (method, path)
            assert answer.json()["hint"]


async def test_admin_key_opens_every_route(world: World) -> None:
    async with world.client(ADMIN) as client:
        for method, path in GUARDED:
            answer = await client.request(method, filled(path))
            assert answer.status_code not in (401, 403), (method, path)
            assert answer.status_code < 500


@pytest.mark.parametrize("scheme", ["Basic", "bearerx", "Token", ""])
async def test_other_schemes_are_no_key(world: World, scheme: str) -> None:
    async with world.client(None) as client:
        answer = await client.get("/api/v1/hosts", headers={"authorization": f"{scheme} {ADMIN}".strip()})
    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/version", "/openapi.json", "/docs"])
async def test_health_version_and_documentation_are_open(world: World, path: str) -> None:
    async with world.client(None) as client:
        assert (await client.get(path)).status_code == 200


def test_every_route_is_documented_except_the_documentation() -> None:
    """So that the tests above, and the random ones, miss none."""
    sources = Path(management.__file__).parent.rglob("*.py")
    assert not [path for path in sources if "include_in_schema" in path.read_text()]
