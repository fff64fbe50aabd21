"""What people and scripts see of each command."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Holdfast
from tests.unit.cli.fake_api import FakeApi, deployment, host, instance


def test_deployments_are_a_table_for_people(holdfast: Holdfast, api: FakeApi) -> None:
    api.deployments = [deployment("alpha"), deployment("beta", phase="failed", message="no [room] left")]
    seen = holdfast("deployments")
    assert seen.code == 0
    lines = seen.out.splitlines()
    assert lines[0].split() == ["NAME", "PHASE", "READY", "ENGINE", "AGE", "MESSAGE"]
    assert lines[1].split()[:3] == ["alpha", "ready", "1/1"]
    assert "no [room] left" in lines[2]


def test_json_lists_all_pages_and_nothing_else_on_stdout(holdfast: Holdfast, api: FakeApi) -> None:
    api.page_size = 2
    api.instances = [instance(id=f"smollm2/{n}-abc") for n in range(5)]
    assert holdfast("instances", "--json").json == api.instances


def test_nothing_deployed_says_how_to_deploy(holdfast: Holdfast) -> None:
    assert "holdfast deploy" in holdfast("deployments").out


@pytest.mark.parametrize("command", ["deployments", "instances", "hosts", "status"])
def test_every_list_speaks_json(holdfast: Holdfast, api: FakeApi, command: str) -> None:
    api.deployments, api.instances, api.hosts = [deployment()], [instance()], [host()]
    assert holdfast(command, "--json").json


def test_one_deployment_is_shown_in_full(holdfast: Holdfast, api: FakeApi) -> None:
    api.deployments = [deployment()]
    shown = holdfast("deployments", "smollm2")
    assert '"path": "m.gguf"' in shown.out
    assert "http://127.0.0.1:8233" in shown.out
    assert holdfast("deployments", "smollm2", "--json").json == deployment()


def test_the_slash_of_an_instance_id_stays_in_the_path(holdfast: Holdfast, api: FakeApi) -> None:
    api.instances = [instance()]
    assert holdfast("instances", "smollm2/1-3f2a9c01", "--json").json["pid"] == 4711
    assert api.requests[-1][1] == "/api/v1/instances/smollm2/1-3f2a9c01"


def test_scale_sends_a_merge_patch(holdfast: Holdfast, api: FakeApi) -> None:
    api.deployments = [deployment()]
    assert holdfast("scale", "smollm2", "3").code == 0
    assert api.requests[-1] == ("PATCH", "/api/v1/deployments/smollm2", {"spec": {"replicas": 3}})


@pytest.mark.parametrize("verb", ["stop", "start", "restart"])
def test_verbs_are_posted(holdfast: Holdfast, api: FakeApi, verb: str) -> None:
    api.deployments = [deployment()]
    assert holdfast(verb, "smollm2").code == 0
    assert api.requests[-1][:2] == ("POST", f"/api/v1/deployments/smollm2/{verb}")


def test_waiting_for_a_delete_ends_when_it_is_gone(holdfast: Holdfast, api: FakeApi) -> None:
    seen = holdfast("delete", "smollm2", "--wait")
    assert (seen.code, seen.out) == (0, "smollm2 is gone\n")
    assert [r[0] for r in api.requests] == ["DELETE", "GET"]


def test_hosts_show_what_they_have(holdfast: Holdfast, api: FakeApi) -> None:
    gpu = {"uuid": "GPU-1", "name": "H200", "used_bytes": 1 << 30, "allocatable_bytes": 140 << 30}
    api.hosts = [host(gpus=[{**gpu, "healthy": False, "reason": "Xid 79"}])]
    assert "1.0 GiB of 140.0 GiB" in holdfast("hosts").out
    assert "NOT HEALTHY: Xid 79" in holdfast("hosts", "host-1").out


def test_a_host_can_be_forgotten(holdfast: Holdfast, api: FakeApi) -> None:
    assert holdfast("hosts", "host-1", "--forget").code == 0
    assert api.requests[-1][:2] == ("DELETE", "/api/v1/hosts/host-1")
    assert holdfast("hosts", "--forget").code == 2


def test_a_join_token_comes_with_the_command_to_run(holdfast: Holdfast, api: FakeApi) -> None:
    seen = holdfast("join-token", "create", "--description", "rack 3", "--ttl", "60")
    assert "hf-join-x" in seen.out
    assert "  run me\n" in seen.out
    assert api.requests[-1][2] == {"description": "rack 3", "ttl_s": 60, "max_uses": 1}


def test_a_new_key_is_all_there_is_on_stdout(holdfast: Holdfast, api: FakeApi) -> None:
    seen = holdfast("keys", "create", "ci", "--scope", "admin")
    assert seen.out == "hf-key-new\n"
    assert api.requests[-1][2] == {"name": "ci", "scope": "admin", "ttl_s": None}
    assert holdfast("keys", "revoke", "key-1").code == 0
    assert holdfast("keys", "create", "ci", "--scope", "root").code == 2


def test_logs_pass_through_as_they_come(holdfast: Holdfast, api: FakeApi) -> None:
    seen = holdfast("logs", "smollm2/1-3f2a9c01", "--tail", "5", "--follow", "--attempt", "2")
    assert seen.out == "line 1\nline 2\n"
    assert api.requests[-1][1].endswith("/logs?tail=5&follow=true&attempt=2")


def test_chat_prints_the_answer(holdfast: Holdfast, api: FakeApi) -> None:
    seen = holdfast("chat", "smollm2", "What is the capital of France?", "--max-tokens", "9")
    assert (seen.code, seen.out) == (0, "Paris.\n")
    assert api.requests[-1][2] == {
        "model": "smollm2",
        "max_tokens": 9,
        "stream": True,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the capital of France?"},
        ],
    }


def test_interactive_chat_remembers(holdfast: Holdfast, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\n"))
    assert holdfast("chat", "smollm2", "--system", "").code == 0
    assert [m["content"] for m in api.requests[-1][2]["messages"]] == ["one", "Paris.", "two"]


def test_a_stream_that_breaks_off_is_a_failure(holdfast: Holdfast, api: FakeApi) -> None:
    api.ends_properly = False
    seen = holdfast("chat", "smollm2", "Hello")
    assert seen.code == 1
    assert "broke off" in seen.err


def test_status_says_why_the_server_is_not_ready(holdfast: Holdfast, api: FakeApi) -> None:
    api.temporal = False
    api.hosts = [host()]
    seen = holdfast("status")
    assert "Temporal does not answer" in seen.out
    assert "alpha" in seen.out
    assert holdfast("status", "--json").json["ready"] is False
    api.database = False
    assert "locked" in holdfast("status").out


def test_control_sequences_in_a_message_do_not_reach_the_terminal(holdfast: Holdfast, api: FakeApi) -> None:
    api.instances = [instance(message="\x1b]0;owned\x07 bold")]
    assert "\x1b" not in holdfast("instances").out


def test_help_is_quick_because_it_loads_nothing_heavy() -> None:
    heavy = ("temporalio", "sqlmodel", "sqlalchemy", "httpx", "pydantic", "fastapi", "openai")
    code = f"""
import sys
from fleet.cli.app import run
assert run(["--help"]) == 0
print([m for m in {heavy} if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "join-token" in done.stdout
    assert done.stderr.strip() == "[]"


def test_client_commands_load_neither_temporal_nor_the_database(api: FakeApi, home: Path) -> None:
    code = f"""
import sys
from fleet.cli.app import run
import os; os.environ["HOLDFAST_SERVER"] = {api.url!r}; os.environ["HOLDFAST_API_KEY"] = "hf-key-test"
assert run(["status"]) == 0
print([m for m in ("temporalio", "sqlmodel", "sqlalchemy") if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.strip() == "[]"
