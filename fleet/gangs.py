"""Instances that span several hosts: what their members say, and what the end of one means for all. Pure."""

from collections.abc import Mapping

from fleet.instances import EngineExit, EnginePhase, EngineReport, Instance, MemberNews, Remedy, apply_report
from fleet.model import Record
from fleet.placement.request import Member
from fleet.recovery import NOT_ITS_FAULT
from fleet.states import InstanceState

RESTARTED = "member_restarted"
_STARTING = (InstanceState.DOWNLOADING, InstanceState.STARTING)
_LOADING = (EnginePhase.DOWNLOADING, EnginePhase.STARTING)
_MAY_FOLLOW = frozenset({"unknown", "crashed", "hung", "slow", "nccl", "port"})
"""Classes of ends that the end of another member can bring about."""


class Acceptance(Record):
    """A host's answer to whether it can run its part of a gang."""

    refusal: EngineExit | None = None
    """Why not."""
    runs: bool = False
    """It runs there under this very fence: somebody asked for it before."""


def heard(instance: Instance, report: EngineReport) -> Instance:
    """With what a host says of its engine. Only the leader's decides whether a gang serves."""
    placement = instance.placement
    if placement is None or not placement.followers:
        return apply_report(instance, report)
    if instance.state is InstanceState.RECOVERING:  # it is being broken up, and no word makes it serve again
        return instance
    host_id = placement.hosts[report.rank]
    known = instance.members.get(host_id, MemberNews())
    news = MemberNews(
        phase=report.phase,
        message=report.message,
        progress=report.progress,
        ready=known.ready or report.phase not in _LOADING,
    )
    led = apply_report(instance, report) if report.rank == 0 else instance
    return _with_whom_it_waits_for(led.with_(members={**instance.members, host_id: news}))


def restarted(instance: Instance, report: EngineReport) -> bool:
    """Whether a member that was ready starts anew. What it had agreed upon with the others is lost."""
    placement = instance.placement
    if placement is None or not placement.followers or report.phase not in _LOADING:
        return False
    known = instance.members.get(placement.hosts[report.rank])
    return known is not None and known.ready


def as_exit(host_id: str) -> EngineExit:
    """Of a gang in which that host's engine has started anew."""
    hint = f"The engine on {host_id} has started anew, so all members start again."
    return EngineExit(exit_code=None, failure_class=RESTARTED, hint=hint, served=True)


def no_answer(host_id: str, why: str) -> EngineExit:
    """Of a gang one host of which did not say whether it can run its part."""
    hint = f"{host_id} did not say whether it can run its part: {why}"
    return EngineExit(exit_code=None, failure_class="not_accepted", hint=hint, remedy=Remedy.ELSEWHERE)


def root_cause(exits: Mapping[int, EngineExit], first: int) -> int:
    """The rank of the member whose end explains the others'. ``first``: of which it was heard first.

    The members of a gang that has lost one often crash a moment later, and the news of that can come first.
    """
    own = [rank for rank, e in exits.items() if e.failure_class not in NOT_ITS_FAULT]
    return max(own, key=lambda rank: (*_tells(exits[rank]), rank == first), default=first)


def breaking_up(instance: Instance, why: str) -> Instance:
    """Takes no more requests; its claims are held until all members are gone."""
    return instance.with_(state=InstanceState.RECOVERING, endpoint=None, progress=None, message=why, hint="")


def resumed(instance: Instance) -> Instance:
    """Of one whose engines are asked for (again): what they report is heard."""
    gang = instance.placement is not None and instance.placement.followers
    breaking = gang and instance.state is InstanceState.RECOVERING
    return instance.with_(state=InstanceState.STARTING) if breaking else instance


def _tells(exit_: EngineExit) -> tuple[bool, bool, bool]:
    return (
        exit_.gpu_fault == "certain",
        exit_.remedy is Remedy.NEVER,
        exit_.failure_class not in _MAY_FOLLOW,
    )


def _with_whom_it_waits_for(instance: Instance) -> Instance:
    if instance.state not in _STARTING or instance.placement is None:
        return instance
    late = _late(instance.placement.members, instance.members)
    if not late:
        return instance
    shares = [news.progress for news in late.values() if news.progress is not None]
    downloads = any(news.phase is EnginePhase.DOWNLOADING for news in late.values())
    return instance.with_(
        state=InstanceState.DOWNLOADING if downloads else InstanceState.STARTING,
        message="waits for " + ", ".join(f"{host} ({n.message or n.phase})" for host, n in late.items()),
        progress=min(shares, default=None),
    )


def _late(members: tuple[Member, ...], news: Mapping[str, MemberNews]) -> dict[str, MemberNews]:
    """Those that are not ready; without the leader, which is the last, while others are not."""
    waiting = {m.host_id: n for m in members if not (n := news.get(m.host_id, MemberNews())).ready}
    followers = {host: n for host, n in waiting.items() if host != members[0].host_id}
    return followers or waiting
