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
    )
    from fleet import ids
    from fleet.deployments import (
        Accepted,
        Deployment,
        DeploymentChange,
        InstanceView,
        Plan,
        change,
        decide,
        describe,
        hear,
        phase,
    )
    from fleet.engines.spec import EngineSpec
    from fleet.instances import Instance, InstanceNews, StopRequest
    from fleet.temporal import DEPLOYMENT, KIND, MODEL, REVISION, STATE
    from workflows.handles import let_go
    from workflows.instance import InstanceWorkflow
    from workflows.projection import Numbers

_RECORD = workflow.LocalActivityConfig(
    start_to_close_timeout=timedelta(seconds=10),
    retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=5)),
)


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
        while not (plan := decide(self._deployment)).done:
            try:
                # A cancellation must not take a child away that the state already knows.
                await asyncio.shield(asyncio.create_task(self._carry_out(plan)))
                await self._record()
                if self._deployment is self._recorded:
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
        self._deployment = change(self._deployment, wanted)
        return Accepted(generation=self._deployment.generation)

    @change.validator
    def _check_change(self, wanted: DeploymentChange) -> None:
        if self._deployment.deleting:
            raise ApplicationError(f"{self._deployment.name} is being deleted", type="Deleting", non_retryable=True)
        expected = wanted.if_generation
        if expected is not None and expected != self._deployment.generation:
            raise ApplicationError(
                f"generation is {self._deployment.generation}, not {expected}",
                type="GenerationMoved",
                non_retryable=True,
            )

    @workflow.update(name=ids.DELETE_UPDATE, description="Stop all instances, then end")
    def delete(self) -> Accepted:
        if not self._deployment.deleting:
            self._deployment = self._deployment.with_(deleting=True, generation=self._deployment.generation + 1)
        return Accepted(generation=self._deployment.generation)

    @workflow.signal(name=ids.INSTANCE_NEWS_SIGNAL)
    def instance_news(self, news: InstanceNews) -> None:
        self._deployment = hear(self._deployment, news)

    @workflow.query(description="The whole durable state")
    def state(self) -> Deployment:
        return self._deployment

    async def _carry_out(self, plan: Plan) -> None:
        # The state says what we are about to do before we do it: a change that arrives meanwhile sees it.
        started = [self._add(slot) for slot in plan.start]
        for instance_id in plan.stop:
            self._mark_stopping(instance_id)
        await asyncio.gather(*map(self._start_instance, started), *map(self._stop_instance, plan.stop))

    def _add(self, slot: int) -> Instance:
        d = self._deployment
        instance = Instance(
            instance_id=f"{d.name}/{slot}-{workflow.uuid4().hex[:8]}",
            deployment=d.name,
            slot=slot,
            revision=d.revision,
            launch=d.launch,
            spec=_engine_spec(d),
            timings=d.timings,
        )
        view = InstanceView(instance_id=instance.instance_id, slot=slot, launch=d.launch)
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
        request = StopRequest(reason=f"not wanted by {self._deployment.name} any more")
        try:
            await handle.signal(ids.STOP_SIGNAL, request)
        except ApplicationError:
            # No such workflow: a person terminated it.
            await self._clean_up(instance_id)

    async def _sleep_until_changed(self) -> None:
        try:
            await workflow.wait_condition(
                lambda: self._deployment is not self._recorded,
                timeout=self._resync_pause(),
                timeout_summary="look for instances that ended without a word",
            )
        except TimeoutError:
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
        workflow.set_current_details(describe(self._deployment))
        if self._recorded is self._deployment:
            return
        self._deployment = self._deployment.with_(projection=self._numbers.after(self._deployment.projection))
        self._recorded = recorded = self._deployment
        self._set_search_attributes()
        await workflow.execute_local_activity_method(
            ProjectionContract.record_deployment,
            DeploymentRecord(deployment=recorded, run_id=workflow.info().first_execution_run_id),
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
        name = DeploymentName(name=self._deployment.name, run_id=workflow.info().first_execution_run_id)
        await workflow.execute_local_activity_method(ProjectionContract.forget_deployment, name, **_RECORD)
        workflow.set_current_details("**deleted**: nothing is left of it")

    def _continue_as_new_if_due(self) -> None:
        if workflow.info().is_continue_as_new_suggested():
            workflow.continue_as_new(self._deployment)


def _model_name(d: Deployment) -> str:
    return d.spec.model.path.rsplit("/", 1)[-1]


def _engine_spec(d: Deployment) -> EngineSpec:
    return EngineSpec(
        engine=d.engine,
        engine_version=d.engine_version,
        model_path=d.spec.model.path,
        served_name=d.name,
        args=tuple(d.spec.engine_args),
        env_sealed=d.spec.env,
        max_model_len=d.spec.max_model_len,
        concurrency=d.spec.concurrency,
        cpu_threads=d.spec.resources.cpu_threads,
        memory_bytes=d.spec.resources.memory_bytes,
        gpus_per_replica=d.spec.placement.gpus_per_replica,
        host_selector=d.spec.placement.host_selector,
        start_timeout_s=d.spec.health.start_timeout_s,
    )
