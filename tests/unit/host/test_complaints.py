"""What is wrong is said, and not with every attempt."""

import logging

import pytest

from worker_host.complaints import Complaints


def test_the_same_is_said_again_after_a_minute_and_something_else_at_once(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    complaints = Complaints(logging.getLogger("holdfast.host"), logging.WARNING, lambda: now[0])
    for moment, text in ((0, "a"), (1, "a"), (2, "b"), (3, "b"), (62, "b"), (63, "b"), (64, "a")):
        now[0] = float(moment)
        complaints.say(text)
    assert caplog.messages == ["a", "b", "b", "a"]
