"""``batches`` shows and steers what is worked off on spare capacity."""

from typing import Any

import pytest

from tests.unit.cli.conftest import Holdfast
from tests.unit.cli.fake_api import FakeApi

GOING: dict[str, Any] = {
    "id": "batch_1",
    "key_id": "key-1",
    "endpoint": "/v1/embeddings",
    "model": "tiny",
    "status": "in_progress",
    "paused": False,
    "total": 100,
    "completed": 40,
    "failed": 2,
    "lines_per_second": 3.25,
    "last_error": "429 overloaded",
    "message": "",
    "created_at": "2026-11-20T10:00:00Z",
    "expires_at": "2026-11-21T10:00:00Z",
    "ended_at": None,
    "workflow_url": "http://temporal/batch_1",
}
ENDED = GOING | {"id": "batch_2", "status": "completed", "ended_at": "2026-11-20T11:00:00Z"}


def test_they_are_listed_with_how_far_they_are(holdfast: Holdfast, api: FakeApi) -> None:
    api.batches = [GOING, ENDED]
    seen = holdfast("batches", "list")
    assert [line.split()[:7] for line in seen.out.splitlines()[1:]] == [
        ["batch_1", "in_progress", "tiny", "42", "100", "2", "3.2"],
        ["batch_2", "completed", "tiny", "42", "100", "2", "3.2"],
    ]
    assert holdfast("batches", "list", "--running", "--json").json == [GOING]
    api.batches = []
    assert "no batches" in holdfast("batches", "list").out


def test_one_is_shown_with_its_last_error(holdfast: Holdfast, api: FakeApi) -> None:
    api.batches = [GOING | {"paused": True}]
    seen = holdfast("batches", "show", "batch_1")
    assert api.requests[-1][:2] == ("GET", "/api/v1/batches/batch_1")
    assert all(text in seen.out for text in ("paused", "429 overloaded", "40 answered, 2 with errors, of 100"))


@pytest.mark.parametrize("what", ["cancel", "pause", "resume"])
def test_it_is_steered(holdfast: Holdfast, api: FakeApi, what: str) -> None:
    api.batches = [GOING]
    assert holdfast("batches", what, "batch_1", "--json").json == GOING
    assert api.requests[-1][:2] == ("POST", f"/api/v1/batches/batch_1/{what}")
