"""Records what workflows do, for the tests that replay it on the code of today (``tests/unit/test_replay.py``).

``python -m tests.record_histories`` records the scenarios that have no history yet; with names (``host/forgotten``)
it replaces theirs. A released workflow's histories are never replaced: see ``docs/workflows.md``.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temporalio.client import WorkflowHistory
from temporalio.testing import WorkflowEnvironment

from fleet import ids
from fleet.rollouts import Steering
from tests.workflows import test_batch as batch
from tests.workflows import test_breaker as breaker
from tests.workflows import test_continue_as_new as as_new
from tests.workflows import test_defragment as defragment
from tests.workflows import test_delete as deleting
from tests.workflows import test_gang as gangs
from tests.workflows import test_host as hosts
from tests.workflows import test_lost_host as lost_host
from tests.workflows import test_maintenance as maintenance
from tests.workflows import test_operators as operators
from tests.workflows import test_placement as placement
from tests.workflows import test_recovery as recovery
from tests.workflows import test_rollout as rollout
from tests.workflows import test_scaling as scaling
from tests.workflows import test_updates as updates
from tests.workflows.server import SHORT_HISTORIES, temporal_server
from tests.workflows.world import World

FOLDER = Path(__file__).with_name("histories")


@dataclass(frozen=True)
class Scenario:
    """A test whose first workflow of the kind that ``name`` begins with is kept."""

    name: str
    play: Callable[[World], Awaitable[None]]
    short: bool = False
    """On the server that soon suggests to continue as new."""

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]

    @property
    def files(self) -> list[Path]:
        """One for each run, if there are several."""
        return sorted(FOLDER.glob(f"{self.name}.json")) + sorted(FOLDER.glob(f"{self.name}.run*.json"))


async def _promoted(world: World) -> None:
    await rollout.test_baking_canary_survives_a_restart_of_everything_and_obeys_a_person(world, Steering.PROMOTE)


async def _aborted(world: World) -> None:
    await rollout.test_baking_canary_survives_a_restart_of_everything_and_obeys_a_person(world, Steering.ABORT)


SCENARIOS = [
    Scenario("deployment/scaling", scaling.test_scaling_up_adds_and_scaling_down_removes_the_newest_slots),
    Scenario("deployment/labels_and_replicas", scaling.test_changing_labels_or_replicas_leaves_engines_alone),
    Scenario("deployment/stop_and_start", scaling.test_stopped_deployment_holds_nothing_and_starts_again_with_as_many),
    Scenario("deployment/replica_terminated", scaling.test_replica_terminated_by_a_person_is_cleaned_up_and_replaced),
    Scenario(
        "deployment/replica_terminated_before_stop",
        scaling.test_replica_terminated_by_a_person_is_missed_at_once_when_it_should_stop,
    ),
    Scenario("deployment/rollout", rollout.test_new_revision_replaces_replicas_and_none_is_missing_meanwhile),
    Scenario("deployment/rollout_failed", rollout.test_a_new_revision_that_fails_is_rolled_back_and_nobody_notices),
    Scenario("deployment/rollout_without_room", rollout.test_rollout_goes_on_where_there_is_room_for_no_extra_replica),
    Scenario("deployment/rollout_paused", rollout.test_paused_rollout_stays_until_it_is_resumed),
    Scenario("deployment/recreate", rollout.test_recreate_never_runs_two_revisions_at_once),
    Scenario("deployment/canary_bad", rollout.test_canary_that_answers_badly_is_rolled_back),
    Scenario("deployment/canary_good", rollout.test_good_canary_is_promoted_when_it_has_baked),
    Scenario("deployment/canary_promoted", _promoted),
    Scenario("deployment/canary_aborted", _aborted),
    Scenario("deployment/blue_green", rollout.test_blue_green_switches_all_requests_at_once),
    Scenario("deployment/steering_refused", rollout.test_steering_what_does_not_move_is_refused),
    Scenario("deployment/replica_replaced", rollout.test_replacing_an_instance_starts_the_new_one_first),
    Scenario(
        "deployment/replica_without_room_leaves",
        rollout.test_instance_without_room_elsewhere_stays_until_its_deadline,
    ),
    Scenario("deployment/rollout_changed_midway", rollout.test_second_change_during_a_rollout_leads_to_the_second),
    Scenario("deployment/restart", rollout.test_restart_replaces_replicas_with_the_same_revision),
    Scenario("deployment/delete", deleting.test_deleting_ends_the_workflow_and_all_projections),
    Scenario("deployment/delete_while_starting_many", deleting.test_deleting_many_of_which_half_were_started),
    Scenario(
        "deployment/failed_then_restarted",
        recovery.test_failure_that_cannot_pass_stays_with_its_hint_until_a_restart_replaces_it,
    ),
    Scenario("deployment/updates_refused", updates.test_change_of_what_is_being_deleted_is_refused),
    Scenario("deployment/cancelled", operators.test_cancelling_a_deployment_changes_nothing),
    Scenario("deployment/continued_as_new", as_new.test_deployment_goes_on_and_its_instances_survive, short=True),
    Scenario("instance/stop", lost_host.test_memory_is_free_once_the_host_says_that_the_engine_is_gone),
    Scenario("instance/crash", recovery.test_crashed_engine_is_started_again_at_once_under_a_higher_fence),
    Scenario("instance/back_off", recovery.test_pauses_between_failures_grow_fourfold_up_to_the_longest),
    Scenario("instance/stop_while_backing_off", recovery.test_instance_told_to_stop_while_it_backs_off_ends_at_once),
    Scenario("instance/failed", deleting.test_deleting_what_has_failed),
    Scenario("instance/clean_record", recovery.test_record_is_clean_after_serving_long_enough),
    Scenario("instance/progress", placement.test_progress_of_a_starting_engine_is_recorded),
    Scenario("instance/unplaceable_woken", placement.test_unplaceable_instance_waits_and_is_woken_when_there_is_room),
    Scenario("instance/unplaceable_asks_again", placement.test_unplaceable_instance_asks_again_by_itself),
    Scenario("instance/woken_while_asking", placement.test_word_of_new_room_that_comes_while_asking_is_not_lost),
    Scenario("instance/newer_fence", placement.test_fence_of_a_newer_placement_is_gone_above),
    Scenario("instance/claim_expired", placement.test_instance_whose_claim_expired_before_it_was_bound_asks_again),
    Scenario("instance/stop_while_placing", placement.test_instance_told_to_stop_while_being_placed_gives_its_claim_up),
    Scenario("instance/stop_while_starting", deleting.test_deleting_while_an_engine_is_starting),
    Scenario("instance/stale_reports", placement.test_reports_of_another_fence_or_from_the_past_are_not_believed),
    Scenario(
        "instance/host_lost", lost_host.test_host_that_comes_back_stops_what_was_placed_elsewhere_and_is_not_believed
    ),
    Scenario(
        "instance/host_lost_while_placing",
        lost_host.test_loss_of_a_host_is_not_missed_while_the_answer_that_names_it_is_on_its_way,
    ),
    Scenario(
        "instance/host_lost_while_stopping", lost_host.test_host_lost_while_an_engine_is_being_stopped_ends_the_waiting
    ),
    Scenario(
        "instance/host_silent_while_stopping",
        lost_host.test_memory_stays_booked_when_a_host_falls_silent_before_it_has_stopped_the_engine,
    ),
    Scenario(
        "instance/host_never_answered", lost_host.test_memory_stays_booked_when_nobody_has_answered_for_the_engine
    ),
    Scenario("instance/crash_while_stopping", lost_host.test_engine_that_crashes_while_it_is_being_stopped_is_gone),
    Scenario("instance/cancelled", operators.test_cancelled_instance_is_stopped_in_order_and_replaced),
    Scenario("instance/cancelled_while_waiting", operators.test_instance_cancelled_while_it_looks_for_room_is_replaced),
    Scenario("instance/start_lost", operators.test_start_that_was_lost_with_a_host_process_is_asked_for_again),
    Scenario(
        "instance/start_lost_then_stopped", operators.test_stop_of_what_never_reached_its_host_does_not_wait_for_it
    ),
    Scenario("instance/continued_as_new", as_new.test_engine_goes_on_under_the_same_fence_and_is_adopted, short=True),
    Scenario(
        "instance/ended_between_runs",
        as_new.test_engine_that_ended_between_two_runs_is_not_taken_for_running,
        short=True,
    ),
    Scenario(
        "instance/host_lost_between_runs",
        as_new.test_host_lost_just_before_going_on_as_new_is_not_forgotten,
        short=True,
    ),
    Scenario("instance/gang_stopped", gangs.test_stopping_drains_the_leader_before_the_follower_is_stopped),
    Scenario("instance/gang_refused", gangs.test_host_that_refuses_is_blamed_and_nothing_has_begun),
    Scenario("instance/gang_unanswered", gangs.test_host_that_never_answers_is_blamed_and_its_memory_stays_booked),
    Scenario("instance/gang_stopped_while_asked", gangs.test_stopping_while_the_hosts_are_asked),
    Scenario("instance/gang_host_lost_while_asked", gangs.test_host_lost_while_it_is_asked_is_no_failure),
    Scenario("instance/gang_follower_died", gangs.test_follower_that_dies_takes_the_leader_with_it_and_all_start_again),
    Scenario("instance/gang_leader_died", gangs.test_leader_that_dies_takes_the_follower_with_it),
    Scenario("instance/gang_gpu_fault", gangs.test_member_that_says_more_is_the_cause_whoever_was_heard_first),
    Scenario("instance/gang_host_lost", gangs.test_host_of_a_follower_is_lost),
    Scenario("instance/gang_member_unknown", gangs.test_only_the_member_that_its_host_does_not_know_is_asked_for_again),
    Scenario("instance/gang_member_anew", gangs.test_member_that_starts_anew_under_the_same_fence_breaks_the_gang),
    Scenario("instance/gang_cancelled", gangs.test_cancelled_gang_is_stopped_in_order),
    Scenario(
        "instance/gang_continued_as_new",
        gangs.test_gang_goes_on_as_new_and_every_member_is_adopted,
        short=True,
    ),
    Scenario("host/resumed", maintenance.test_replicas_that_are_still_there_stay_when_the_host_is_resumed),
    Scenario("host/suspect_and_ready", hosts.test_host_that_takes_its_lease_up_again_is_ready_as_before),
    Scenario("host/lost", hosts.test_all_instances_of_a_lost_host_are_placed_elsewhere),
    Scenario("host/lost_and_back", hosts.test_lost_host_that_registers_again_is_ready_and_serves_who_waits),
    Scenario(
        "host/registered_while_lost", hosts.test_registration_that_arrives_while_being_declared_lost_is_not_missed
    ),
    Scenario("host/never_takes_work", hosts.test_host_that_registers_and_never_takes_work_is_lost),
    Scenario("host/lost_then_forgotten", hosts.test_lost_host_is_forgotten),
    Scenario("host/forgotten", hosts.test_forgotten_host_loses_its_lease),
    Scenario("host/cancelled", operators.test_cancelling_a_host_changes_nothing),
    Scenario("host/drained", maintenance.test_drained_host_ends_empty_and_no_replica_was_missing),
    Scenario("host/drain_without_room", maintenance.test_drain_without_room_elsewhere_keeps_serving_and_says_why),
    Scenario("host/cordoned_and_resumed", maintenance.test_cordoned_host_keeps_what_it_has_and_takes_nothing_new),
    Scenario("host/lost_while_draining", maintenance.test_host_lost_while_draining_is_lost_first_and_returns_cordoned),
    Scenario(
        "host/drain_continued_as_new",
        maintenance.test_drain_goes_on_as_new_and_the_lease_is_taken_again,
        short=True,
    ),
    Scenario(
        "host/replacement_paused_and_approved",
        breaker.test_replicas_of_a_host_that_is_lost_with_too_many_others_wait_for_approval,
    ),
    Scenario(
        "host/replacement_paused_and_back",
        breaker.test_host_that_returns_before_anybody_approved_goes_on_as_if_nothing_had_happened,
    ),
    Scenario("host/replacement_refused", breaker.test_approval_is_refused_when_nothing_waits_for_it),
    Scenario("host/replacement_paused_continued_as_new", breaker.test_pause_survives_going_on_as_new, short=True),
    Scenario("host/continued_as_new", as_new.test_host_goes_on_and_takes_a_lease_again, short=True),
    Scenario(
        "host/registered_between_runs",
        as_new.test_registration_just_before_a_host_goes_on_as_new_is_not_forgotten,
        short=True,
    ),
    Scenario("defragment/moved", defragment.test_a_replica_is_moved_and_the_one_that_waits_gets_the_whole_host),
    Scenario("defragment/nobody_waits", defragment.test_nobody_waits_so_nothing_is_done),
    Scenario("defragment/no_plan", defragment.test_without_a_plan_it_says_why_and_keeps_nothing),
    Scenario("defragment/stopped", defragment.test_a_person_stops_it_and_who_was_moving_stays),
    Scenario("defragment/cancelled", defragment.test_cancelled_in_temporals_ui_it_stops_in_order),
    Scenario("defragment/too_slow", defragment.test_a_move_that_takes_too_long_is_called_off_and_another_one_tried),
    Scenario("defragment/room_elsewhere", defragment.test_it_ends_when_the_replica_finds_room_elsewhere),
    Scenario("defragment/continued_as_new", defragment.test_it_goes_on_as_new_with_its_moves_under_way, short=True),
    Scenario("batch/completed", batch.test_a_batch_is_worked_off_window_by_window_and_completed),
    Scenario("batch/invalid", batch.test_an_input_with_mistakes_fails_and_nothing_of_it_is_asked),
    Scenario("batch/cancelled", batch.test_cancelling_calls_back_what_is_under_way_and_keeps_what_was_answered),
    Scenario("batch/cancelled_in_temporal", batch.test_cancelled_in_temporals_ui_it_ends_in_order_too),
    Scenario("batch/cancel_wanted", batch.test_a_wish_to_cancel_that_only_the_database_knows_is_heard),
    Scenario("batch/expired", batch.test_out_of_time_the_rest_is_expired),
    Scenario("batch/paused", batch.test_paused_it_sends_nothing_and_resumed_it_goes_on_where_it_was),
    Scenario("batch/cancelled_while_paused", batch.test_cancelled_while_paused_it_ends),
    Scenario("batch/input_gone", batch.test_a_lost_input_fails_it),
    Scenario("batch/controller_restarted", batch.test_a_controller_that_is_restarted_in_the_middle_is_no_matter),
    Scenario("batch/continued_as_new", batch.test_it_goes_on_as_new_between_two_windows, short=True),
]


async def record(scenario: Scenario, environment: WorkflowEnvironment) -> None:
    """Play it and keep the history of its workflow, one file a run."""
    async with World(environment) as world:
        await scenario.play(world)
        runs = await _runs(world, _workflow_id(world, scenario.kind))
    for old in scenario.files:
        old.unlink()
    for number, run in enumerate(runs, 1):
        name = f"{scenario.name}.json" if len(runs) == 1 else f"{scenario.name}.run{number}.json"
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_text(run))


def _workflow_id(world: World, kind: str) -> str:
    if kind == "instance":
        return ids.instance_workflow(world.fleet.placements[0].instance_id)
    return next(w for w in world.started if w.startswith(f"{kind}/"))


async def _runs(world: World, workflow_id: str) -> list[WorkflowHistory]:
    """All runs of a chain, oldest first."""
    latest = await world.client.get_workflow_handle(workflow_id).fetch_history()
    run_id = latest.events[0].workflow_execution_started_event_attributes.first_execution_run_id
    runs = []
    while run_id:
        history = await world.client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
        runs.append(history)
        run_id = history.events[-1].workflow_execution_continued_as_new_event_attributes.new_execution_run_id
    return runs


def as_text(history: WorkflowHistory) -> str:
    """JSON with one event a line."""
    events = (json.dumps(_essence(e)) for e in json.loads(history.to_json())["events"])
    return '{"events": [\n' + ",\n".join(events) + "\n]}\n"


_MEANINGLESS_TO_A_REPLAY = {"stackTrace", "taskId", "workerVersion"}
"""Stack traces even name places on the machine that recorded them."""


def _essence(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _essence(v) for k, v in node.items() if k not in _MEANINGLESS_TO_A_REPLAY}
    if isinstance(node, list):
        return [_essence(v) for v in node]
    return node


def chosen(names: list[str]) -> list[Scenario]:
    """Those named; without names those that were never recorded."""
    unknown = set(names) - {s.name for s in SCENARIOS}
    if unknown:
        raise SystemExit(f"there is no scenario {', '.join(sorted(unknown))}; see SCENARIOS in {__file__}")
    return [s for s in SCENARIOS if (s.name in names if names else not s.files)]


async def main(names: list[str]) -> None:
    logging.basicConfig(level=logging.ERROR)  # scenarios are full of things that deserve a warning
    todo = chosen(names)
    for short, configuration in ((False, {}), (True, SHORT_HISTORIES)):
        scenarios = [s for s in todo if s.short is short]
        if not scenarios:
            continue
        async with temporal_server(configuration) as environment:
            for scenario in scenarios:
                await record(scenario, environment)
                print(f"recorded {scenario.name}: {', '.join(f.name for f in scenario.files)}")
    print(f"{len(todo)} recorded, {len(SCENARIOS) - len(todo)} left as they are")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
    sys.stdout.flush()
    os._exit(0)  # Temporal's library can abort while the interpreter takes itself apart
