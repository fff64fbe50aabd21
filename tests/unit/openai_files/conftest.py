"""Files and batches behind OpenAI's own client, without a network."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from api.openai_files import FilesAndBatches, Limits
from fleet.db.session import Database
from fleet.errors import Unavailable


class Here:
    """The handler, what it told of batches, and clients of it by key."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.temporal_answers = True
        self.limits = Limits(file_bytes=5 << 20, key_bytes=12 << 20)
        self.handler = FilesAndBatches(database, self._start, self._cancel, self.limits)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        key_id = dict(scope["headers"])[b"authorization"].decode().removeprefix("Bearer ")
        await self.handler(scope, receive, send, key_id)

    def client(self, key_id: str = "key-a") -> AsyncOpenAI:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app))
        return AsyncOpenAI(api_key=key_id, base_url="http://here/v1", max_retries=0, http_client=http)

    def http(self, key_id: str = "key-a") -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key_id}"}
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://here", headers=headers)

    async def _start(self, batch_id: str) -> None:
        self._tell(self.started.append, batch_id)

    async def _cancel(self, batch_id: str) -> None:
        self._tell(self.cancelled.append, batch_id)

    def _tell(self, tell: Callable[[str], None], batch_id: str) -> None:
        if not self.temporal_answers:
            raise Unavailable("Temporal does not answer")
        tell(batch_id)


@pytest.fixture
def here(database: Database) -> Here:
    return Here(database)
