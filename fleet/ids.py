"""Names by which entities are found in Temporal."""

from datetime import timedelta

CONTROL_QUEUE = "holdfast-control"


def deployment_workflow(name: str) -> str:
    return f"deployment/{name}"


def instance_workflow(instance_id: str) -> str:
    """``instance_id`` is ``<deployment>/<slot>-<hash>``."""
    return f"instance/{instance_id}"


def host_workflow(host_id: str) -> str:
    return f"host/{host_id}"


def defragment_workflow(deployment: str) -> str:
    return f"defragment/{deployment}"


def batch_workflow(batch_id: str) -> str:
    return f"batch/{batch_id}"


def batch_queue(control_queue: str) -> str:
    """Batches have slots of their own: they may all be taken for hours."""
    return f"{control_queue}-batches"


def host_queue(host_id: str) -> str:
    return f"host-{host_id}"


WORKFLOW_TASK_TIMEOUT = timedelta(seconds=5)
"""A task that a controller was working on when it was killed waits so long for another one to take it up."""

# Types, updates and signals by name: the API and the hosts speak to workflows without importing them.
DEPLOYMENT_WORKFLOW = "DeploymentWorkflow"
INSTANCE_WORKFLOW = "InstanceWorkflow"
HOST_WORKFLOW = "HostWorkflow"
DEFRAGMENT_WORKFLOW = "DefragmentWorkflow"
BATCH_WORKFLOW = "BatchWorkflow"

CHANGE_UPDATE = "change"
DELETE_UPDATE = "delete"
STEER_UPDATE = "steer_rollout"
WAKE_UPDATE = "wake"
LEAVE_UPDATE = "replace_instances"
APPROVE_RETRY_UPDATE = "approve_retry"
REGISTER_UPDATE = "register"
FORGET_UPDATE = "forget"
MAINTAIN_UPDATE = "maintain"
STOP_DEFRAGMENTING_UPDATE = "stop"
CANCEL_BATCH_UPDATE = "cancel"
PAUSE_BATCH_UPDATE = "pause"
APPROVE_REPLACEMENT_UPDATE = "approve_replacement"

ENGINE_REPORTED_SIGNAL = "engine_reported"
CAPACITY_SIGNAL = "capacity_changed"
HOST_LOST_SIGNAL = "host_lost"
ENGINE_UNKNOWN_SIGNAL = "engine_unknown"
STOP_SIGNAL = "stop"
INSTANCE_NEWS_SIGNAL = "instance_news"
LEAVE_SIGNAL = "instances_leave"
CLAIMS_CHANGED_SIGNAL = "claims_changed"
