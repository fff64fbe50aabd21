"""Answering for an activity by its task token, from whichever process holds it now."""

import logging
from enum import StrEnum

from temporalio.client import AsyncActivityCancelledError, Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from worker_host.complaints import Complaints

_complaints = Complaints(logging.getLogger("holdfast.host"), logging.WARNING)


class Beat(StrEnum):
    ALIVE = "alive"
    STOP = "stop"
    """The workflow wants it gone: the only word that may stop an engine."""
    VOID = "void"
    """Temporal does not know the token (any more): the workflow ended, went on as new, or the heartbeat was late."""
    UNASKED = "unasked"
    """Temporal refuses a cancellation that nobody asked for: the activity is still open."""
    UNREACHABLE = "unreachable"


class TaskToken:
    def __init__(self, client: Client, token: bytes) -> None:
        self._handle = client.get_async_activity_handle(task_token=token)

    async def heartbeat(self, *details: object) -> Beat:
        try:
            await self._handle.heartbeat(*details)
        except AsyncActivityCancelledError as error:
            # Paused, reset or timed out also arrive as a cancellation; they leave the engine alone.
            wanted = error.details is not None and error.details.cancel_requested
            return Beat.STOP if wanted else Beat.ALIVE
        except (RPCError, RuntimeError) as error:
            return _beat_of(error)
        return Beat.ALIVE

    async def fail(self, error: ApplicationError) -> Beat:
        """ALIVE when Temporal has taken it."""
        try:
            await self._handle.fail(error)
        except (RPCError, RuntimeError) as rpc:
            return _beat_of(rpc)
        return Beat.ALIVE

    async def report_cancellation(self) -> Beat:
        """ALIVE when Temporal has taken it."""
        try:
            await self._handle.report_cancellation()
        except (RPCError, RuntimeError) as error:
            return Beat.UNASKED if _status(error) is RPCStatusCode.INVALID_ARGUMENT else _beat_of(error)
        return Beat.ALIVE


def _beat_of(error: RPCError | RuntimeError) -> Beat:
    # Invalid is what a token of another Temporal is.
    if _status(error) in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT):
        return Beat.VOID
    _complaints.say(f"Temporal does not take our word: {error}")
    return Beat.UNREACHABLE


def _status(error: RPCError | RuntimeError) -> RPCStatusCode:
    """RuntimeError is what the SDK raises while there has never been a connection."""
    return error.status if isinstance(error, RPCError) else RPCStatusCode.UNAVAILABLE
