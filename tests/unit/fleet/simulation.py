"""A deployment in the middle of a rollout, whose replicas start, fail and stop as a test says."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from fleet.changes import change, steer, why_not
from fleet.deployment_status import ready_replicas
from fleet.deployments import DeploymentChange, advance, hear
from fleet.instances import InstanceNews
from fleet.policy.canary import Reading
from fleet.replicas import decide
from fleet.rollouts import Stage, Steer, Steering
from fleet.specs import DeploymentSpec, ModelSource, RolloutSpec
from fleet.states import InstanceState
from tests.unit.fleet.worlds import BORN, apply, deployment, view

READY, FAILED, PENDING = InstanceState.READY, InstanceState.FAILED, InstanceState.PENDING
STARTING, RECOVERING = InstanceState.STARTING, InstanceState.RECOVERING
GONE = InstanceState.STOPPED
SECOND = timedelta(seconds=1)


class Simulation:
    """A deployment whose first revision works, and a second one that is being rolled out."""

    def __init__(self, replicas: int, **rollout: Any) -> None:
        self.now = BORN
        self.room = 10_000
        self.policy = RolloutSpec.model_validate(rollout)
        first = deployment(replicas, 1, *[view(slot) for slot in range(1, replicas + 1)])
        self.d = advance(first.with_(spec=self.spec("first.gguf", replicas)), self.now)
        assert self.d.proven or replicas == 0
        self.fewest = self.most = len(self.d.instances)

    def spec(self, path: str, replicas: int | None = None) -> DeploymentSpec:
        count = self.d.spec.replicas if replicas is None else replicas
        return DeploymentSpec(model=ModelSource(path=path), replicas=count, rollout=self.policy)

    def deploy(self, path: str = "second.gguf") -> None:
        self.d = change(self.d, DeploymentChange(spec=self.spec(path)), self.now)

    def steer(self, action: Steering) -> None:
        assert why_not(self.d, Steer(action=action)) == ""
        self.d = steer(self.d, Steer(action=action), self.now)

    def act(self) -> None:
        self.d = advance(self.d, self.now)
        self.d = apply(self.d, decide(self.d, self.now))
        self.note()

    def note(self) -> None:
        self.fewest = min(self.fewest, ready_replicas(self.d))
        self.most = max(self.most, len([i for i in self.d.instances.values() if not i.stopping]))

    def say(self, instance_id: str, state: InstanceState, **news: Any) -> None:
        self.d = hear(self.d, InstanceNews(instance_id=instance_id, state=state, **news))
        self.note()

    def of(self, launch: int) -> list[str]:
        return sorted(i.instance_id for i in self.d.instances.values() if i.launch == launch and not i.stopping)

    def get_on(self, works: Callable[[str], bool] = lambda _: True) -> None:
        """Every instance gets on: those that stop are gone, those that have room start or fail."""
        for i in sorted(self.d.instances.values(), key=lambda i: (not i.stopping, i.instance_id)):
            if i.stopping:
                self.say(i.instance_id, GONE, gone=True)
            elif i.state in (PENDING, STARTING):
                placed = [o for o in self.d.instances.values() if o.state is not PENDING]
                if len(placed) >= self.room:
                    self.say(i.instance_id, PENDING, message="no room", unplaceable=True)
                elif works(i.instance_id):
                    self.say(i.instance_id, READY)
                else:
                    self.say(i.instance_id, FAILED, message="bad flag")

    def run(self, works: Callable[[str], bool] = lambda _: True, rounds: int = 60, pause: timedelta = SECOND) -> None:
        for _ in range(rounds):
            self.act()
            self.get_on(works)
            self.now += pause
        self.act()

    @property
    def stage(self) -> Stage | None:
        return self.d.rollout.stage if self.d.rollout is not None else None


def count(requests: int, errors: int = 0) -> Reading:
    return Reading(requests=requests, errors=errors, latency=(0, requests))
