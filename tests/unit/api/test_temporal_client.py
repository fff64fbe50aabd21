"""What Temporal's answers become for a client of the API."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from temporalio.client import Client, WorkflowUpdateFailedError, WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from api import temporal_client
from api.temporal_client import WorkflowClient
from fleet.deployments import Accepted, Deployment, DeploymentChange, InstancesLeave
from fleet.errors import Conflict, HoldfastError, NotFound, PreconditionFailed, Unavailable
from fleet.hosts import HostRegistered, Maintain
from fleet.instances import EnginePhase, EngineReport
from fleet.specs import DeploymentSpec, ModelSource

DEPLOYMENT = Deployment(
    name="chat",
    spec=DeploymentSpec(model=ModelSource(path="models/m.gguf")),
    engine="llama_cpp",
    engine_version="1",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)
REPORT = EngineReport(instance_id="chat/1-a", fence=1, sequence=1, phase=EnginePhase.READY)
HOST = HostRegistered(host_id="h1", name="box", version="1", boot_id="b")
NEVER = "never"


class FakeClient:
    """Every call ends as ``answer`` says: raises it, returns it, or never ends."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.calls: list[tuple[Any, ...]] = []
        self.inputs: list[Any] = []
        """Of the workflows that were started."""

    def get_workflow_handle(self, workflow_id: str) -> "FakeClient":
        self.calls.append(("handle", workflow_id))
        return self

    async def start_workflow(self, workflow: str, given: Any, **options: Any) -> None:
        self.inputs.append(given)
        self.calls.append(("start", workflow, options["id"], options["task_queue"], options["static_summary"]))
        await self._end()

    async def execute_update(self, update: str, **_options: Any) -> Any:
        self.calls.append(("update", update))
        await self._end()
        return Accepted(generation=7)

    async def signal(self, name: str, _report: EngineReport, **_options: Any) -> None:
        self.calls.append(("signal", name))
        await self._end()

    async def describe(self, **_options: Any) -> "FakeClient":
        await self._end()
        return self

    async def query(self, _name: str, **_options: Any) -> Any:
        await self._end()
        return self.answer

    @property
    def status(self) -> Any:
        return self.answer

    async def _end(self) -> None:
        if self.answer == NEVER:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer


def client(answer: Any = None) -> tuple[WorkflowClient, FakeClient]:
    fake = FakeClient(answer)
    return WorkflowClient(cast(Client, fake)), fake


Call = Callable[[WorkflowClient], Awaitable[Any]]
CALLS: dict[str, Call] = {
    "create": lambda c: c.create_deployment(DEPLOYMENT),
    "change": lambda c: c.change_deployment("chat", DeploymentChange(stopped=True)),
    "delete": lambda c: c.delete_deployment("chat"),
    "report": lambda c: c.report_engine(REPORT),
    "approve": lambda c: c.approve_retry("chat/1-a"),
    "register": lambda c: c.register_host(HOST),
    "forget": lambda c: c.forget_host("h1"),
    "maintain": lambda c: c.maintain_host("h1", Maintain()),
    "approve_replacement": lambda c: c.approve_replacement("h1"),
    "leave": lambda c: c.replace_instances("chat", InstancesLeave(instance_ids=("chat/1-a",), reason="r")),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def rpc(status: RPCStatusCode) -> RPCError:
    return RPCError(f"it said {status.name}", status, b"")


async def test_each_entity_is_found_by_its_readable_id() -> None:
    workflows, fake = client()
    for call in CALLS.values():
        await call(workflows)
    assert fake.calls == [
        ("start", "DeploymentWorkflow", "deployment/chat", "holdfast-control", "chat: m.gguf"),
        ("handle", "deployment/chat"),
        ("update", "change"),
        ("handle", "deployment/chat"),
        ("update", "delete"),
        ("handle", "instance/chat/1-a"),
        ("signal", "engine_reported"),
        ("handle", "instance/chat/1-a"),
        ("update", "approve_retry"),
        ("start", "HostWorkflow", "host/h1", "holdfast-control", "host box"),
        ("handle", "host/h1"),
        ("update", "register"),
        ("handle", "host/h1"),
        ("update", "forget"),
        ("handle", "host/h1"),
        ("update", "maintain"),
        ("handle", "host/h1"),
        ("update", "approve_replacement"),
        ("handle", "deployment/chat"),
        ("update", "replace_instances"),
    ]


async def test_accepted_generation_is_passed_on() -> None:
    assert await client()[0].change_deployment("chat", DeploymentChange()) == Accepted(generation=7)


@every_call
@pytest.mark.parametrize("status", [RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED])
async def test_temporal_that_is_away_is_unavailable_with_a_remedy(call: Call, status: RPCStatusCode) -> None:
    with pytest.raises(Unavailable, match=f"it said {status.name}") as raised:
        await call(client(rpc(status))[0])
    assert "holdfast doctor" in raised.value.hint


@every_call
@pytest.mark.parametrize(
    "answer", [NEVER, WorkflowUpdateRPCTimeoutOrCancelledError(), RuntimeError("Failed client connect"), TimeoutError()]
)
async def test_no_answer_is_unavailable_and_asks_after_the_controller(
    call: Call, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporal_client, "_PATIENCE_S", 0.05)
    with pytest.raises(Unavailable, match="is a controller running"):
        await asyncio.wait_for(call(client(answer)[0]), 5)


@pytest.mark.parametrize("what", ["change", "delete", "report", "forget", "maintain", "approve_replacement", "leave"])
async def test_workflow_that_has_ended_is_not_found(what: str) -> None:
    with pytest.raises(NotFound, match="there is no"):
        await CALLS[what](client(rpc(RPCStatusCode.NOT_FOUND))[0])


async def test_name_that_runs_already_is_a_conflict() -> None:
    taken = WorkflowAlreadyStartedError("deployment/chat", "DeploymentWorkflow")
    with pytest.raises(Conflict, match="'chat' exists already") as raised:
        await client(taken)[0].create_deployment(DEPLOYMENT)
    assert raised.value.field == "name"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("GenerationMoved", PreconditionFailed),
        ("Deleting", Conflict),
        ("NothingToApprove", Conflict),
        ("UnknownInstance", NotFound),
        ("AcceptedUpdateCompletedWorkflow", NotFound),
        ("SomethingNew", Unavailable),
    ],
)
async def test_refusal_of_the_workflow_is_put_into_words(kind: str, expected: type[HoldfastError]) -> None:
    refused = WorkflowUpdateFailedError(ApplicationError("it moved", type=kind))
    with pytest.raises(expected) as raised:
        await client(refused)[0].change_deployment("chat", DeploymentChange())
    assert raised.value.hint
