"""All workflows, and how they are sandboxed: one place for worker, tests and replay."""

from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from workflows.batch import BatchWorkflow
from workflows.defragment import DefragmentWorkflow
from workflows.deployment import DeploymentWorkflow
from workflows.host import HostWorkflow
from workflows.instance import InstanceWorkflow

WORKFLOWS = [DeploymentWorkflow, InstanceWorkflow, HostWorkflow, DefragmentWorkflow, BatchWorkflow]


def workflow_runner() -> SandboxedWorkflowRunner:
    """Our own pure packages are shared with the sandbox: one copy in memory, one identity of each type."""
    restrictions = SandboxRestrictions.default.with_passthrough_modules("fleet", "activities", "workflows")
    return SandboxedWorkflowRunner(restrictions=restrictions)
