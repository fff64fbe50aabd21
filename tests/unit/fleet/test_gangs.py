"""What members of a gang say, and what the end of one means."""

from datetime import UTC, datetime

from fleet import gangs
from fleet.instances import EngineExit, EnginePhase, EngineReport, Instance, Remedy, accepts, describe
from fleet.placement.request import Member, Placement
from fleet.recovery import after_failure
from fleet.states import InstanceState
from tests.unit.fleet.test_instances import instance

NOW = datetime(2026, 11, 1, tzinfo=UTC)
CRASH = EngineExit(exit_code=-6, failure_class="crashed")


def gang(followers: int = 2) -> Instance:
    members = tuple(Member(host_id=f"f{n}", gpu_uuids=(f"g{n}",)) for n in range(1, followers + 1))
    placement = Placement(host_id="lead", gpu_uuids=("g0",), followers=members)
    return instance().with_(state=InstanceState.STARTING, placement=placement, fence=3)


def said(rank: int, phase: EnginePhase, sequence: int = 1, message: str = "", **more: object) -> EngineReport:
    fields = {"instance_id": "i", "fence": 3, "sequence": sequence, "phase": phase, "message": message, "rank": rank}
    return EngineReport.model_validate({**fields, **more})


def after(known: Instance, *reports: EngineReport) -> Instance:
    for report in reports:
        known = gangs.heard(known, report)
    return known


def test_members_are_the_leader_and_its_followers_by_rank() -> None:
    placement = gang().placement
    assert placement is not None
    assert [m.host_id for m in placement.members] == ["lead", "f1", "f2"] == list(placement.hosts)
    assert [m.gpu_uuids for m in placement.members] == [("g0",), ("g1",), ("g2",)]


def test_a_rank_that_the_gang_does_not_have_is_not_believed() -> None:
    assert accepts(gang(), said(2, EnginePhase.READY), -1)
    assert not accepts(gang(), said(3, EnginePhase.READY), -1)


def test_it_waits_for_followers_first_and_then_for_the_leader() -> None:
    known = after(
        gang(),
        said(0, EnginePhase.STARTING, message="loading the model"),
        said(1, EnginePhase.READY),
        said(2, EnginePhase.DOWNLOADING, message="pulling", progress=0.25),
    )
    assert (known.state, known.message, known.progress) == (InstanceState.DOWNLOADING, "waits for f2 (pulling)", 0.25)
    known = after(known, said(2, EnginePhase.READY, 2))
    assert (known.state, known.message) == (InstanceState.STARTING, "waits for lead (loading the model)")
    known = after(known, said(0, EnginePhase.READY, 2, url="http://lead"))
    assert (known.state, known.message, known.endpoint) == (InstanceState.READY, "", "http://lead")


def test_what_a_follower_says_changes_nothing_of_a_gang_that_serves() -> None:
    known = after(gang(), said(0, EnginePhase.READY, url="http://lead"))
    later = after(known, said(1, EnginePhase.STARTING), said(2, EnginePhase.READY))
    assert later.with_(members={}) == known.with_(members={})
    assert "Gang: `lead` ready, `f1` starting, `f2` ready" in describe(later)


def test_what_was_ready_and_starts_again_has_forgotten_the_others() -> None:
    known = after(gang(), said(1, EnginePhase.STARTING))
    assert not gangs.restarted(known, said(1, EnginePhase.STARTING, 2))
    known = after(known, said(1, EnginePhase.READY, 3))
    assert not gangs.restarted(known, said(1, EnginePhase.SUSPECT, 4))
    assert gangs.restarted(known, said(1, EnginePhase.STARTING, 4))
    assert not gangs.restarted(known, said(2, EnginePhase.STARTING))


def test_no_word_makes_a_gang_serve_that_is_being_broken_up() -> None:
    known = gangs.breaking_up(after(gang(), said(0, EnginePhase.READY, url="http://lead")), "f1 has failed")
    assert (known.state, known.endpoint) == (InstanceState.RECOVERING, None)
    assert after(known, said(0, EnginePhase.READY, 9, url="http://lead")) == known
    assert gangs.resumed(known).state is InstanceState.STARTING


def test_the_member_that_says_most_is_the_cause() -> None:
    oom = EngineExit(exit_code=1, failure_class="oom_runtime")
    never = EngineExit(exit_code=1, failure_class="bad_flag", remedy=Remedy.NEVER)
    broken = EngineExit(exit_code=1, failure_class="gpu_fault", gpu_fault="certain")
    cancelled = EngineExit(exit_code=None, failure_class="cancelled")
    nccl = EngineExit(exit_code=1, failure_class="nccl")
    assert gangs.root_cause({0: CRASH, 1: CRASH}, 1) == 1
    assert gangs.root_cause({0: CRASH, 1: cancelled}, 0) == 0
    assert gangs.root_cause({0: nccl, 1: oom, 2: cancelled}, 0) == 1
    assert gangs.root_cause({0: oom, 1: never}, 0) == 1
    assert gangs.root_cause({0: never, 1: oom, 2: broken}, 0) == 2
    assert gangs.root_cause({0: cancelled}, 0) == 0


def test_the_host_that_failed_is_blamed_and_not_the_leader() -> None:
    failed = after_failure(gang(), EngineExit(exit_code=1, remedy=Remedy.ELSEWHERE), NOW, 2)
    assert (failed.host_failures, failed.excluded_hosts) == ({"f2": 1}, ("f2",))
    assert failed.message == "f2: engine exited with 1"
    assert failed.placement is None


def test_a_member_that_started_anew_is_nobody_s_fault() -> None:
    failed = after_failure(gang(), gangs.as_exit("f1"), NOW, 1)
    assert (failed.host_failures, failed.failed_at, failed.state) == ({}, (), InstanceState.RECOVERING)
    assert "f1 has started anew" in failed.hint
