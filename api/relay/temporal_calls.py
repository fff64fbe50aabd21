"""Which of Temporal's calls a host may make, and what is looked at in each: everything that names a namespace, a queue,
a worker or a task.

Requests are rebuilt from what may be said: what is not named here does not reach Temporal, and neither does any field
that a newer client may know.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError, Message
from temporalio.api.enums.v1 import TaskQueueKind, TaskQueueType
from temporalio.api.workflowservice.v1 import request_response_pb2 as api

from api.relay.ownership import ForeignToken, TaskTokens
from api.relay.refusal import Refused
from fleet.ids import host_queue

SERVICE = "/temporal.api.workflowservice.v1.WorkflowService/"
POLL = "PollActivityTaskQueue"
_IDENTITY_MAX = 120


@dataclass(frozen=True)
class Passage:
    """What one host may say to Temporal."""

    host_id: str
    namespace: str
    tokens: TaskTokens

    def prepare(self, method: str, request: bytes) -> bytes:
        """The request as it goes to Temporal. Raises Refused."""
        allowed = ALLOWED.get(method)
        if allowed is None:
            raise _denied("method", f"{method[:80]} is not for hosts")
        message = allowed.request()
        try:
            message.ParseFromString(request)
        except DecodeError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "malformed", f"not a {method} request") from error
        message.DiscardUnknownFields()
        kept = allowed.request()
        for name in allowed.keeps:
            _copy_field(message, kept, name)
        allowed.check(self, kept)
        return bytes(kept.SerializeToString())

    def finish(self, method: str, answer: bytes) -> bytes:
        """Temporal's answer as it goes to the host."""
        change = ALLOWED[method].answer
        return answer if change is None else change(self, answer)

    # -- what is looked at ---------------------------------------------------------------------------------------

    def in_our_namespace(self, request: Any) -> None:
        if request.namespace != self.namespace:
            raise _denied("namespace", f"hosts work in namespace {self.namespace!r} only")

    def signed(self, request: Any) -> None:
        """Who did it is for us to say; which of its processes, for the host."""
        self.in_our_namespace(request)
        said = request.identity.removeprefix(f"{self.host_id}/")
        request.identity = f"{self.host_id}/{said[:_IDENTITY_MAX]}"

    def own_queue(self, name: str) -> None:
        if name != host_queue(self.host_id):
            raise _denied("queue", f"queue {name[:80]!r} is not this host's")

    def poll(self, request: Any) -> None:
        self.signed(request)
        queue = request.task_queue
        self.own_queue(queue.name)
        if queue.normal_name or queue.kind == TaskQueueKind.TASK_QUEUE_KIND_STICKY:
            raise _denied("queue", "hosts poll normal queues only")

    def own_task(self, request: Any) -> None:
        self.signed(request)
        try:
            request.task_token = self.tokens.open(request.task_token, self.host_id)
        except ForeignToken as error:
            raise _denied("token", "the task was not given to this host") from error

    def own_workers(self, request: Any) -> None:
        self.signed(request)
        for heartbeat in request.worker_heartbeat:
            self.own_worker(heartbeat)

    def own_worker(self, heartbeat: Any) -> None:
        self.own_queue(heartbeat.task_queue)
        heartbeat.worker_identity = f"{self.host_id}/{heartbeat.worker_identity[:_IDENTITY_MAX]}"
        heartbeat.ClearField("deployment_version")

    def leaving_worker(self, request: Any) -> None:
        self.signed(request)
        self.own_queue(request.task_queue)
        if set(request.task_queue_types) - {TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY}:
            raise _denied("queue", "hosts have workers for activities only")
        if request.HasField("worker_heartbeat"):
            self.own_worker(request.worker_heartbeat)

    def anything(self, request: Any) -> None:
        pass

    # -- what is changed in answers ------------------------------------------------------------------------------

    def sealed_task(self, answer: bytes) -> bytes:
        task = api.PollActivityTaskQueueResponse.FromString(answer)
        if not task.task_token:
            return answer  # nothing to do for now
        task.task_token = self.tokens.seal(task.task_token, self.host_id)
        return task.SerializeToString()

    def described_namespace(self, answer: bytes) -> bytes:
        """Without what a worker does not ask for: whose it is, how it is kept, where else it is."""
        whole = api.DescribeNamespaceResponse.FromString(answer).namespace_info
        kept = api.DescribeNamespaceResponse()
        for name in ("name", "state", "capabilities", "limits"):
            _copy_field(whole, kept.namespace_info, name)
        return kept.SerializeToString()


