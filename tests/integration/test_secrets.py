"""No secret reaches Temporal, a log that we show, or an answer of the API."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from google.protobuf.json_format import MessageToJson

from fleet.temporal import connect
from tests.stack import Stack, eventually

pytestmark = pytest.mark.slow

SECRET = "correct-horse-battery-staple-4711"


async def test_a_secret_in_env_reaches_the_engine_and_nothing_else(
    new_stack: Callable[..., Stack], small_model: Path
) -> None:
    stack = new_stack()
    stack.add_host("a")
    created = stack.deploy("hush", str(small_model), env={"SERVICE_TOKEN": SECRET})
    assert created["spec"]["env"] == {"SERVICE_TOKEN": "********"}
    stack.until_ready("hush")
    [pid] = stack.engine_pids()
    assert psutil.Process(pid).environ()["SERVICE_TOKEN"] == SECRET

    # The mask, and the same value again, change nothing and replace no engine.
    for value in ("********", SECRET):
        patched = stack.http.patch("/deployments/hush", json={"spec": {"env": {"SERVICE_TOKEN": value}}})
        assert stack.ok(patched)["status"]["revision"] == 1
    stack.ok(stack.http.post("/deployments/hush/restart"))
    eventually(lambda: pid not in stack.engine_pids(), within=30)
    stack.until_ready("hush")
    [pid] = stack.engine_pids()
    assert psutil.Process(pid).environ()["SERVICE_TOKEN"] == SECRET

    everything = await _all_of_temporal(stack)
    assert "hush" in everything, "the test looks in the right place"
    credential = json.loads(next(stack.home.glob("hosts/*/identity.json")).read_text())["credential"]
    for secret in (SECRET, stack.key, credential, (stack.home / "master_key").read_text().strip()):
        assert secret not in everything
        assert secret.encode() not in (stack.home / "temporal.db").read_bytes()
    assert SECRET.encode() not in (stack.home / "holdfast.db").read_bytes()
    environment = psutil.Process(pid).environ()
    ours = [k for k in environment if k.startswith("HOLDFAST_") and not k.startswith("HOLDFAST_ENGINE_")]
    assert ours == [], "an engine learns nothing of ours"


async def _all_of_temporal(stack: Stack) -> str:
    """Every event of every workflow, with the payloads decoded."""
    client = await connect(stack.settings)
    text = ""
    async for found in client.list_workflows():
        handle = client.get_workflow_handle(found.id, run_id=found.run_id)
        described = await handle.describe()
        text += MessageToJson(described.raw_description)
        async for event in handle.fetch_history_events():
            text += MessageToJson(event)
    for part in set(_base64_of(text)):
        text += part
    return text


def _base64_of(text: str) -> list[str]:
    decoded = []
    for word in text.split('"'):
        try:
            decoded.append(base64.b64decode(word, validate=True).decode(errors="replace"))
        except ValueError:
            continue
    return decoded
