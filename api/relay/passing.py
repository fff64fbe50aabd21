"""Temporal's calls of one host, looked at and passed on."""

from collections.abc import Mapping
from dataclasses import dataclass

import grpc
import grpc.aio

from api.relay.authenticate import Caller
from api.relay.ownership import TaskTokens
from api.relay.refusal import Refused
from api.relay.temporal_calls import POLL, SERVICE, Passage
from api.relay.upstream import Upstream

_OURS = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})


class Answered(Exception):
    """Temporal answered with an error; it goes to the host as it is, with its details."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(error.details())
        self.status = error.code()
        self.text = error.details() or ""
        self.trailing = tuple((k, v) for k, v in error.trailing_metadata() or () if k == "grpc-status-details-bin")


@dataclass(frozen=True)
class Temporal:
    upstream: Upstream
    tokens: TaskTokens
    namespace: str

    async def call(
        self, method: str, request: bytes, caller: Caller, metadata: Mapping[str, str | bytes], within_s: float | None
    ) -> bytes:
        """Raises Refused or Answered. Temporal that is away is UNAVAILABLE, so clients try again."""
        passage = Passage(caller.host.id, self.namespace, self.tokens)
        prepared = passage.prepare(method, request)
        try:
            answer = await self.upstream.call(
                SERVICE + method, prepared, metadata.items(), poll=method == POLL, within_s=within_s
            )
        except grpc.aio.AioRpcError as error:
            if error.code() in _OURS:
                # It is us whom Temporal does not let in: nothing that the host could mend, or should die of.
                text = f"Temporal refuses the relay: {error.details()}"
                raise Refused(grpc.StatusCode.UNAVAILABLE, "temporal", text) from error
            raise Answered(error) from error
        return passage.finish(method, answer)
