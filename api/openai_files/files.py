"""``/v1/files``: what clients keep here."""

import secrets
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from api.gateway.refusals import Refusal, shown
from api.openai_files.exchange import Exchange, invalid, not_found
from api.openai_files.form import FileForm
from api.openai_files.limits import Limits
from fleet.db import batches, stored_files
from fleet.db.session import Database
from fleet.db.stored_files import CHUNK_BYTES, StoredFileRow
from fleet.db.tables import now

_PURPOSES = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
_MOST_LISTED = 10_000


class Files:
    def __init__(self, database: Database, limits: Limits) -> None:
        self._database = database
        self._limits = limits

    async def upload(self, exchange: Exchange, key_id: str) -> None:
        if exchange.length > self._limits.file_bytes + CHUNK_BYTES:
            raise self._too_large()
        form = FileForm(exchange.header(b"content-type"))
        stored = await self._database.awrite(partial(_room_for, key_id=key_id))
        file_id = f"file-{secrets.token_hex(12)}"
        try:
            size = await self._take(exchange, form, file_id, key_id, stored)
            purpose, expires_at = self._asked(form)
            finish = partial(stored_files.finish, file_id=file_id, size=size, purpose=purpose, expires_at=expires_at)
            row = await self._database.awrite(lambda s: finish(s, filename=form.filename or ""))
        except BaseException:
            await self._database.awrite(lambda s: stored_files.remove(s, file_id))
            raise
        if row is None:
            raise Refusal(408, "The upload took too long and was given up.", code="upload_given_up")
        await exchange.answer(view(row))

    async def list(self, exchange: Exchange, key_id: str) -> None:
        limit = exchange.number("limit", _MOST_LISTED, _MOST_LISTED)
        ascending = exchange.choice("order", "desc", ("asc", "desc")) == "asc"
        after = exchange.query("after")
        last = await self.find(after, key_id, param="after") if after else None
        purpose = exchange.query("purpose")
        rows = await self._database.aread(
            lambda s: stored_files.page(
                s, key_id, now(), after=last, limit=limit + 1, ascending=ascending, purpose=purpose
            )
        )
        await exchange.answer(page([view(r) for r in rows[:limit]], has_more=len(rows) > limit))

    async def read(self, exchange: Exchange, key_id: str, file_id: str) -> None:
        await exchange.answer(view(await self.find(file_id, key_id)))

    async def content(self, exchange: Exchange, key_id: str, file_id: str) -> None:
        row = await self.find(file_id, key_id)
        await exchange.begin(200, b"application/octet-stream", row.bytes)
        for number in range((row.bytes + CHUNK_BYTES - 1) // CHUNK_BYTES):
            chunk = await self._database.aread(partial(stored_files.read_chunk, file_id=file_id, number=number))
            if chunk is None:
                # Deleted meanwhile: the connection breaks off before the length that was announced.
                raise ConnectionAbortedError(f"{file_id} was deleted while it was read")
            await exchange.send(chunk)
        await exchange.end()

    async def delete(self, exchange: Exchange, key_id: str, file_id: str) -> None:
        there, reader = await self._database.awrite(
            partial(batches.remove_file, file_id=file_id, key_id=key_id, at=now())
        )
        if not there:
            raise not_found("file", file_id)
        if reader:
            message = f"The file is the input of {reader}, which is not through yet. Cancel that batch first."
            raise Refusal(409, message, param="id", code="file_in_use")
        await exchange.answer({"id": file_id, "object": "file", "deleted": True})

    async def find(self, file_id: str, key_id: str, param: str = "id") -> StoredFileRow:
        """Raises Refusal."""
        row = None
        if file_id.isprintable():
            row = await self._database.aread(lambda s: stored_files.find(s, file_id, key_id, now()))
        if row is None:
            raise Refusal(404, f"No such file: '{shown(file_id)}'.", param=param, code="not_found")
        return row

    async def _take(self, exchange: Exchange, form: FileForm, file_id: str, key_id: str, stored: int) -> int:
        """Write the file in whole chunks as it comes. Returns its size."""
        await self._database.awrite(lambda s: stored_files.begin(s, file_id, key_id))
        number, size = 0, 0
        async for piece in exchange.pieces():
            form.feed(piece)
            self._bound(size + len(form.file), stored)
            while len(form.file) >= CHUNK_BYTES:
                size += await self._write(file_id, number, form.file)
                number += 1
        form.end()
        if form.file:
            size += await self._write(file_id, number, form.file)
        return size

    def _bound(self, size: int, stored: int) -> None:
        if size > self._limits.file_bytes:
            raise self._too_large()
        if stored + size > self._limits.key_bytes:
            message = f"The files of a key may have {self._limits.key_bytes} bytes in all. Delete some first."
            raise Refusal(403, message, param="file", code="storage_quota_exceeded")

    async def _write(self, file_id: str, number: int, pending: bytearray) -> int:
        chunk = bytes(pending[:CHUNK_BYTES])
        del pending[:CHUNK_BYTES]
        await self._database.awrite(partial(stored_files.write_chunk, file_id=file_id, number=number, data=chunk))
        return len(chunk)

    def _asked(self, form: FileForm) -> tuple[str, datetime | None]:
        purpose = form.fields.get("purpose", "")
        if purpose not in _PURPOSES:
            known = ", ".join(f"'{p}'" for p in _PURPOSES)
            raise invalid(f"'purpose' must be one of {known}; it is '{shown(purpose)}'.", "purpose")
        said = {name: form.fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds")}
        if said["anchor"] is None and said["seconds"] is None:
            return purpose, now() + self._limits.kept if purpose == "batch" else None
        return purpose, now() + kept_for(said, "expires_after", self._limits)

    def _too_large(self) -> Refusal:
        message = f"The file is larger than the limit of {self._limits.file_bytes} bytes. Cut it into several."
        return Refusal(413, message, param="file", code="file_too_large", unread=True)


def kept_for(said: dict[str, Any], param: str, limits: Limits) -> timedelta:
    """Of an ``expires_after``. Raises Refusal."""
    if said.get("anchor") != "created_at":
        raise invalid("'anchor' must be 'created_at'.", f"{param}.anchor")
    seconds = str(said.get("seconds"))
    least, most = int(limits.shortest_kept.total_seconds()), int(limits.longest_kept.total_seconds())
    if not seconds.isdecimal() or not least <= int(seconds) <= most:
        raise invalid(f"'seconds' must be a number from {least} to {most}.", f"{param}.seconds")
    return timedelta(seconds=int(seconds))


def view(row: StoredFileRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": int(row.created_at.timestamp()),
        "expires_at": int(row.expires_at.timestamp()) if row.expires_at is not None else None,
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


def page(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}


def _room_for(session: Any, key_id: str) -> int:
    """Bytes that the key keeps already, once files whose time is over are gone."""
    batches.sweep_files(session, now())
    return stored_files.bytes_of(session, key_id)
