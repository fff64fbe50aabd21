"""``defragment``, as people and scripts see it."""

from typing import Any

from tests.unit.cli.conftest import Holdfast
from tests.unit.cli.fake_api import FakeApi

FOUND: dict[str, Any] = {
    "deployment": "chat",
    "state": "moving",
    "message": "moves low/1 from a to b",
    "waiting": "chat/1-3f2a9c01",
    "moves": [{"instance_id": "low/1", "state": "under_way"}, {"instance_id": "low/0", "state": "done"}],
    "could_not_be_moved": [],
    "asked_by": "a person",
    "started_at": "2026-11-20T10:00:00Z",
}


def test_it_is_begun_and_stopped(holdfast: Holdfast, api: FakeApi) -> None:
    api.defragmentations = [FOUND]
    seen = holdfast("defragment", "chat")
    assert (seen.code, seen.out) == (0, "chat: moving, moves low/1 from a to b\n")
    assert api.requests[-1] == ("POST", "/api/v1/defragmentations", {"deployment": "chat"})
    assert holdfast("defragment", "chat", "--stop", "--reason", "not today").code == 0
    assert api.requests[-1] == ("POST", "/api/v1/defragmentations/chat/stop", {"reason": "not today"})


def test_all_are_listed_with_how_far_they_are(holdfast: Holdfast, api: FakeApi) -> None:
    api.defragmentations = [FOUND]
    assert holdfast("defragment", "--json").json == [FOUND]
    seen = holdfast("defragment")
    assert all(text in seen.out for text in ("chat", "moving", "chat/1-3f2a9c01"))
    api.defragmentations = []
    assert "nothing is being moved" in holdfast("defragment").out


def test_stop_needs_to_know_which(holdfast: Holdfast, api: FakeApi) -> None:
    assert holdfast("defragment", "--stop").code == 2
    assert [r for r in api.requests if r[0] == "POST"] == []
