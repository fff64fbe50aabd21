"""Watching a deployment until it is as wanted: the judgement (pure) and the loop that shows it."""

import time
from dataclasses import dataclass
from typing import Any

from fleet.cli.client import Api, ApiProblem, NoAnswer, path_of
from fleet.cli.output import console, plain
from fleet.errors import HoldfastError
from fleet.states import DeploymentPhase, InstanceState

Json = dict[str, Any]

POLL_EVERY_S = 0.3
COARSE = 10
"""Without a terminal, a line for every so many percent is enough."""


class NotReady(HoldfastError):
    """The deployment failed, or took longer than allowed; message and hint are its own."""

    title = "The deployment did not become ready"


@dataclass(frozen=True)
class Verdict:
    done: bool
    ok: bool = False
    message: str = ""
    hint: str = ""


def judge(deployment: Json, generation: int = 0) -> Verdict:
    """Whether ``deployment`` has arrived, well or not, at what ``generation`` (or a later one) asked for."""
    status = deployment["status"]
    text, hint = status.get("message") or "", status.get("hint") or ""
    phase = status["phase"]
    if (status.get("generation") or 0) < generation:
        return Verdict(done=False, message=text, hint=hint)
    if phase == DeploymentPhase.DELETING:
        return Verdict(done=True, message="the deployment is being deleted")
    if phase == DeploymentPhase.FAILED:
        return Verdict(done=True, message=text or "it failed", hint=hint)
    failed = status.get("failed_rollout")
    if phase == DeploymentPhase.READY and failed and generation:
        reason = f"revision {failed['revision']} {failed['outcome']}: {failed['reason']}"
        message = f"{reason}; revision {status['revision']} serves again"
        return Verdict(done=True, message=message, hint=failed.get("hint") or hint)
    good = phase in (DeploymentPhase.READY, DeploymentPhase.STOPPED)
    return Verdict(done=good, ok=good, message=text, hint=hint)


def describe(deployment: Json, instances: list[Json], *, coarse: bool = False) -> list[str]:
    """What is going on, one line for the deployment and one for each instance that is not ready."""
    status = deployment["status"]
    ready = f"{status.get('ready_replicas', 0)} of {status.get('desired_replicas', 0)} ready"
    lines = [f"{deployment['name']}: {status['phase']}, {ready}"]
    quiet = (InstanceState.READY, InstanceState.STOPPED)
    lines += [_instance(i, coarse) for i in instances if i["state"] not in quiet]
    return lines


def _instance(instance: Json, coarse: bool) -> str:
    line = f"  {instance['id']}: {instance['state']}"
    progress = instance.get("progress")
    if progress is not None:
        percent = int(100 * progress)
        line += f" {percent - percent % COARSE if coarse else percent} %"
    if instance.get("host_id"):
        line += f" on {instance['host_id']}"
    return f"{line}: {instance['message']}" if instance.get("message") else line


def watch(api: Api, name: str, *, timeout_s: float, generation: int = 0) -> Json:
    """Show progress on stderr until the deployment is ready (or stopped, if so wanted); answers it.

    Raises ``NotReady`` when it failed, was deleted, or took longer than ``timeout_s``. An API that is away is
    waited for.
    """
    deadline = time.monotonic() + timeout_s
    last = "nothing was heard of it"
    with _Display() as show:
        while True:
            try:
                deployment = api.get(path_of("deployments", name))
                instances = api.items("/api/v1/instances", deployment=name)
            except (NoAnswer, ApiProblem) as error:
                if not _passes(error):
                    raise
                last = f"{error.title}: {error.detail}"
            else:
                show(describe(deployment, instances, coarse=not show.live))
                verdict = judge(deployment, generation)
                if verdict.ok:
                    return dict(deployment)
                if verdict.done:
                    raise NotReady(verdict.message, hint=verdict.hint)
                last = verdict.message or str(deployment["status"]["phase"])
            if time.monotonic() >= deadline:
                raise NotReady(
                    f"not ready after {timeout_s:g} s; last: {last}",
                    hint=f"it goes on trying: see `holdfast deployments {name}`, or give more --timeout",
                )
            time.sleep(POLL_EVERY_S)


def wait_gone(api: Api, name: str, *, timeout_s: float) -> None:
    """Until the deployment is no more. Raises ``NotReady`` when it lasts longer than ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            api.get(path_of("deployments", name))
        except (NoAnswer, ApiProblem) as error:
            if isinstance(error, ApiProblem) and error.status == 404:
                return
            if not _passes(error):
                raise
        if time.monotonic() >= deadline:
            raise NotReady(f"{name} is still there after {timeout_s:g} s", hint=f"see `holdfast deployments {name}`")
        time.sleep(POLL_EVERY_S)


def _passes(error: HoldfastError) -> bool:
    """Whether the trouble is the server's and may pass."""
    return isinstance(error, NoAnswer) or error.status >= 500


class _Display:
    """One place that changes, on a terminal; elsewhere a line for each thing that is new."""

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self.live = self._console.is_terminal
        self._status = self._console.status("") if self.live else None
        self._said: set[str] = set()

    def __enter__(self) -> "_Display":
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def __call__(self, lines: list[str]) -> None:
        if self._status:
            self._status.update(plain("\n".join(lines)))
            return
        for line in lines:
            if line not in self._said:
                self._console.print(plain(line), soft_wrap=True)
        self._said = set(lines)
