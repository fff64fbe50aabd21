"""Names by which entities are found in Temporal."""

CONTROL_QUEUE = "holdfast-control"


def deployment_workflow(name: str) -> str:
    return f"deployment/{name}"


def instance_workflow(instance_id: str) -> str:
    """``instance_id`` is ``<deployment>/<slot>-<hash>``."""
    return f"instance/{instance_id}"


def host_workflow(host_id: str) -> str:
    return f"host/{host_id}"


def host_queue(host_id: str) -> str:
    return f"host-{host_id}"


# Types, updates and signals by name: the API and the hosts speak to workflows without importing them.
DEPLOYMENT_WORKFLOW = "DeploymentWorkflow"
INSTANCE_WORKFLOW = "InstanceWorkflow"
HOST_WORKFLOW = "HostWorkflow"

CHANGE_UPDATE = "change"
DELETE_UPDATE = "delete"
REGISTER_UPDATE = "register"
FORGET_UPDATE = "forget"

ENGINE_REPORTED_SIGNAL = "engine_reported"
CAPACITY_SIGNAL = "capacity_changed"
HOST_LOST_SIGNAL = "host_lost"
STOP_SIGNAL = "stop"
INSTANCE_NEWS_SIGNAL = "instance_news"
