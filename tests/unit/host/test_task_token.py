"""What the answers of Temporal mean to a host."""

import pytest
from temporalio.client import AsyncActivityCancelledError
from temporalio.exceptions import ApplicationError

from tests.unit.host.fake_temporal import DOWN, GONE, NOT_OURS, WANTED, FakeTemporal, not_wanted
from worker_host.task_token import Beat, TaskToken

TOKEN = b"token"


def answering(answer: Exception | None) -> TaskToken:
    temporal = FakeTemporal()
    if answer is not None:
        temporal.answers[TOKEN] = answer
    return TaskToken(temporal.client, TOKEN)


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (None, Beat.ALIVE),
        (WANTED, Beat.STOP),
        (AsyncActivityCancelledError(), Beat.ALIVE),
        *((not_wanted(why), Beat.ALIVE) for why in ("paused", "reset", "timed_out", "worker_shutdown", "not_found")),
        (GONE, Beat.VOID),
        (NOT_OURS, Beat.VOID),
        (DOWN, Beat.UNREACHABLE),
    ],
)
async def test_answer_to_a_heartbeat(answer: Exception | None, meaning: Beat) -> None:
    assert await answering(answer).heartbeat({"ready": True}) is meaning


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (None, Beat.ALIVE),
        (WANTED, Beat.ALIVE),
        (GONE, Beat.VOID),
        (NOT_OURS, Beat.VOID),
        (DOWN, Beat.UNREACHABLE),
    ],
)
async def test_answer_to_a_failure(answer: Exception | None, meaning: Beat) -> None:
    assert await answering(answer).fail(ApplicationError("it ended")) is meaning


@pytest.mark.parametrize(
    ("answer", "meaning"), [(None, Beat.UNASKED), (WANTED, Beat.ALIVE), (GONE, Beat.VOID), (DOWN, Beat.UNREACHABLE)]
)
async def test_answer_to_a_cancellation(answer: Exception | None, meaning: Beat) -> None:
    assert await answering(answer).report_cancellation() is meaning
