"""How workflows that Temporal has lost are found and begun anew."""

from typing import Any

import pytest
from temporalio.client import WorkflowExecutionStatus
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCStatusCode

from fleet.errors import Unavailable
from fleet.hosts import Host
from fleet.instances import Instance, InstanceNews
from fleet.states import InstanceState
from tests.unit.api.test_temporal_client import DEPLOYMENT, HOST, client, rpc

INSTANCE = Instance.model_validate(
    {
        "instance_id": "chat/2-a",
        "deployment": "chat",
        "slot": 2,
        "revision": 3,
        "launch": 4,
        "spec": {"engine": "llama_cpp", "engine_version": "1", "model_path": "m.gguf", "served_name": "chat"},
    }
)
KNOWN = Host(host_id="h1", name="box", registrations=5)


async def test_what_is_taken_up_is_found_by_the_same_ids_as_ever() -> None:
    workflows, fake = client()
    assert await workflows.take_up_host(KNOWN)
    assert await workflows.take_up_instance(INSTANCE)
    assert await workflows.take_up_deployment(DEPLOYMENT)
    assert fake.calls == [
        ("start", "HostWorkflow", "host/h1", "holdfast-control", "host box"),
        ("start", "InstanceWorkflow", "instance/chat/2-a", "holdfast-control", "replica 2 of chat, revision 3"),
        ("start", "DeploymentWorkflow", "deployment/chat", "holdfast-control", "chat: m.gguf"),
    ]
    assert fake.inputs == [KNOWN, INSTANCE, DEPLOYMENT]


async def test_what_runs_is_not_taken_up() -> None:
    workflows, _ = client(WorkflowAlreadyStartedError("host/h1", "HostWorkflow"))
    assert not await workflows.take_up_host(KNOWN)
    assert not await workflows.take_up_instance(INSTANCE)
    assert not await workflows.take_up_deployment(DEPLOYMENT)


@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        (WorkflowExecutionStatus.RUNNING, set()),
        (WorkflowExecutionStatus.TERMINATED, {"host/h1"}),
        (WorkflowExecutionStatus.COMPLETED, {"host/h1"}),
        (rpc(RPCStatusCode.NOT_FOUND), {"host/h1"}),
    ],
    ids=["runs", "terminated", "completed", "never was"],
)
async def test_only_a_workflow_that_runs_is_not_missing(answer: Any, missing: set[str]) -> None:
    assert await client(answer)[0].missing(["host/h1"]) == missing


async def test_a_look_at_a_temporal_that_is_away_finds_nothing_missing_but_fails() -> None:
    with pytest.raises(Unavailable):
        await client(rpc(RPCStatusCode.UNAVAILABLE))[0].missing(["host/h1"])


async def test_news_for_what_has_ended_are_dropped() -> None:
    workflows, fake = client(rpc(RPCStatusCode.NOT_FOUND))
    await workflows.tell_deployment("chat", InstanceNews(instance_id="chat/2-a", state=InstanceState.READY))
    await workflows.tell_host_lost("chat/2-a", "h1")
    assert fake.calls == [
        ("handle", "deployment/chat"),
        ("signal", "instance_news"),
        ("handle", "instance/chat/2-a"),
        ("signal", "host_lost"),
    ]
    assert await workflows.instances_of("chat") == set()


async def test_a_host_whose_workflow_was_lost_registers_as_it_was_known() -> None:
    workflows, fake = client()
    await workflows.register_host(HOST, KNOWN)
    assert fake.inputs == [KNOWN]
