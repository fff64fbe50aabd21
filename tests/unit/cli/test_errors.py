"""Errors reach a person whole, and scripts by exit code."""

from pathlib import Path

import pytest

from fleet.cli.app import run
from tests.unit.cli.conftest import Holdfast
from tests.unit.cli.fake_api import FakeApi


def test_a_problem_document_is_printed_whole(holdfast: Holdfast, api: FakeApi) -> None:
    document = {
        "title": "Invalid input",
        "detail": "replicas must be at least 0",
        "field": "spec.replicas",
        "hint": "say 0 to stop it",
    }
    api.problem = (422, document)
    seen = holdfast("scale", "smollm2", "1")
    assert seen.code == 1
    assert seen.out == ""
    for text in document.values():
        assert text in seen.err


def test_an_error_of_the_gateway_is_read_too(holdfast: Holdfast, api: FakeApi) -> None:
    api.problem = (
        404,
        {"error": {"message": "no model 'x'", "type": "invalid_request_error", "param": "model"}},
    )
    seen = holdfast("chat", "x", "Hello")
    assert seen.code == 1
    assert "no model 'x'" in seen.err


def test_a_refused_key_says_where_keys_are_looked_for(
    holdfast: Holdfast, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_API_KEY", "wrong")
    seen = holdfast("deployments")
    assert seen.code == 1
    assert "HOLDFAST_API_KEY" in seen.err
    assert str(home / "admin_key") in seen.err


def test_nothing_listening_names_the_url_and_the_remedy(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], unused_port: int
) -> None:
    monkeypatch.setenv("HOLDFAST_SERVER", f"http://127.0.0.1:{unused_port}")
    assert run(["deployments"]) == 1
    said = capsys.readouterr().err
    for text in (f"http://127.0.0.1:{unused_port}", "HOLDFAST_SERVER", "holdfast up"):
        assert text in said


def test_a_server_that_is_no_url_names_the_setting(
    holdfast: Holdfast, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_SERVER", "not a url")
    seen = holdfast("deployments")
    assert seen.code == 1
    assert "HOLDFAST_SERVER" in seen.err


def test_something_else_that_answers_is_not_taken_for_holdfast(holdfast: Holdfast, api: FakeApi) -> None:
    api.is_holdfast = False
    seen = holdfast("status")
    assert seen.code == 1
    assert "is not Holdfast" in seen.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["scale", "smollm2", "many"],
        ["scale"],
        ["deploy"],
        ["deploy", "x"],
        ["deploy", "x", "--model", "m", "--label", "novalue"],
        ["deploy", "x", "--file", "/nonexistent.json"],
        ["deploy", "x", "--model", "m", "--env", "SURELY_NOT_SET_HERE"],
    ],
)
def test_wrong_usage_ends_with_2_and_asks_nothing_of_the_api(
    holdfast: Holdfast, api: FakeApi, arguments: list[str]
) -> None:
    seen = holdfast(*arguments)
    assert seen.code == 2
    assert seen.err
    assert api.requests == []


def test_a_wrong_setting_is_named_by_its_variable(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_PORT", "99999")
    assert run(["deployments"]) == 2
    assert "HOLDFAST_PORT" in capsys.readouterr().err


def test_a_broken_settings_file_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "holdfast.toml").write_text("port = = 3")
    assert run(["deployments"]) == 2
    assert "holdfast.toml" in capsys.readouterr().err
