"""A host's credential with a raw Temporal client, through the real relay to the real Temporal: it can do its own work
and nothing else, and whatever else it tries is in the audit log."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from temporalio import activity, workflow
from temporalio.api.enums.v1 import TaskQueueKind
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.worker.v1 import WorkerHeartbeat
from temporalio.api.workflowservice.v1 import request_response_pb2 as api
from temporalio.client import AsyncActivityCancelledError, AsyncActivityHandle, Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api.relay.temporal_calls import KNOWN_METHODS, SERVICE
from fleet.ids import host_queue
from fleet.temporal import connect
from tests.raw_host import RawHost
from tests.relay_stack import RelayStack
from tests.stack import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CONTROL = "control-of-test"


@workflow.defn
class OneActivity:
    """Asks a host for something and waits for it."""

    @workflow.run
    async def run(self, kind: str, queue: str) -> str:
        return await workflow.execute_activity(
            kind,
            task_queue=queue,
            result_type=str,
            start_to_close_timeout=timedelta(seconds=100),
            heartbeat_timeout=timedelta(seconds=20),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )


@dataclass
class OnHost:
    """The activities of a host, and the task tokens that it was given."""

    tokens: list[bytes] = field(default_factory=list)

    @activity.defn
    async def quick(self) -> str:
        for beat in range(5):
            activity.heartbeat(beat)
            await asyncio.sleep(0.05)
        return "done"

    @activity.defn
    async def failing(self) -> str:
        raise ValueError("as told")

    @activity.defn
    async def later(self) -> str:
        self.tokens.append(activity.info().task_token)
        activity.raise_complete_async()

    # What a controller asks of every host.
    @activity.defn
    async def hold_lease(self, _: dict[str, Any]) -> None:
        activity.raise_complete_async()

    @activity.defn
    async def answer_roll_call(self) -> None:
        pass


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayStack]:
    made = RelayStack(tmp_path_factory.mktemp("relay"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
async def ours(stack: RelayStack) -> AsyncIterator[Client]:
    """The control plane's own client, with a worker for ``OneActivity``."""
    client = await connect(stack.settings)
    async with Worker(client, task_queue=CONTROL, workflows=[OneActivity], workflow_runner=UnsandboxedWorkflowRunner()):
        yield client


@pytest.fixture(scope="module")
async def host(stack: RelayStack) -> RawHost:
    return await stack.new_host("mine")


@pytest.fixture(scope="module")
async def theirs(host: RawHost, ours: Client) -> Client:
    """A client with the host's credential."""
    return await host.temporal()


@asynccontextmanager
async def working(host: RawHost) -> AsyncIterator[OnHost]:
    does = OnHost()
    client = await host.temporal()
    every = [does.quick, does.failing, does.later, does.hold_lease, does.answer_roll_call]
    async with Worker(
        client,
        task_queue=host_queue(host.host_id),
        activities=every,
        max_heartbeat_throttle_interval=timedelta(milliseconds=50),
        graceful_shutdown_timeout=timedelta(seconds=1),
    ):
        yield does


async def ask_for(ours: Client, kind: str, host: RawHost) -> Any:
    queue = host_queue(host.host_id)
    return await ours.start_workflow(OneActivity.run, args=[kind, queue], id=f"test-{uuid.uuid4()}", task_queue=CONTROL)


async def test_an_activity_worker_does_its_work_through_the_relay(ours: Client, host: RawHost) -> None:
    async with working(host):
        assert await (await ask_for(ours, "quick", host)).result() == "done"


async def test_a_task_is_held_by_its_token_and_hears_that_it_is_cancelled_and_then_that_it_is_gone(
    ours: Client, host: RawHost, theirs: Client
) -> None:
    async with working(host) as does:
        asked = await ask_for(ours, "later", host)
        token = await _first(does.tokens)
        task = theirs.get_async_activity_handle(task_token=token)
        await task.heartbeat("alive")
        await asked.cancel()
        told = await _cancellation_of(task)
        assert told.details is not None
        assert told.details.cancel_requested
        await task.report_cancellation()
        with pytest.raises(RPCError) as gone:
            await task.heartbeat("alive")
    assert gone.value.status is RPCStatusCode.NOT_FOUND
    assert [d.type_url.rpartition("/")[2] for d in gone.value.grpc_status.details] == [
        "temporal.api.errordetails.v1.NotFoundFailure"
    ]


async def _cancellation_of(task: AsyncActivityHandle) -> AsyncActivityCancelledError:
    async with asyncio.timeout(20):
        while True:
            try:
                await task.heartbeat("alive")
            except AsyncActivityCancelledError as told:
                return told
            await asyncio.sleep(0.05)


