"""``resync`` says what it has done."""

from tests.unit.cli.conftest import Holdfast
from tests.unit.cli.fake_api import FakeApi

DONE = {
    "hosts": {"started": 1, "existing": 2},
    "instances": {"started": 30, "existing": 4},
    "deployments": {"started": 5, "existing": 6},
    "orphans": [],
}


def test_it_counts_what_was_taken_up_and_what_was_there(holdfast: Holdfast, api: FakeApi) -> None:
    api.resynced = DONE
    seen = holdfast("resync")
    assert seen.code == 0
    assert api.requests[-1][:2] == ("POST", "/api/v1/system/resync")
    lines = [line.split() for line in seen.out.splitlines()]
    assert lines[1:] == [["hosts", "1", "2"], ["instances", "30", "4"], ["deployments", "5", "6"]]
    assert "cleaned up" not in seen.out


def test_it_names_what_was_cleaned_up(holdfast: Holdfast, api: FakeApi) -> None:
    api.resynced = {**DONE, "orphans": ["ghost/1-aa", "ghost/2-bb"]}
    assert "ghost/1-aa, ghost/2-bb" in holdfast("resync").out


def test_json_is_the_answer_of_the_api_and_nothing_else(holdfast: Holdfast, api: FakeApi) -> None:
    api.resynced = DONE
    assert holdfast("resync", "--json").json == DONE


def test_a_temporal_that_does_not_answer_ends_with_1_and_the_hint(holdfast: Holdfast, api: FakeApi) -> None:
    api.problem = (503, {"title": "Unavailable", "detail": "Temporal does not take changes now", "hint": "try again"})
    seen = holdfast("resync")
    assert seen.code == 1
    assert "try again" in seen.err
