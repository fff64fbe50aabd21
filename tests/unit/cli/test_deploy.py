"""``deploy``: the body that it sends, and the watching until it is ready."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fleet.cli.progress import describe, judge
from fleet.cli.spec import DeployOptions, build, model_path, parse_env
from tests.unit.cli.conftest import Holdfast
from tests.unit.cli.fake_api import FakeApi, deployment, instance


def test_options_become_the_body(holdfast: Holdfast, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_HERE", "s3cret")
    api.deployments = [deployment()]
    options = ["--replicas", "2", "--engine", "llama_cpp", "--engine-arg=-b", "--engine-arg=512"]
    options += ["--env", "A=b=c", "--env", "SECRET_HERE", "--label", "team=a", "--gpus", "0"]
    options += ["--max-model-len", "2048", "--concurrency", "4", "--cpu-threads", "1"]
    assert holdfast("deploy", "smollm2", "--model", "m.gguf", "--no-wait", *options).code == 0
    assert api.requests[0] == (
        "POST",
        "/api/v1/deployments",
        {
            "name": "smollm2",
            "labels": {"team": "a"},
            "spec": {
                "model": {"source": "local", "path": "m.gguf"},
                "replicas": 2,
                "engine": "llama_cpp",
                "engine_args": ["-b", "512"],
                "env": {"A": "b=c", "SECRET_HERE": "s3cret"},
                "max_model_len": 2048,
                "concurrency": 4,
                "placement": {"gpus_per_replica": 0},
                "resources": {"cpu_threads": 1},
            },
        },
    )


def test_options_lie_over_the_file() -> None:
    document = {
        "name": "a",
        "labels": {"x": "1"},
        "spec": {"model": {"path": "m"}, "replicas": 1, "env": {"A": "1"}},
    }
    body = build("b", document, DeployOptions(replicas=3, labels=["y=2"], env=["B=2"]))
    assert body["name"] == "b"
    assert body["labels"] == {"x": "1", "y": "2"}
    assert body["spec"] == {"model": {"path": "m"}, "replicas": 3, "env": {"A": "1", "B": "2"}}


def test_a_deployment_that_was_printed_can_be_sent_again() -> None:
    assert "status" not in build(None, deployment(), DeployOptions())


def test_a_bare_spec_is_taken_from_stdin(holdfast: Holdfast, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.deployments = [deployment()]
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"model": {"path": "m"}})))
    assert holdfast("deploy", "smollm2", "-f", "-", "--no-wait").code == 0
    assert api.requests[0][2] == {"name": "smollm2", "spec": {"model": {"path": "m"}}}


def test_only_paths_that_say_so_are_taken_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_path("./m.gguf") == str(tmp_path / "m.gguf")
    assert model_path("m.gguf") == "m.gguf"
    assert model_path("/models/m.gguf") == "/models/m.gguf"


def test_an_empty_value_is_a_value() -> None:
    assert parse_env(["A="]) == {"A": ""}


@pytest.mark.parametrize(
    ("status", "done", "ok"),
    [
        ({"phase": "pending"}, False, False),
        ({"phase": "deploying"}, False, False),
        ({"phase": "degraded"}, False, False),
        ({"phase": "ready"}, True, True),
        ({"phase": "stopped"}, True, True),
        ({"phase": "failed"}, True, False),
        ({"phase": "deleting"}, True, False),
        ({"phase": "ready", "generation": 1}, False, False),
        ({"phase": "failed", "generation": 1}, False, False),
        ({"phase": "ready", "generation": 3}, True, True),
    ],
)
def test_only_what_is_about_this_generation_counts(status: dict[str, Any], done: bool, ok: bool) -> None:
    verdict = judge(deployment(**{"generation": 2, **status}), generation=2)
    assert (verdict.done, verdict.ok) == (done, ok)


def test_progress_names_what_each_instance_is_doing() -> None:
    waiting = instance(state="downloading", progress=0.437, message="engine llama_cpp")
    lines = describe(deployment(phase="deploying", ready_replicas=0), [waiting])
    assert lines == [
        "smollm2: deploying, 0 of 1 ready",
        f"  {waiting['id']}: downloading 43 % on host-1: engine llama_cpp",
    ]
    assert describe(deployment(), [waiting], coarse=True)[1].startswith(f"  {waiting['id']}: downloading 40 %")
    assert describe(deployment(), [instance()]) == ["smollm2: ready, 1 of 1 ready"]


def test_deploy_ends_with_0_when_the_model_is_ready(holdfast: Holdfast, api: FakeApi) -> None:
    api.deployments = [
        deployment(phase="pending", ready_replicas=0),
        deployment(phase="deploying"),
        deployment(),
    ]
    api.instances = [instance(state="starting", message="loading")]
    seen = holdfast("deploy", "smollm2", "--model", "m.gguf", "--json")
    assert seen.code == 0
    assert seen.json["status"]["phase"] == "ready"
    assert "starting on host-1: loading" in seen.err


def test_deploy_ends_with_1_and_the_reason_when_it_failed(holdfast: Holdfast, api: FakeApi) -> None:
    failed = deployment(phase="failed", message="the file is no GGUF", hint="check the path")
    api.deployments = [deployment(phase="pending"), failed]
    seen = holdfast("deploy", "smollm2", "--model", "m.gguf")
    assert seen.code == 1
    assert "the file is no GGUF" in seen.err
    assert "check the path" in seen.err


def test_deploy_gives_up_after_its_timeout_and_says_where_it_stood(holdfast: Holdfast, api: FakeApi) -> None:
    api.deployments = [deployment(phase="pending", message="no host has room")]
    seen = holdfast("deploy", "smollm2", "--model", "m.gguf", "--timeout", "0.1")
    assert seen.code == 1
    assert "no host has room" in seen.err
    assert "--timeout" in seen.err


def test_waiting_for_a_deployment_that_was_deleted_ends(holdfast: Holdfast, api: FakeApi) -> None:
    api.deployments = [deployment(phase="pending"), deployment(phase="deleting")]
    assert holdfast("deploy", "smollm2", "--model", "m.gguf").code == 1