async def _first(tokens: list[bytes]) -> bytes:
    async with asyncio.timeout(20):
        while not tokens:
            await asyncio.sleep(0.02)
    return tokens[0]


WRONG: dict[str, Callable[[Client], Awaitable[Any]]] = {
    "StartWorkflowExecution": lambda c: c.start_workflow(
        "DeploymentWorkflow", id="evil", task_queue="holdfast-control"
    ),
    "SignalWorkflowExecution": lambda c: c.get_workflow_handle("deployment/x").signal("stop"),
    "QueryWorkflow": lambda c: c.get_workflow_handle("deployment/x").query("state"),
    "TerminateWorkflowExecution": lambda c: c.get_workflow_handle("deployment/x").terminate(),
    "RequestCancelWorkflowExecution": lambda c: c.get_workflow_handle("deployment/x").cancel(),
    "UpdateWorkflowExecution": lambda c: c.get_workflow_handle("deployment/x").execute_update("delete"),
    "DescribeWorkflowExecution": lambda c: c.get_workflow_handle("deployment/x").describe(),
    "GetWorkflowExecutionHistory": lambda c: c.get_workflow_handle("deployment/x").fetch_history(),
    "ListWorkflowExecutions": lambda c: _all(c.list_workflows()),
    "CountWorkflowExecutions": lambda c: c.count_workflows(),
    "ListSchedules": lambda c: _all_later(c.list_schedules()),
    "DescribeTaskQueue": lambda c: c.workflow_service.describe_task_queue(
        api.DescribeTaskQueueRequest(namespace=c.namespace, task_queue=TaskQueue(name="holdfast-control"))
    ),
    "GetClusterInfo": lambda c: c.workflow_service.get_cluster_info(api.GetClusterInfoRequest()),
    "ListNamespaces": lambda c: c.workflow_service.list_namespaces(api.ListNamespacesRequest()),
    "PollWorkflowTaskQueue": lambda c: c.workflow_service.poll_workflow_task_queue(
        api.PollWorkflowTaskQueueRequest(namespace=c.namespace, task_queue=TaskQueue(name="holdfast-control"))
    ),
    "RespondActivityTaskCompletedById": lambda c: c.get_async_activity_handle(
        workflow_id="host/x", run_id=None, activity_id="1"
    ).complete(),
    "RecordActivityTaskHeartbeatById": lambda c: c.get_async_activity_handle(
        workflow_id="host/x", run_id=None, activity_id="1"
    ).heartbeat(),
}


async def _all(items: Any) -> None:
    async for _ in items:
        pass


async def _all_later(items: Any) -> None:
    await _all(await items)


@pytest.mark.parametrize("method", WRONG)
async def test_what_is_not_a_host_s_business_is_refused_and_in_the_audit_log(
    stack: RelayStack, host: RawHost, theirs: Client, method: str
) -> None:
    before = stack.metric("holdfast_relay_refusals_total", action=f"temporal.{method}", reason="method")
    with pytest.raises(RPCError) as refused:
        await WRONG[method](theirs)
    assert refused.value.status is RPCStatusCode.PERMISSION_DENIED
    row = eventually(lambda: stack.audited(f"host:{host.host_id}", f"temporal.{method}"), within=10)[0]
    assert (row.outcome, row.reason, row.peer) == ("refused", "method", "127.0.0.1")
    assert stack.metric("holdfast_relay_refusals_total", action=f"temporal.{method}", reason="method") > before


async def test_every_other_method_that_temporal_has_is_refused_too(host: RawHost) -> None:
    allowed = set()
    for method in sorted(KNOWN_METHODS):
        try:
            await host.ask(SERVICE + method, b"", timeout=20)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.PERMISSION_DENIED and "is not for hosts" in (error.details() or ""):
                continue
        allowed.add(method)
    assert allowed == {
        "DescribeNamespace",
        "GetSystemInfo",
        "PollActivityTaskQueue",
        "RecordActivityTaskHeartbeat",
        "RecordWorkerHeartbeat",
        "RespondActivityTaskCanceled",
        "RespondActivityTaskCompleted",
        "RespondActivityTaskFailed",
        "ShutdownWorker",
    }


