"""The gate: what workflows did before, the code of today would do again."""

from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from tests.record_histories import FOLDER, SCENARIOS
from workflows.deployment import DeploymentWorkflow
from workflows.host import HostWorkflow
from workflows.instance import InstanceWorkflow
from workflows.registry import WORKFLOWS, workflow_runner

HISTORIES = sorted(FOLDER.rglob("*.json"))
HOW_TO_GO_ON = """
{name} does not replay: {failure}

A workflow that began before this change would be stuck after it. Make the change so that old histories take the old
way: `if workflow.patched("what-changed"): new way, else: old way` (docs/workflows.md). Only if no release contains
this workflow may its history be recorded anew: `make histories AGAIN={scenario}`."""


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).with_suffix("").as_posix()


async def replay_failure(path: Path) -> Exception | None:
    replayer = Replayer(workflows=WORKFLOWS, workflow_runner=workflow_runner(), data_converter=pydantic_data_converter)
    history = WorkflowHistory.from_json(name_of(path), path.read_text())
    return (await replayer.replay_workflow(history, raise_on_replay_failure=False)).replay_failure


@pytest.mark.parametrize("path", HISTORIES, ids=name_of)
async def test_history_replays(path: Path) -> None:
    failure = await replay_failure(path)
    if failure is not None:
        scenario = name_of(path).partition(".run")[0]
        pytest.fail(HOW_TO_GO_ON.format(name=name_of(path), failure=failure, scenario=scenario), pytrace=False)


def test_every_scenario_has_a_history() -> None:
    missing = [s.name for s in SCENARIOS if not s.files]
    assert missing == [], "record them: make histories"


def test_every_workflow_type_has_histories_of_runs_that_ended_and_that_went_on_as_new() -> None:
    kinds = {w.__name__.removesuffix("Workflow").lower() for w in WORKFLOWS}
    assert kinds == {s.kind for s in SCENARIOS}
    for kind in kinds:
        texts = [p.read_text() for p in HISTORIES if name_of(p).startswith(f"{kind}/")]
        assert any('"EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED"' in t for t in texts), kind
        assert any('"EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW"' in t for t in texts), kind


async def do_nothing(*_: object, **__: object) -> None:
    """What a person might leave out."""


@pytest.mark.parametrize(
    ("scenario", "workflow", "step"),
    [
        ("deployment/delete", DeploymentWorkflow, "_forget"),
        ("instance/crash", InstanceWorkflow, "_release"),
        ("instance/back_off", InstanceWorkflow, "_tell_deployment"),
        ("host/lost", HostWorkflow, "_tell_lost"),
    ],
)
async def test_change_that_old_workflows_cannot_follow_is_seen(
    scenario: str, workflow: type[Any], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = FOLDER / f"{scenario}.json"
    assert await replay_failure(path) is None
    monkeypatch.setattr(workflow, step, do_nothing)
    failure = await replay_failure(path)
    assert failure is not None
    assert "ondeterminis" in str(failure)
