"""Temporal as a host sees it through task tokens, scripted."""

from collections import defaultdict
from typing import Any, cast

from temporalio.activity import ActivityCancellationDetails
from temporalio.client import AsyncActivityCancelledError, Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

GONE = RPCError("workflow execution already completed", RPCStatusCode.NOT_FOUND, b"")
NOT_OURS = RPCError("Error deserializing task token.", RPCStatusCode.INVALID_ARGUMENT, b"")
DOWN = RPCError("connection refused", RPCStatusCode.UNAVAILABLE, b"")
UNASKED = RPCError("unable to mark activity as canceled without ...", RPCStatusCode.INVALID_ARGUMENT, b"")
WANTED = AsyncActivityCancelledError(ActivityCancellationDetails(cancel_requested=True))


def not_wanted(reason: str) -> AsyncActivityCancelledError:
    """A cancellation that is none: ``paused``, ``reset``, ``timed_out`` …"""
    return AsyncActivityCancelledError(ActivityCancellationDetails(**{reason: True}))


class FakeTemporal:
    """``answers[token]`` is what every call with this token raises; without one, all is well."""

    def __init__(self) -> None:
        self.answers: dict[bytes, Exception] = {}
        self.beats: dict[bytes, list[tuple[Any, ...]]] = defaultdict(list)
        self.failures: dict[bytes, list[ApplicationError]] = defaultdict(list)
        self.cancellations: list[bytes] = []

    @property
    def client(self) -> Client:
        return cast(Client, self)

    def get_async_activity_handle(self, *, task_token: bytes) -> "_Handle":
        return _Handle(self, task_token)

    def beaten(self, token: bytes) -> int:
        return len(self.beats[token])


class _Handle:
    def __init__(self, temporal: FakeTemporal, token: bytes) -> None:
        self._temporal = temporal
        self._token = token

    async def heartbeat(self, *details: Any) -> None:
        self._temporal.beats[self._token].append(details)
        if answer := self._temporal.answers.get(self._token):
            raise answer

    async def fail(self, error: ApplicationError) -> None:
        answer = self._temporal.answers.get(self._token)
        if isinstance(answer, RPCError):
            raise answer
        self._close(self._temporal.failures[self._token], error)

    async def report_cancellation(self) -> None:
        answer = self._temporal.answers.get(self._token)
        if isinstance(answer, RPCError):
            raise answer
        if answer is not WANTED:
            raise UNASKED  # as the real one does: the activity stays open
        self._close(self._temporal.cancellations, self._token)

    def _close(self, record: list[Any], what: object) -> None:
        record.append(what)
        self._temporal.answers[self._token] = GONE