@pytest.mark.parametrize(
    "path",
    [
        "/temporal.api.operatorservice.v1.OperatorService/DeleteNamespace",
        "/temporal.api.cloud.cloudservice.v1.CloudService/GetUsers",
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        SERVICE + "../" + "StartWorkflowExecution",
        "/holdfast.v1.Hosts/Forget",
        "/" + "x" * 4000,
    ],
)
async def test_other_services_are_refused_and_audited_without_their_length(
    stack: RelayStack, host: RawHost, path: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.ask(path, b"")
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    rows = eventually(lambda: [r for r in stack.audited(action="other") if r.target == path[:100]], within=10)
    assert rows[0].reason == "method"


def _poll(host: RawHost, **changes: Any) -> api.PollActivityTaskQueueRequest:
    queue = TaskQueue(name=host_queue(host.host_id), kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL)
    return api.PollActivityTaskQueueRequest(**{"namespace": host.namespace, "task_queue": queue, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task_queue": TaskQueue(name="holdfast-control")}, "queue"),
        ({"task_queue": TaskQueue(name="host-other-abc123")}, "queue"),
        ({"task_queue": TaskQueue(name="")}, "queue"),
        ({"namespace": "temporal-system"}, "namespace"),
        ({"namespace": ""}, "namespace"),
    ],
)
async def test_polling_elsewhere_is_refused_and_audited(
    stack: RelayStack, host: RawHost, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.ask(SERVICE + "PollActivityTaskQueue", _poll(host, **changes).SerializeToString())
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    _until_refused(stack, host, "temporal.PollActivityTaskQueue", reason)


async def test_a_whole_worker_for_another_queue_gets_nothing(
    stack: RelayStack, ours: Client, host: RawHost, theirs: Client
) -> None:
    polled = {"action": "temporal.PollActivityTaskQueue", "reason": "queue"}
    before = stack.metric("holdfast_relay_refusals_total", **polled)
    does = OnHost()
    asked = await ours.start_workflow(
        OneActivity.run, args=["quick", CONTROL], id=f"test-{uuid.uuid4()}", task_queue=CONTROL
    )
    working = asyncio.create_task(Worker(theirs, task_queue=CONTROL, activities=[does.quick]).run())
    try:
        async with asyncio.timeout(20):
            while stack.metric("holdfast_relay_refusals_total", **polled) < before + 3:
                await asyncio.sleep(0.1)
        pending = (await asked.describe()).raw_description.pending_activities
        assert [p.attempt for p in pending] == [1]
        assert not pending[0].HasField("last_started_time")
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await asked.terminate()


@pytest.fixture
async def foreign(stack: RelayStack, ours: Client) -> AsyncIterator[tuple[RawHost, bytes, Any]]:
    """Another host, the token of a task that it holds, as it was given it, and the workflow that waits for it."""
    other = await stack.new_host("other")
    async with working(other) as does:
        asked = await ask_for(ours, "later", other)
        token = await _first(does.tokens)
        yield other, token, asked
        await (await other.temporal()).get_async_activity_handle(task_token=token).complete("by its owner")
        assert await asked.result() == "by its owner"


def _answers(namespace: str, token: bytes) -> dict[str, bytes]:
    fields = {"namespace": namespace, "task_token": token}
    return {
        "RespondActivityTaskCompleted": api.RespondActivityTaskCompletedRequest(**fields).SerializeToString(),
        "RespondActivityTaskFailed": api.RespondActivityTaskFailedRequest(**fields).SerializeToString(),
        "RespondActivityTaskCanceled": api.RespondActivityTaskCanceledRequest(**fields).SerializeToString(),
        "RecordActivityTaskHeartbeat": api.RecordActivityTaskHeartbeatRequest(**fields).SerializeToString(),
    }


async def test_another_host_s_task_cannot_be_touched_with_its_token_nor_with_the_raw_one(
    stack: RelayStack, host: RawHost, foreign: tuple[RawHost, bytes, Any], ours: Client
) -> None:
    other, token, _ = foreign
    raw = _raw_token(stack, other, token)
    assert (await _accepted_by_temporal(ours, raw)) is True  # it is the real one
    for forged in (token, raw, raw + b"\x00", b"", b"\x01", token[:-1], b"\x01" + raw):
        for method, request in _answers(host.namespace, forged).items():
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await host.ask(SERVICE + method, request)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED, method
    for method in _answers("", b""):
        _until_refused(stack, host, f"temporal.{method}", "token")


def _until_refused(stack: RelayStack, host: RawHost, action: str, reason: str) -> None:
    eventually(lambda: [r for r in stack.audited(f"host:{host.host_id}", action) if r.reason == reason], within=10)


async def test_its_own_token_in_another_namespace_is_refused(
    host: RawHost, foreign: tuple[RawHost, bytes, Any]
) -> None:
    other, token, _ = foreign
    for method, request in _answers("temporal-system", token).items():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await other.ask(SERVICE + method, request)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_even_the_owner_cannot_use_the_raw_token(stack: RelayStack, foreign: tuple[RawHost, bytes, Any]) -> None:
    other, token, _ = foreign
    request = _answers(other.namespace, _raw_token(stack, other, token))["RecordActivityTaskHeartbeat"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await other.ask(SERVICE + "RecordActivityTaskHeartbeat", request)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def _raw_token(stack: RelayStack, host: RawHost, token: bytes) -> bytes:
    from api.relay.ownership import TaskTokens
    from fleet.access.keys import master_secret

    return TaskTokens(master_secret(stack.settings)).open(token, host.host_id)


async def _accepted_by_temporal(ours: Client, raw: bytes) -> bool:
    await ours.get_async_activity_handle(task_token=raw).heartbeat()
    return True


@pytest.mark.parametrize("method", ["RecordWorkerHeartbeat", "ShutdownWorker"])
async def test_a_host_cannot_speak_for_workers_of_another_queue(host: RawHost, method: str) -> None:
    said = WorkerHeartbeat(worker_instance_key="x", task_queue="holdfast-control")
    request: Any = (
        api.RecordWorkerHeartbeatRequest(namespace=host.namespace, worker_heartbeat=[said])
        if method == "RecordWorkerHeartbeat"
        else api.ShutdownWorkerRequest(
            namespace=host.namespace, task_queue=host_queue(host.host_id), worker_heartbeat=said
        )
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.ask(SERVICE + method, request.SerializeToString())
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_what_a_host_does_carries_its_name_in_temporal(ours: Client, host: RawHost) -> None:
    async with working(host):
        asked = await ask_for(ours, "quick", host)
        await asked.result()
    history = await asked.fetch_history()
    started = [e for e in history.events if e.HasField("activity_task_started_event_attributes")]
    assert started[0].activity_task_started_event_attributes.identity.startswith(f"{host.host_id}/")


async def test_a_host_makes_no_worker_deployment_or_build_id_in_temporal(ours: Client, host: RawHost) -> None:
    request = _poll(host)
    request.deployment_options.deployment_name = "evil"
    request.deployment_options.build_id = "1"
    request.deployment_options.worker_versioning_mode = 2
    request.worker_control_task_queue = "temporal-sys/worker-commands/evil"
    with contextlib.suppress(grpc.aio.AioRpcError):  # there may be nothing to do
        await host.ask(SERVICE + "PollActivityTaskQueue", request.SerializeToString(), timeout=3)
    answer = await ours.workflow_service.list_worker_deployments(
        api.ListWorkerDeploymentsRequest(namespace=ours.namespace)
    )
    assert not answer.worker_deployments


async def test_the_namespace_is_described_without_whose_it_is(theirs: Client) -> None:
    answer = await theirs.workflow_service.describe_namespace(api.DescribeNamespaceRequest(namespace=theirs.namespace))
    assert answer.namespace_info.name == theirs.namespace
    assert not answer.HasField("config")
    assert not answer.HasField("replication_config")
    assert not answer.namespace_info.id


async def test_a_copy_of_a_host_s_disk_is_told_off_and_the_host_shows_it(stack: RelayStack) -> None:
    original = await stack.new_host("original")
    copy = original.copy()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await copy.register()
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "another machine" in (refused.value.details() or "")
    assert dict(refused.value.trailing_metadata() or ())["holdfast-reason"] == "other_machine"
    assert "another machine" in stack.row(original.host_id).message
    rows = eventually(lambda: stack.audited(f"host:{original.host_id}", "host.register"), within=10)
    assert rows[0].reason == "other_machine"
    with pytest.raises(RuntimeError, match="another machine"):
        await copy.temporal()
    assert (await original.temporal()).namespace == original.namespace


async def test_the_relay_killed_under_load_costs_the_host_no_task(
    stack: RelayStack, ours: Client, host: RawHost, theirs: Client
) -> None:
    async with working(host) as does:
        held = await ask_for(ours, "later", host)
        token = await _first(does.tokens)
        asked = [await ask_for(ours, "quick", host) for _ in range(5)]
        stack.relay.kill()
        stack.relay.start()
        asked += [await ask_for(ours, "quick", host) for _ in range(5)]
        eventually(stack._ready, within=30)
        await theirs.get_async_activity_handle(task_token=token).complete("the old token is good in the new process")
        assert await asyncio.wait_for(held.result(), 60) == "the old token is good in the new process"
        done = await asyncio.wait_for(asyncio.gather(*(a.result() for a in asked)), 60)
    assert done == ["done"] * 10


async def test_without_temporal_the_relay_says_unavailable_so_that_clients_go_on_trying(
    stack: RelayStack, ours: Client, host: RawHost
) -> None:
    stack.temporal.kill()
    try:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await host.ask(SERVICE + "GetSystemInfo", b"")
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        stack.temporal.start()
    asked = await _once_it_is_back(lambda: ask_for(ours, "quick", host))
    await _once_it_is_back(host.temporal)
    async with working(host):
        assert await asyncio.wait_for(asked.result(), 60) == "done"


async def _once_it_is_back(call: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(60):
        while True:
            try:
                return await call()
            except (RPCError, RuntimeError):
                await asyncio.sleep(0.2)
