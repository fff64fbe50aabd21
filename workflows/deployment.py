"""One workflow per deployment: keeps as many instances of the right revision as are wanted."""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.workflow import ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from activities.contracts import (
        DeploymentName,
        DeploymentRecord,
        FleetContract,
        InstanceId,
        InstanceIds,
        ProjectionContract,
        TrafficContract,
        TrafficQuestion,
    )
    from fleet import ids
    from fleet.changes import accepted, change, leave, steer, wake, why_not, why_not_woken
    from fleet.deployment_status import describe, phase
    from fleet.deployments import (
        Accepted,
        Deployment,
        DeploymentChange,
        InstancesLeave,
        InstanceView,
        Wake,
        advance,
        hear,
        look,
    )
    from fleet.engines.derive import engine_spec
    from fleet.instances import Instance, InstanceNews, StopRequest
    from fleet.replicas import Plan, decide, next_deadline
    from fleet.rollouts import Steer, Template
    from fleet.temporal import DEPLOYMENT, KIND, MODEL, REVISION, STATE
    from workflows.handles import let_go
    from workflows.instance import InstanceWorkflow
    from workflows.projection import Numbers

_RECORD = workflow.LocalActivityConfig(
    start_to_close_timeout=timedelta(seconds=10),
    retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=5)),
)

_LOOKS_AGAIN = "plans again before it sleeps"


