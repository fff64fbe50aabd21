"""Changing deployments, and what becomes of it, from the command line."""

import json
from typing import Any

import pytest

from tests.unit.cli.conftest import Holdfast
from tests.unit.cli.fake_api import FakeApi, deployment

ROLLOUT: dict[str, Any] = {
    "strategy": "canary",
    "mode": "surge",
    "stage": "baking",
    "paused": False,
    "rolling_back": False,
    "revision": 4,
    "from_revision": 3,
    "new_replicas": 1,
    "new_ready_replicas": 1,
    "old_replicas": 2,
    "note": "0 of 40 requests failed",
    "started_at": "2026-11-20T10:00:00Z",
    "bake_until": "2026-11-20T10:10:00Z",
}


def test_fields_are_set_in_a_merge_patch(holdfast: Holdfast, api: FakeApi) -> None:
    api.deployments = [deployment()]
    seen = holdfast(
        "update", "smollm2", "--set", "max_model_len=4096", "--set", "rollout.strategy=canary", "--set", "env.A=null"
    )
    assert seen.code == 0
    patch = {"spec": {"max_model_len": 4096, "rollout": {"strategy": "canary"}, "env": {"A": None}}}
    assert api.requests[-1] == ("PATCH", "/api/v1/deployments/smollm2", patch)


def test_a_file_and_fields_make_one_patch(holdfast: Holdfast, api: FakeApi, tmp_path: Any) -> None:
    api.deployments = [deployment()]
    file = tmp_path / "patch.json"
    file.write_text(json.dumps({"labels": {"a": "b"}, "spec": {"replicas": 2}}))
    assert holdfast("update", "smollm2", "-f", str(file), "--set", "concurrency=4").code == 0
    assert api.requests[-1][2] == {"labels": {"a": "b"}, "spec": {"replicas": 2, "concurrency": 4}}


@pytest.mark.parametrize("arguments", [(), ("--set", "replicas"), ("--set", "=3"), ("--set", "a=1", "--set", "a.b=2")])
def test_an_update_that_says_nothing_sensible_is_wrong_usage(
    holdfast: Holdfast, api: FakeApi, arguments: tuple[str, ...]
) -> None:
    assert holdfast("update", "smollm2", *arguments).code == 2
    assert api.requests == []


def test_waiting_for_a_change_that_was_gone_back_from_fails_and_says_why(holdfast: Holdfast, api: FakeApi) -> None:
    failed = {"revision": 2, "outcome": "failed", "reason": "smollm2/2-x: engine exited with 1 (bad_flag)"}
    api.deployments = [deployment(generation=2, revision=2, phase="deploying"), deployment(generation=2)]
    api.deployments[1]["status"]["failed_rollout"] = failed
    seen = holdfast("update", "smollm2", "--set", "engine_args=[]", "--wait")
    assert seen.code == 1
    assert "bad_flag" in seen.err
    assert "revision 1 serves again" in seen.err


def test_rollback_names_a_revision_or_none(holdfast: Holdfast, api: FakeApi) -> None:
    api.deployments = [deployment()]
    assert holdfast("rollback", "smollm2").code == 0
    assert api.requests[-1] == ("POST", "/api/v1/deployments/smollm2/rollback", {})
    assert holdfast("rollback", "smollm2", "--to", "3").code == 0
    assert api.requests[-1][2] == {"revision": 3}


@pytest.mark.parametrize("action", ["pause", "resume", "promote", "abort"])
def test_rollouts_are_steered(holdfast: Holdfast, api: FakeApi, action: str) -> None:
    api.deployments = [deployment(rollout=ROLLOUT)]
    seen = holdfast("rollout", "smollm2", action)
    assert seen.code == 0
    assert api.requests[-1][:2] == ("POST", f"/api/v1/deployments/smollm2/rollout/{action}")


def test_rollout_in_progress_is_shown(holdfast: Holdfast, api: FakeApi) -> None:
    api.deployments = [deployment(rollout=ROLLOUT)]
    seen = holdfast("rollout", "smollm2").out
    for text in ("3 → 4", "canary", "baking", "1 of 1 ready", "0 of 40 requests failed"):
        assert text in seen
    assert holdfast("rollout", "smollm2", "--json").json == ROLLOUT
    assert "canary, baking" in holdfast("deployments", "smollm2").out
    api.deployments = [deployment()]
    assert "no rollout is in progress" in holdfast("rollout", "smollm2").out
    assert holdfast("rollout", "smollm2", "explode").code == 2


def test_revisions_are_listed(holdfast: Holdfast, api: FakeApi) -> None:
    api.revisions = [
        {
            "revision": n,
            "current": n == 2,
            "outcome": "live" if n == 2 else "superseded",
            "cause": "changed",
            "engine": "llama_cpp",
            "engine_version": "1",
            "spec": {},
            "created_at": "2026-11-20T10:00:00Z",
        }
        for n in (2, 1)
    ]
    lines = holdfast("revisions", "smollm2").out.splitlines()
    assert lines[1].split()[:3] == ["2", "*", "live"]
    assert lines[2].split()[:2] == ["1", "superseded"]
    assert holdfast("revisions", "smollm2", "--json").json == api.revisions