@dataclass(frozen=True)
class _Allowed:
    request: Callable[[], Any]
    check: Callable[[Passage, Any], None]
    keeps: tuple[str, ...]
    """Fields of the request that reach Temporal."""
    answer: Callable[[Passage, bytes], bytes] | None = None


_OF_A_WORKER = ("namespace", "identity")
_OF_A_TASK = ("task_token", "identity", "namespace", "resource_id")

ALLOWED: Mapping[str, _Allowed] = {
    POLL: _Allowed(
        api.PollActivityTaskQueueRequest,
        Passage.poll,
        # Not among them: versions and deployments of workers, which would be entities of their own in Temporal, and
        # a queue for commands to the worker, which it would have to poll.
        ("namespace", "task_queue", "poller_group_id", "identity", "worker_instance_key", "task_queue_metadata"),
        Passage.sealed_task,
    ),
    "RespondActivityTaskCompleted": _Allowed(
        api.RespondActivityTaskCompletedRequest, Passage.own_task, (*_OF_A_TASK, "result")
    ),
    "RespondActivityTaskFailed": _Allowed(
        api.RespondActivityTaskFailedRequest,
        Passage.own_task,
        (*_OF_A_TASK, "failure", "last_heartbeat_details", "cause"),
    ),
    "RespondActivityTaskCanceled": _Allowed(
        api.RespondActivityTaskCanceledRequest, Passage.own_task, (*_OF_A_TASK, "details")
    ),
    "RecordActivityTaskHeartbeat": _Allowed(
        api.RecordActivityTaskHeartbeatRequest, Passage.own_task, (*_OF_A_TASK, "details")
    ),
    "RecordWorkerHeartbeat": _Allowed(
        api.RecordWorkerHeartbeatRequest, Passage.own_workers, (*_OF_A_WORKER, "worker_heartbeat")
    ),
    "ShutdownWorker": _Allowed(
        api.ShutdownWorkerRequest,
        Passage.leaving_worker,
        # Not the sticky queue: no worker of activities has one, and the controllers' are none of a host's business.
        (*_OF_A_WORKER, "reason", "worker_heartbeat", "worker_instance_key", "task_queue", "task_queue_types"),
    ),
    "GetSystemInfo": _Allowed(api.GetSystemInfoRequest, Passage.anything, ()),
    "DescribeNamespace": _Allowed(
        api.DescribeNamespaceRequest, Passage.in_our_namespace, ("namespace",), Passage.described_namespace
    ),
}

KNOWN_METHODS = frozenset(
    name.removesuffix("Request") for name in api.DESCRIPTOR.message_types_by_name if name.endswith("Request")
)
"""What may stand in counters and the audit log as it was sent: anything else could be a text of any length."""


def _copy_field(source: Message, target: Message, name: str) -> None:
    field = source.DESCRIPTOR.fields_by_name[name]
    value = getattr(source, name)
    if field.is_repeated:
        getattr(target, name).extend(value)
    elif field.message_type is None:
        setattr(target, name, value)
    elif source.HasField(cast(Any, name)):
        getattr(target, name).CopyFrom(value)


def _denied(reason: str, text: str) -> Refused:
    return Refused(grpc.StatusCode.PERMISSION_DENIED, reason, text)
