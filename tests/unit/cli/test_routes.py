"""Routes and providers on the command line."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from fleet.routes import ProviderSpec, RouteCreate
from tests.unit.cli.conftest import Holdfast
from tests.unit.cli.fake_api import FakeApi

TIMES = {"generation": 3, "created_at": "2026-11-20T10:00:00Z", "updated_at": "2026-11-20T11:00:00Z"}


def route(name: str = "acme/chat", **spec: Any) -> dict[str, Any]:
    targets = [{"deployment": "smol", "weight": 3}, {"provider": "openai", "model": "gpt-x"}]
    made = RouteCreate.model_validate({"name": name, "labels": {"team": "a"}, "spec": {"targets": targets, **spec}})
    return made.model_dump(mode="json") | TIMES


def provider(name: str = "openai", *, has_key: bool = True, **spec: Any) -> dict[str, Any]:
    parsed = ProviderSpec.model_validate({"base_url": "https://api.example.com/v1", **spec})
    return {"name": name, "spec": parsed.model_dump(mode="json", exclude={"api_key"}) | {"has_key": has_key}} | TIMES


# -- routes --------------------------------------------------------------------------------------------------------


def test_routes_are_a_table_or_json(holdfast: Holdfast, api: FakeApi) -> None:
    revision = [{"deployment": "smol", "revision": 2, "adapter": "law"}]
    api.routes = [route(aliases=["gpt"], fallbacks={"general": ["big"]}), route("b", targets=revision)]
    lines = holdfast("routes").out.splitlines()
    assert lines[0].split() == ["NAME", "TARGETS", "ALIASES", "FALLBACKS", "POLICY", "AGE"]
    assert lines[1].split()[:7] == ["acme/chat", "smol", "x3,", "openai/gpt-x", "gpt", "big", "least_load"]
    assert "smol@2:law" in lines[2]
    assert holdfast("routes", "--json").json == api.routes
    holdfast("routes", "--label", "team=a")
    assert api.requests[-1][1] == "/api/v1/routes?label=team%3Da"


def test_no_routes_say_how_to_make_one(holdfast: Holdfast) -> None:
    assert "holdfast routes set" in holdfast("routes").out


def test_one_route_is_shown_in_full(holdfast: Holdfast, api: FakeApi) -> None:
    api.routes = [route(aliases=["gpt"])]
    shown = holdfast("routes", "get", "acme/chat").out
    assert all(text in shown for text in ("acme/chat", "gpt", "team=a", '"max_waiting": 512'))
    assert holdfast("routes", "get", "acme/chat", "--json").json == api.routes[0]
    missing = holdfast("routes", "get", "nope")
    assert (missing.code, "no routes/nope" in missing.err) == (1, True)


def test_a_route_that_is_not_there_is_made(holdfast: Holdfast, api: FakeApi) -> None:
    api.routes = [route("other")]
    seen = holdfast(
        *("routes", "set", "--name", "chat", "--target", "deployment=smol,weight=3,revision=2"),
        *("--target", "provider=openai,model=gpt-x", "--alias", "gpt", "--fallback", "big", "--label", "team=a"),
        *("--set", "timeouts.total_s=60", "--set", "balancing.policy=prefix_affinity", "--json"),
    )
    assert (seen.code, seen.json["name"]) == (0, "other")
    assert [r[:2] for r in api.requests] == [("GET", "/api/v1/routes/chat"), ("POST", "/api/v1/routes")]
    assert api.requests[-1][2] == {
        "name": "chat",
        "labels": {"team": "a"},
        "spec": {
            "targets": [
                {"deployment": "smol", "weight": 3, "revision": 2},
                {"provider": "openai", "model": "gpt-x"},
            ],
            "aliases": ["gpt"],
            "fallbacks": {"general": ["big"]},
            "timeouts": {"total_s": 60},
            "balancing": {"policy": "prefix_affinity"},
        },
    }


def test_a_route_that_is_there_is_changed_where_it_is_said(holdfast: Holdfast, api: FakeApi) -> None:
    api.routes = [route()]
    assert holdfast("routes", "set", "--name", "acme/chat", "--set", "timeouts.total_s=9").code == 0
    assert api.requests[-1] == ("PATCH", "/api/v1/routes/acme/chat", {"spec": {"timeouts": {"total_s": 9}}})


@pytest.mark.parametrize("bare", [False, True])
def test_a_route_from_a_file_is_what_get_prints_or_its_spec(
    holdfast: Holdfast, api: FakeApi, tmp_path: Path, bare: bool
) -> None:
    kept = route(fallbacks={"context_window": ["long"]})
    file = tmp_path / "route.json"
    file.write_text(json.dumps(kept["spec"] if bare else kept))
    name = ("--name", "acme/chat") if bare else ()
    api.routes = [kept]
    assert holdfast("routes", "set", str(file), *name, "--fallback", "big").code == 0
    method, path, body = api.requests[-1]
    assert (method, path) == ("PATCH", "/api/v1/routes/acme/chat")
    assert body["spec"] == kept["spec"] | {
        "fallbacks": {"general": ["big"], "context_window": ["long"], "content_policy": []}
    }
    assert ("labels" in body) is not bare


@pytest.mark.parametrize(
    ("arguments", "document"),
    [
        ([], None),
        (["--target", "deployment=smol"], None),
        (["--name", "x", "--target", "smol"], None),
        (["--name", "x", "--target", "planet=mars"], None),
        (["--name", "x", "--target", "deployment=smol,weight=much"], None),
        (["--name", "x", "--target", "deployment=smol,weight=-1"], None),
        (["--name", "x", "--set", "timeouts"], None),
        (["--name", "x", "--label", "team"], None),
        (["-", "--name", "x"], "[]"),
        (["-", "--name", "x"], "{"),
        (["-"], '{"name": "x", "spec": [1]}'),
        (["-"], '{"name": "x", "spec": {}, "labels": "a"}'),
        (["-", "--fallback", "y"], '{"name": "x", "spec": {"fallbacks": 1}}'),
        (["nowhere.json"], None),
    ],
)
def test_a_route_that_makes_no_sense_is_wrong_usage(
    holdfast: Holdfast,
    api: FakeApi,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    document: str | None,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(document or ""))
    seen = holdfast("routes", "set", *arguments)
    assert (seen.code, api.requests) == (2, [])
    assert seen.err


def test_what_the_api_refuses_is_told(holdfast: Holdfast, api: FakeApi) -> None:
    api.problem = (409, {"title": "Conflict", "detail": "it is taken", "field": "name", "hint": "choose another"})
    seen = holdfast("routes", "set", "--name", "x", "--target", "deployment=smol")
    assert (seen.code, "it is taken" in seen.err, len(api.requests)) == (1, True, 1)


def test_routes_and_providers_are_deleted(holdfast: Holdfast, api: FakeApi) -> None:
    assert holdfast("routes", "delete", "acme/chat").out == "acme/chat is deleted\n"
    assert holdfast("providers", "delete", "openai").out == "openai is deleted\n"
    assert [r[:2] for r in api.requests] == [
        ("DELETE", "/api/v1/routes/acme/chat"),
        ("DELETE", "/api/v1/providers/openai"),
    ]


# -- providers -----------------------------------------------------------------------------------------------------


def test_providers_are_listed_and_shown(holdfast: Holdfast, api: FakeApi) -> None:
    api.providers = [provider(headers={"x-team": "a"}), provider("own", has_key=False, kind="anthropic")]
    lines = holdfast("providers").out.splitlines()
    assert lines[0].split() == ["NAME", "KIND", "URL", "KEY", "IN", "FLIGHT", "AGE"]
    assert lines[1].split()[:5] == ["openai", "openai", "https://api.example.com/v1", "yes", "256"]
    assert lines[2].split()[3] == "no"
    assert holdfast("providers", "--json").json == api.providers
    assert holdfast("providers", "get", "own", "--json").json == api.providers[1]
    shown = holdfast("providers", "get", "openai").out
    assert "never shown" in shown
    assert "x-team=a" in shown


def test_no_providers_say_how_to_add_one(holdfast: Holdfast) -> None:
    assert "holdfast providers add" in holdfast("providers").out


@pytest.mark.parametrize("source", ["file", "stdin", "env"])
def test_a_key_comes_from_where_it_is_kept(
    holdfast: Holdfast, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    api.providers = [provider()]
    (tmp_path / "key").write_text("sk-secret\n")
    monkeypatch.setenv("THEIR_KEY", "sk-secret")
    monkeypatch.setattr("sys.stdin", io.StringIO("sk-secret\n"))
    option = {
        "file": ("--key-file", str(tmp_path / "key")),
        "stdin": ("--key-file", "-"),
        "env": ("--key-env", "THEIR_KEY"),
    }
    url = ("--url", "https://api.example.com/v1", "--header", "X-Team=a", "--in-flight", "4")
    seen = holdfast("providers", "add", "openai", *url, *option[source])
    assert (seen.code, "providers check openai" in seen.out) == (0, True)
    assert "sk-secret" not in seen.out + seen.err
    assert api.requests[-1][2] == {
        "name": "openai",
        "spec": {
            "base_url": "https://api.example.com/v1",
            "kind": "openai",
            "api_key": "sk-secret",
            "headers": {"x-team": "a"},
            "in_flight": 4,
        },
    }


def test_a_provider_is_changed_where_it_is_said(holdfast: Holdfast, api: FakeApi) -> None:
    api.providers = [provider()]
    path = "/api/v1/providers/openai"
    assert holdfast("providers", "set", "openai", "--no-key", "--url", "http://b/v1").code == 0
    assert api.requests[-1] == ("PATCH", path, {"spec": {"api_key": None, "base_url": "http://b/v1"}})
    assert holdfast("providers", "set", "openai", "--in-flight", "9", "--json").json == api.providers[0]
    assert api.requests[-1] == ("PATCH", path, {"spec": {"in_flight": 9}})


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "x"],
        ["add", "x", "--url", "http://a/v1", "--kind", "other"],
        ["add", "x", "--url", "http://a/v1", "--key-env", "NOT_SET_ANYWHERE"],
        ["add", "x", "--url", "http://a/v1", "--key-file", "nowhere"],
        ["add", "x", "--url", "http://a/v1", "--key-file", "-"],
        ["add", "x", "--url", "http://a/v1", "--key-file", "-", "--key-env", "HOME"],
        ["add", "x", "--url", "http://a/v1", "--header", "x-a"],
        ["set", "x"],
        ["set", "x", "--no-key", "--key-env", "HOME"],
    ],
)
def test_a_provider_that_makes_no_sense_is_wrong_usage(
    holdfast: Holdfast, api: FakeApi, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert holdfast("providers", *arguments).code == 2
    assert api.requests == []


def test_a_check_says_what_there_is_or_what_is_wrong(holdfast: Holdfast, api: FakeApi) -> None:
    api.checked = {"ok": True, "status": 200, "latency_ms": 12.4, "models": ["gpt-x", "gpt-[y]"], "problem": ""}
    seen = holdfast("providers", "check", "openai")
    assert (seen.code, seen.out) == (0, "openai answers in 12 ms; it has\n  gpt-x\n  gpt-[y]\n")
    assert holdfast("providers", "check", "openai", "--json").json == api.checked
    api.checked = {"ok": False, "status": 401, "latency_ms": 9.0, "models": [], "problem": "it does not take the key"}
    seen = holdfast("providers", "check", "openai")
    assert (seen.code, seen.out, "does not take the key" in seen.err) == (1, "", True)
    seen = holdfast("providers", "check", "openai", "--json")
    assert (seen.code, seen.json) == (1, api.checked)
