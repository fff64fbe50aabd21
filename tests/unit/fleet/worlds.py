"""Deployments in any state, and simulated instances that bring them on."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from fleet.deployments import Deployment, InstanceView, advance, hear
from fleet.instances import InstanceNews
from fleet.replicas import Plan, decide
from fleet.specs import DeploymentSpec, ModelSource
from fleet.states import InstanceState

BORN = datetime(2026, 1, 1, tzinfo=UTC)


def spec(replicas: int = 1, path: str = "model.gguf") -> DeploymentSpec:
    return DeploymentSpec(model=ModelSource(path=path), replicas=replicas)


def deployment(replicas: int = 1, launch: int = 1, *instances: InstanceView) -> Deployment:
    """With instances of older launches: in the middle of a rollout from something that never worked."""
    made = Deployment(
        name="m",
        spec=spec(replicas),
        engine="llama_cpp",
        engine_version="1",
        created_at=BORN,
        revision=launch,
        newest_revision=launch,
        launch=launch,
        newest_launch=launch,
        instances={i.instance_id: i for i in instances},
    )
    return advance(made, BORN)


def view(slot: int, launch: int = 1, state: InstanceState = InstanceState.READY, **more: object) -> InstanceView:
    fields = {"instance_id": f"m/{slot}-{launch}", "slot": slot, "launch": launch, "state": state}
    return InstanceView.model_validate(fields | more)


@st.composite
def deployments(draw: st.DrawFn, states: Sequence[InstanceState] = tuple(InstanceState)) -> Deployment:
    """Any number of instances of any launch in any state, with slots of their own."""
    launch = draw(st.integers(1, 4))
    slots = draw(st.lists(st.integers(1, 12), unique=True, max_size=8))
    views = [
        view(
            slot,
            draw(st.integers(1, launch)),
            draw(st.sampled_from(states)),
            stopping=draw(st.booleans()),
            message=draw(st.sampled_from(["", "engine exited with 1"])),
        )
        for slot in slots
    ]
    made = deployment(draw(st.integers(0, 8)), launch, *views)
    return made.with_(stopped=draw(st.booleans()), deleting=draw(st.integers(0, 3)) == 0)


def plan(d: Deployment, now: datetime = BORN) -> Plan:
    return decide(advance(d, now), now)


def carry_out(d: Deployment, now: datetime = BORN) -> Deployment:
    """What the workflow does: move the rollout on, start children, tell others to stop."""
    d = advance(d, now)
    return apply(d, decide(d, now))


def apply(d: Deployment, made: Plan) -> Deployment:
    instances = dict(d.instances)
    stable = d.rollout.stable.launch if d.rollout is not None and d.rollout.stable is not None else 0
    for slot, launch in [*((s, d.launch) for s in made.start), *((s, stable) for s in made.start_stable)]:
        new = view(slot, launch, InstanceState.PENDING)
        assert new.instance_id not in instances, "a slot that is taken"
        instances[new.instance_id] = new
    for instance_id in made.stop:
        assert not instances[instance_id].stopping, "told twice"
        instances[instance_id] = instances[instance_id].model_copy(update={"stopping": True})
    return d.with_(instances=instances)


def step(d: Deployment, choose: st.DataObject) -> Deployment:
    """One instance, chosen by hypothesis, gets on with its life."""
    moving = [i for i in d.instances.values() if i.stopping or i.state is not InstanceState.READY]
    if not moving:
        return d
    i = choose.draw(st.sampled_from(sorted(moving, key=lambda i: i.instance_id)))
    gone = i.stopping
    return hear(d, InstanceNews(instance_id=i.instance_id, state=InstanceState.READY, gone=gone))


def settle(d: Deployment, limit: int = 300) -> Deployment:
    """Carry out and let every instance get on, an hour at a time, until nothing changes."""
    now = BORN
    for _ in range(limit):
        after = carry_out(d, now)
        for i in list(after.instances.values()):
            news = InstanceNews(instance_id=i.instance_id, state=InstanceState.READY, gone=i.stopping)
            after = hear(after, news)
        if after == d:
            return d
        d = after
        now += timedelta(hours=1)
    raise AssertionError(f"did not settle: {d}")
