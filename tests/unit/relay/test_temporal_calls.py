"""What of a host's request reaches Temporal."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.enums.v1 import TaskQueueKind, TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.worker.v1 import WorkerHeartbeat
from temporalio.api.workflowservice.v1 import request_response_pb2 as api

from api.relay.ownership import TaskTokens
from api.relay.refusal import Refused
from api.relay.temporal_calls import ALLOWED, KNOWN_METHODS, Passage

TOKENS = TaskTokens("master")
MINE = Passage("box-1", "models", TOKENS)
OWN_QUEUE = TaskQueue(name="host-box-1", kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL)


def prepared(method: str, request: Any) -> Any:
    return ALLOWED[method].request().FromString(MINE.prepare(method, request.SerializeToString()))


def refusal(method: str, request: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        MINE.prepare(method, request.SerializeToString())
    return refused.value


def valid(method: str) -> Any:
    """The least that passes."""
    request = ALLOWED[method].request()
    if "namespace" in request.DESCRIPTOR.fields_by_name:
        request.namespace = "models"
    if "task_token" in request.DESCRIPTOR.fields_by_name:
        request.task_token = TOKENS.seal(b"token", "box-1")
    if method == "PollActivityTaskQueue":
        request.task_queue.CopyFrom(OWN_QUEUE)
    if method == "ShutdownWorker":
        request.task_queue = "host-box-1"
    return request


@pytest.mark.parametrize("method", ALLOWED)
def test_the_least_that_a_worker_says_passes(method: str) -> None:
    sent = prepared(method, valid(method))
    if "task_token" in sent.DESCRIPTOR.fields_by_name:
        assert sent.task_token == b"token"


@pytest.mark.parametrize("method", sorted(KNOWN_METHODS - set(ALLOWED)))
def test_all_other_methods_are_refused(method: str) -> None:
    with pytest.raises(Refused, match="not for hosts") as refused:
        MINE.prepare(method, b"")
    assert refused.value.status is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("method", [m for m in ALLOWED if m != "GetSystemInfo"])
@pytest.mark.parametrize("namespace", ["", "default", "MODELS", "models ", "temporal-system"])
def test_another_namespace_is_refused(method: str, namespace: str) -> None:
    request = valid(method)
    request.namespace = namespace
    assert refusal(method, request).reason == "namespace"


@pytest.mark.parametrize(
    "queue",
    [
        TaskQueue(name="holdfast-control"),
        TaskQueue(name="host-box-2"),
        TaskQueue(name="host-box-1 "),
        TaskQueue(name="HOST-BOX-1"),
        TaskQueue(name="/_sys/host-box-1/1"),
        TaskQueue(name=""),
        TaskQueue(name="host-box-1", kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY),
        TaskQueue(name="host-box-1", normal_name="holdfast-control"),
    ],
    ids=str,
)
def test_only_the_own_normal_queue_is_polled(queue: TaskQueue) -> None:
    assert (
        refusal("PollActivityTaskQueue", api.PollActivityTaskQueueRequest(namespace="models", task_queue=queue)).reason
        == "queue"
    )


def test_a_poll_says_nothing_of_versions_deployments_and_command_queues() -> None:
    request = valid("PollActivityTaskQueue")
    request.deployment_options.deployment_name = "evil"
    request.worker_version_capabilities.build_id = "evil"
    request.worker_version_capabilities.use_versioning = True
    request.worker_control_task_queue = "holdfast-control"
    request.worker_instance_key = "key"
    sent = prepared("PollActivityTaskQueue", request)
    assert not sent.HasField("deployment_options")
    assert not sent.HasField("worker_version_capabilities")
    assert sent.worker_control_task_queue == ""
    assert sent.worker_instance_key == "key"


@pytest.mark.parametrize("method", [m for m in ALLOWED if m.startswith(("Respond", "RecordActivity"))])
@pytest.mark.parametrize(
    "token",
    [b"", b"token", TOKENS.seal(b"token", "box-2"), TaskTokens("other").seal(b"token", "box-1")],
    ids=["empty", "raw", "other_host", "other_key"],
)
def test_only_own_tasks_are_answered(method: str, token: bytes) -> None:
    request = valid(method)
    request.task_token = token
    refused = refusal(method, request)
    assert (refused.status, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "token")


def test_a_result_and_the_details_of_a_heartbeat_arrive_whole() -> None:
    payloads = Payloads(payloads=[Payload(data=b"x" * 1000, metadata={"encoding": b"json/plain"})])
    completed = valid("RespondActivityTaskCompleted")
    completed.result.CopyFrom(payloads)
    assert prepared("RespondActivityTaskCompleted", completed).result == payloads
    beat = valid("RecordActivityTaskHeartbeat")
    beat.details.CopyFrom(payloads)
    assert prepared("RecordActivityTaskHeartbeat", beat).details == payloads


def test_answers_to_a_task_say_nothing_of_deployments() -> None:
    for method in ("RespondActivityTaskCompleted", "RespondActivityTaskFailed", "RespondActivityTaskCanceled"):
        request = valid(method)
        request.deployment_options.deployment_name = "evil"
        request.worker_version.build_id = "evil"
        sent = prepared(method, request)
        assert not sent.HasField("deployment_options")
        assert not sent.HasField("worker_version")


@given(st.text(max_size=300))
def test_every_identity_begins_with_the_host(identity: str) -> None:
    request = valid("PollActivityTaskQueue")
    request.identity = identity
    sent = prepared("PollActivityTaskQueue", request)
    assert sent.identity.startswith("box-1/")
    assert len(sent.identity) < 150


@pytest.mark.parametrize("queue", ["", "holdfast-control", "host-box-2"])
def test_worker_heartbeats_are_for_the_own_queue(queue: str) -> None:
    request = valid("RecordWorkerHeartbeat")
    request.worker_heartbeat.extend([WorkerHeartbeat(task_queue="host-box-1"), WorkerHeartbeat(task_queue=queue)])
    assert refusal("RecordWorkerHeartbeat", request).reason == "queue"


def test_worker_heartbeats_carry_the_host_s_name() -> None:
    request = valid("RecordWorkerHeartbeat")
    request.worker_heartbeat.append(WorkerHeartbeat(task_queue="host-box-1", worker_identity="1@other"))
    assert prepared("RecordWorkerHeartbeat", request).worker_heartbeat[0].worker_identity == "box-1/1@other"


@pytest.mark.parametrize(
    "change",
    [
        lambda r: setattr(r, "task_queue", "holdfast-control"),
        lambda r: setattr(r, "task_queue", ""),
        lambda r: r.worker_heartbeat.CopyFrom(WorkerHeartbeat(task_queue="holdfast-control")),
        lambda r: r.task_queue_types.append(TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW),
    ],
)
def test_only_own_workers_are_shut_down(change: Callable[[Any], None]) -> None:
    request = valid("ShutdownWorker")
    change(request)
    assert refusal("ShutdownWorker", request).reason == "queue"


def test_a_sticky_queue_of_somebody_else_is_not_shut_down() -> None:
    request = valid("ShutdownWorker")
    request.sticky_task_queue = "controller-sticky"
    assert prepared("ShutdownWorker", request).sticky_task_queue == ""


def test_fields_that_this_relay_does_not_know_do_not_pass() -> None:
    unknown = b"\xfa\x3e\x04evil"  # field 1007
    for method in ALLOWED:
        assert b"evil" not in MINE.prepare(method, valid(method).SerializeToString() + unknown)
    nested = WorkerHeartbeat.FromString(WorkerHeartbeat(task_queue="host-box-1").SerializeToString() + unknown)
    request = valid("RecordWorkerHeartbeat")
    request.worker_heartbeat.append(nested)
    assert b"evil" in request.SerializeToString()
    assert b"evil" not in MINE.prepare("RecordWorkerHeartbeat", request.SerializeToString())


@given(st.sampled_from(sorted(ALLOWED)), st.binary(max_size=200))
def test_noise_is_refused_or_harmless(method: str, noise: bytes) -> None:
    try:
        sent = ALLOWED[method].request().FromString(MINE.prepare(method, noise))
    except Refused:
        return
    assert method == "GetSystemInfo" or sent.namespace == "models"


def test_a_task_goes_to_the_host_with_its_token_sealed_and_else_as_it_is() -> None:
    task = api.PollActivityTaskQueueResponse(task_token=b"raw", activity_id="7", attempt=3)
    given_out = api.PollActivityTaskQueueResponse.FromString(
        MINE.finish("PollActivityTaskQueue", task.SerializeToString())
    )
    assert TOKENS.open(given_out.task_token, "box-1") == b"raw"
    given_out.task_token = b"raw"
    assert given_out == task


def test_a_poll_that_brought_nothing_stays_empty() -> None:
    empty = api.PollActivityTaskQueueResponse().SerializeToString()
    assert MINE.finish("PollActivityTaskQueue", empty) == empty
