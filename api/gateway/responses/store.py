"""Responses that clients may come back to: noted at once, written a moment later."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import orjson
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session

from api.gateway import refusals
from api.gateway.conversion import Document
from api.gateway.refusals import Refusal, shown
from api.gateway.responses.items import own_items
from api.gateway.responses.prepared import Prepared, no_such_previous
from fleet.db import stored_responses
from fleet.db.session import Database

T = TypeVar("T")
_log = logging.getLogger(__name__)

_AT_ONCE = 64
"""Rows of one transaction."""
_LOOKED_AGAIN_AFTER_S = (0.05, 0.2)
"""Another gateway process may be about to write it."""
_PRUNE_EVERY_S = 3600.0
_LONGEST_PAUSE_S = 15.0


class StoredResponses:
    """One per gateway process. ``save`` never fails and never waits; ``run`` writes.

    What is noted is found at once by this process, and by others when it is written, mostly some milliseconds later.
    While the database is away it is kept in memory, up to ``most_bytes``; what is beyond that is not stored.
    """

    def __init__(
        self,
        database: Database,
        *,
        keep: timedelta = timedelta(days=30),
        largest: int = 4 << 20,
        longest: int = 32 << 20,
        most_bytes: int = 64 << 20,
        prunes: bool = True,
    ) -> None:
        """``keep``: how long after it was made, or was last gone on from. ``largest``: characters of one response and
        the input of its request. ``longest``: of a conversation that is gone on with. ``prunes``: whether this process
        deletes what has expired; one worker of several is enough."""
        self._database = database
        self._keep = keep
        self._largest, self._longest, self._most_bytes = largest, longest, most_bytes
        self._waiting: dict[str, dict[str, Any]] = {}
        """Rows that are not written yet, by id."""
        self._bytes = 0
        self._noticed = asyncio.Event()
        self._writing = asyncio.Lock()
        self._prunes = prunes
        self._pruned_at = float("-inf")
        self._down = False

    # --- writing ---

    def save(self, prepared: Prepared, response: Document) -> None:
        """Call from the event loop, before the client has the whole answer: it may ask for it at once."""
        response_id: str = response["id"]
        if response_id in self._waiting or not _is_id(response_id):
            return
        given = orjson.dumps(own_items(prepared, response_id)).decode()
        answered = orjson.dumps(response).decode()
        size = len(given) + len(answered)
        if size > self._largest:
            _log.warning("response %s is not stored: %d characters are more than %d", response_id, size, self._largest)
            return
        if self._bytes + size > self._most_bytes:
            _log.error("response %s is not stored: the database is away, and too many wait for it", response_id)
            return
        self._bytes += size
        self._waiting[response_id] = self._row(prepared, response_id, given, answered)
        self._noticed.set()

    async def run(self) -> None:
        """Until cancelled."""
        pause = 0.0
        while True:
            await self._noticed.wait()
            self._noticed.clear()
            if await self.flush():
                pause = 0.0
                await self._prune()
            else:
                pause = min(_LONGEST_PAUSE_S, pause * 2 or 0.25)
                await asyncio.sleep(pause)
                self._noticed.set()

    async def flush(self) -> bool:
        """Write what is noted; whether the database took it. Does not raise."""
        async with self._writing:
            while batch := list(self._waiting.values())[:_AT_ONCE]:
                try:
                    await self._database.awrite(lambda s, rows=batch: stored_responses.write(s, rows))  # type: ignore[misc]
                except SQLAlchemyError as error:
                    self._note_down(error)
                    return False
                self._down = False
                for row in batch:
                    self._drop(row["id"])
        return True

    async def stop(self) -> None:
        """When ``run`` has ended: write what is noted, if the database is there."""
        try:
            async with asyncio.timeout(5):
                await self.flush()
        except TimeoutError:
            pass
        if self._waiting:
            _log.error("%d responses are not stored: the database does not take them", len(self._waiting))

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    # --- reading; all raise ``Refusal`` 503 while the database is away ---

    async def load_chain(self, key_id: str, response_id: str) -> list[Document]:
        """Inputs and outputs of the conversation up to and with this response, oldest first. Raises ``Refusal``."""
        items, broken = await self._chain(key_id, response_id)
        if broken is not None:
            raise no_such_previous(broken)
        return items

    async def find_items(self, key_id: str, response_id: str) -> dict[str, Document]:
        """Of one response and its request, by their ids; empty: there is none such."""
        row = await self._row_of(key_id, response_id)
        return {} if row is None else {item["id"]: item for item in _items(*row) if "id" in item}

    async def get(self, key_id: str, response_id: str) -> bytes:
        """JSON, as the client got it. Raises ``Refusal`` 404."""
        row = await self._row_of(key_id, response_id)
        if row is None:
            raise unknown_response(response_id)
        return row[1].encode()

    async def input_items(self, key_id: str, response_id: str) -> list[Document]:
        """All that the model was given, oldest first, also of the responses before that are still there; each id
        once. Raises ``Refusal`` 404."""
        row = await self._row_of(key_id, response_id)
        if row is None:
            raise unknown_response(response_id)
        items, response = _items(row[0], None), orjson.loads(row[1])
        if previous := response.get("previous_response_id"):
            items = (await self._chain(key_id, previous))[0] + items
        return list({item["id"]: item for item in reversed(items) if "id" in item}.values())[::-1]

    async def delete(self, key_id: str, response_id: str) -> None:
        """Conversations cannot go on from it, or from those after it, any more. Raises ``Refusal`` 404."""
        if await self._row_of(key_id, response_id) is None:
            raise unknown_response(response_id)
        async with self._writing:
            self._drop(response_id)
            await self._asked(
                self._database.awrite, lambda s: stored_responses.remove(s, key_id, response_id, datetime.now(UTC))
            )

    # --- how ---

    def _row(self, prepared: Prepared, response_id: str, given: str, answered: str) -> dict[str, Any]:
        now = datetime.now(UTC)
        return {
            "id": response_id,
            "key_id": prepared.key_id,
            "previous_id": prepared.previous_id,
            "input": given,
            "response": answered,
            "size": len(given) + len(answered),
            "created_at": now,
            "expires_at": now + self._keep,
        }

    def _drop(self, response_id: str) -> None:
        row = self._waiting.pop(response_id, None)
        if row is not None:
            self._bytes -= row["size"]

    async def _row_of(self, key_id: str, response_id: str) -> tuple[str, str] | None:
        """(input, response), both JSON."""

        def read(session: Session) -> tuple[str, str] | None:
            row = stored_responses.get(session, key_id, response_id, datetime.now(UTC))
            return None if row is None else (row.input, row.response)

        return await self._found(key_id, response_id, lambda row: (row["input"], row["response"]), read)

    async def _chain(self, key_id: str, response_id: str) -> tuple[list[Document], str | None]:
        """Items, oldest first; and the id of the response at which it breaks off, if it does. Raises ``Refusal``."""
        rows: list[tuple[str, str]] = []
        wanted: str | None = response_id
        # Bounded: an engine that names its responses itself might name two alike.
        while wanted is not None and len(rows) < len(self._waiting):
            row = self._waiting.get(wanted)
            if row is None or row["key_id"] != key_id:
                break
            rows.append((row["input"], row["response"]))
            wanted = row["previous_id"]
        if wanted is not None:
            older, wanted = await self._written(key_id, wanted)
            rows += older
        return [item for row in reversed(rows) for item in _items(*row)], wanted

    async def _written(self, key_id: str, response_id: str) -> tuple[list[tuple[str, str]], str | None]:
        def read(session: Session) -> tuple[list[tuple[str, str]], str | None] | None:
            links = stored_responses.links(session, key_id, response_id, datetime.now(UTC))
            if not links:
                return None
            if sum(link.size for link in links) > self._longest or len(links) >= stored_responses.MOST_LINKS:
                raise _too_long()
            texts = stored_responses.texts(session, [link.id for link in links])
            return [texts[link.id] for link in links if link.id in texts], links[-1].previous_id

        return await self._found(key_id, response_id, lambda _row: None, read) or ([], response_id)

    async def _found(
        self,
        key_id: str,
        response_id: str,
        noted: Callable[[dict[str, Any]], T | None],
        read: Callable[[Session], T | None],
    ) -> T | None:
        """What is noted, or read; looked for again shortly."""
        if not _is_id(response_id):
            return None
        for pause in (*_LOOKED_AGAIN_AFTER_S, None):
            row = self._waiting.get(response_id)
            if row is not None and row["key_id"] == key_id and (found := noted(row)) is not None:
                return found
            if (found := await self._asked(self._database.aread, read)) is not None or pause is None:
                return found
            await asyncio.sleep(pause)
        return None

    async def _asked(self, ask: Callable[[Callable[[Session], T]], Any], transaction: Callable[[Session], T]) -> T:
        try:
            found: T = await ask(transaction)
        except SQLAlchemyError as error:
            self._note_down(error)
            raise refusals.unavailable("Stored responses cannot be read now. Try again.", after=2) from error
        return found

    async def _prune(self) -> None:
        if not self._prunes or time.monotonic() - self._pruned_at < _PRUNE_EVERY_S:
            return
        self._pruned_at = time.monotonic()
        try:
            await self._database.awrite(lambda s: stored_responses.prune(s, datetime.now(UTC)))
        except SQLAlchemyError as error:
            self._note_down(error)

    def _note_down(self, error: SQLAlchemyError) -> None:
        if not self._down:
            self._down = True
            _log.warning("responses cannot be stored or read now: %s", getattr(error, "orig", error))


def _is_id(text: str) -> bool:
    """Whether every database can be asked for it."""
    return text.isascii() and text.isprintable() and 0 < len(text) <= 256


def unknown_response(response_id: str) -> Refusal:
    return Refusal(404, f"Response with id '{shown(response_id)}' not found.", param="response_id", code="not_found")


def _too_long() -> Refusal:
    return Refusal(
        400,
        "The conversation has become too long to go on with. Send what matters of it as 'input'.",
        param="previous_response_id",
        code="conversation_too_long",
    )


def _items(given: str, response: str | None) -> list[Document]:
    items: list[Document] = orjson.loads(given)
    if response is not None:
        items += orjson.loads(response).get("output") or []
    return items