@workflow.defn(name=ids.DEPLOYMENT_WORKFLOW)
class DeploymentWorkflow:
    """Level-triggered: every wake-up compares what is with what should be."""

    @workflow.init
    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._numbers = Numbers(deployment.projection)
        self._recorded: Deployment | None = None
        self._attributes: tuple[str, int] | None = None

    @workflow.run
    async def run(self, deployment: Deployment) -> None:
        while not (plan := self._plan()).done:
            try:
                # A cancellation must not take a child away that the state already knows.
                await asyncio.shield(asyncio.create_task(self._carry_out(plan)))
                await self._record()
                if self._deployment is self._recorded and not plan.judge:  # a judgement may change the plan
                    if self._has_more_to_do():
                        continue
                    self._continue_as_new_if_due()
                    await self._sleep_until_changed()
            except (asyncio.CancelledError, ActivityError, ChildWorkflowError) as error:
                if not is_cancelled_exception(error):
                    raise
                # Of no use in Temporal's UI: what it stands for would run on with nobody to look after it.
                self._recorded = None  # what was being written may not have been
                workflow.logger.warning("cancellation ignored: use `holdfast delete %s`", self._deployment.name)
        await self._forget()

    @workflow.update(name=ids.CHANGE_UPDATE, description="Change what is wanted of this deployment")
    def change(self, wanted: DeploymentChange) -> Accepted:
        self._deployment = change(self._deployment, wanted, workflow.now())
        return accepted(self._deployment, wanted.key)

    @change.validator
    def _check_change(self, wanted: DeploymentChange) -> None:
        if self._deployment.deleting:
            raise ApplicationError(f"{self._deployment.name} is being deleted", type="Deleting", non_retryable=True)
        expected = wanted.if_generation
        repeated = wanted.key in self._deployment.change_keys
        if expected is not None and expected != self._deployment.generation and not repeated:
            raise ApplicationError(
                f"generation is {self._deployment.generation}, not {expected}",
                type="GenerationMoved",
                non_retryable=True,
            )

    @workflow.update(name=ids.WAKE_UPDATE, description="A request waits for it: start replicas if it is to have none")
    def wake(self, wanted: Wake) -> Accepted:
        self._deployment = wake(self._deployment, wanted, workflow.now())
        return Accepted(generation=self._deployment.generation)

    @wake.validator
    def _check_wake(self, wanted: Wake) -> None:
        # Refused when there is nothing to do: then no trace of it stays, however many gateways ask.
        kind, reason = why_not_woken(self._deployment)
        if kind:
            raise ApplicationError(reason, type=kind, non_retryable=True)

    @workflow.update(name=ids.DELETE_UPDATE, description="Stop all instances, then end")
    def delete(self) -> Accepted:
        if not self._deployment.deleting:
            self._deployment = self._deployment.with_(deleting=True, generation=self._deployment.generation + 1)
        return Accepted(generation=self._deployment.generation)

    @workflow.update(name=ids.STEER_UPDATE, description="Pause, resume, promote or abort the rollout in progress")
    def steer_rollout(self, wanted: Steer) -> Accepted:
        self._deployment = steer(self._deployment, wanted, workflow.now())
        return accepted(self._deployment, wanted.key)

    @steer_rollout.validator
    def _check_steering(self, wanted: Steer) -> None:
        if reason := why_not(self._deployment, wanted):
            raise ApplicationError(reason, type="CannotSteer", non_retryable=True)

    @workflow.update(name=ids.LEAVE_UPDATE, description="Replace instances: new ones first, then these go")
    def replace_instances(self, wanted: InstancesLeave) -> Accepted:
        self._deployment = leave(self._deployment, wanted)
        return Accepted(generation=self._deployment.generation)

    @replace_instances.validator
    def _check_instances(self, wanted: InstancesLeave) -> None:
        unknown = sorted(set(wanted.instance_ids) - set(self._deployment.instances))
        if unknown:
            raise ApplicationError(f"there is no instance {unknown[0]}", type="UnknownInstance", non_retryable=True)

    @workflow.signal(name=ids.LEAVE_SIGNAL, description="Replace them: for a drain, or for who needs their room")
    def instances_leave(self, wanted: InstancesLeave) -> None:
        self._deployment = leave(self._deployment, wanted)

    @workflow.signal(name=ids.INSTANCE_NEWS_SIGNAL)
    def instance_news(self, news: InstanceNews) -> None:
        self._deployment = hear(self._deployment, news)

    @workflow.query(description="The whole durable state")
    def state(self) -> Deployment:
        return self._deployment

    def _plan(self) -> Plan:
        self._deployment = advance(self._deployment, workflow.now())
        return decide(self._deployment, workflow.now())

    def _has_more_to_do(self) -> bool:
        """What came while a plan was carried out is in the record already, and nothing would wake us for it."""
        now = workflow.now()
        idle = decide(advance(self._deployment, now), now) == Plan()
        return not idle and workflow.patched(_LOOKS_AGAIN)

    async def _carry_out(self, plan: Plan) -> None:
        # The state says what we are about to do before we do it: a change that arrives meanwhile sees it.
        d = self._deployment
        started = [self._add(slot, d.template) for slot in plan.start]
        if d.rollout is not None and d.rollout.stable is not None:
            started += [self._add(slot, d.rollout.stable) for slot in plan.start_stable]
        for instance_id in plan.stop:
            self._mark_stopping(instance_id)
        await asyncio.gather(*map(self._start_instance, started), *map(self._stop_instance, plan.stop))
        if plan.judge:
            await self._compare()

    async def _compare(self) -> None:
        """Is the new revision as good as the old one?"""
        d = self._deployment
        if d.rollout is None or d.rollout.stable is None:
            return
        readings = await workflow.execute_activity_method(
            TrafficContract.read_traffic,
            TrafficQuestion(deployment=d.name, old_launch=d.rollout.stable.launch, new_launch=d.launch),
            start_to_close_timeout=timedelta(seconds=30),
            summary=f"how does revision {d.revision} do?",
        )
        self._deployment = look(self._deployment, d.launch, readings.old, readings.new, workflow.now())

    def _add(self, slot: int, template: Template) -> Instance:
        d = self._deployment
        instance = Instance(
            instance_id=f"{d.name}/{slot}-{workflow.uuid4().hex[:8]}",
            deployment=d.name,
            slot=slot,
            revision=template.revision,
            launch=template.launch,
            spec=engine_spec(d.name, template),
            restart=d.spec.restart,
            timings=d.timings,
        )
        view = InstanceView(instance_id=instance.instance_id, slot=slot, launch=template.launch)
        self._deployment = d.with_(instances={**d.instances, view.instance_id: view})
        return instance

    def _mark_stopping(self, instance_id: str) -> None:
        d = self._deployment
        view = d.instances[instance_id].model_copy(update={"stopping": True})
        self._deployment = d.with_(instances={**d.instances, instance_id: view})

    async def _start_instance(self, instance: Instance) -> None:
        try:
            child = await workflow.start_child_workflow(
                InstanceWorkflow.run,
                instance,
                id=ids.instance_workflow(instance.instance_id),
                task_timeout=ids.WORKFLOW_TASK_TIMEOUT,
                parent_close_policy=ParentClosePolicy.ABANDON,
                static_summary=f"replica {instance.slot} of {instance.deployment}, revision {instance.revision}",
            )
        except WorkflowAlreadyStartedError:
            workflow.logger.info("instance %s was started before", instance.instance_id)
        else:
            let_go(child)  # it tells us itself how it is

    async def _stop_instance(self, instance_id: str) -> None:
        handle = workflow.get_external_workflow_handle(ids.instance_workflow(instance_id))
        known = self._deployment.instances.get(instance_id)
        why = known.leave_reason if known is not None else ""
        request = StopRequest(reason=why or f"not wanted by {self._deployment.name} any more")
        try:
            await handle.signal(ids.STOP_SIGNAL, request)
        except ApplicationError:
            # No such workflow: a person terminated it.
            await self._clean_up(instance_id)

    async def _sleep_until_changed(self) -> None:
        deadline = next_deadline(self._deployment)
        pause = self._resync_pause()
        left = None if deadline is None else max(deadline - workflow.now(), timedelta(0))
        sooner = left is not None and left < pause
        try:
            await workflow.wait_condition(
                lambda: self._deployment is not self._recorded,
                timeout=left if sooner else pause,
                timeout_summary="go on with the rollout" if sooner else "look for instances that ended without a word",
            )
        except TimeoutError:
            if not sooner:
                await self._resync()

    def _resync_pause(self) -> timedelta:
        pause = self._deployment.timings.resync
        return pause * workflow.random().uniform(0.8, 1.2)

    async def _resync(self) -> None:
        if not self._deployment.instances:
            return
        ended = await workflow.execute_activity_method(
            FleetContract.ended_instances,
            InstanceIds(instance_ids=tuple(sorted(self._deployment.instances))),
            start_to_close_timeout=timedelta(seconds=30),
            summary="look for instances that ended without a word",
        )
        for instance_id in ended.instance_ids:
            await self._clean_up(instance_id)

    async def _clean_up(self, instance_id: str) -> None:
        await workflow.execute_activity_method(
            FleetContract.clean_up_instance,
            InstanceId(instance_id=instance_id),
            start_to_close_timeout=timedelta(seconds=30),
            summary=f"clean up after {instance_id}",
        )
        rest = {k: v for k, v in self._deployment.instances.items() if k != instance_id}
        self._deployment = self._deployment.with_(instances=rest)

    async def _record(self) -> None:
        """Project the state, once per change."""
        workflow.set_current_details(describe(self._deployment, workflow.now()))
        if self._recorded is self._deployment:
            return
        self._deployment = self._deployment.with_(projection=self._numbers.after(self._deployment.projection))
        self._recorded = recorded = self._deployment
        self._set_search_attributes()
        await workflow.execute_local_activity_method(
            ProjectionContract.record_deployment,
            DeploymentRecord(deployment=recorded, run_id=self._run_id()),
            **_RECORD,
        )

    def _set_search_attributes(self) -> None:
        attributes = (str(phase(self._deployment)), self._deployment.revision)
        if attributes == self._attributes:
            return
        self._attributes = attributes
        workflow.upsert_search_attributes(
            [
                KIND.value_set("deployment"),
                DEPLOYMENT.value_set(self._deployment.name),
                MODEL.value_set(_model_name(self._deployment)),
                STATE.value_set(attributes[0]),
                REVISION.value_set(attributes[1]),
            ]
        )

    async def _forget(self) -> None:
        name = DeploymentName(name=self._deployment.name, run_id=self._run_id())
        await workflow.execute_local_activity_method(ProjectionContract.forget_deployment, name, **_RECORD)
        workflow.set_current_details("**deleted**: nothing is left of it")

    def _run_id(self) -> str:
        """Tells this deployment from an earlier one of the same name."""
        return self._deployment.run_id or workflow.info().first_execution_run_id

    def _continue_as_new_if_due(self) -> None:
        if workflow.info().is_continue_as_new_suggested():
            workflow.continue_as_new(self._deployment)


def _model_name(d: Deployment) -> str:
    return d.spec.model.display
