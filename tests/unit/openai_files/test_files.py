"""What clients keep here comes back byte for byte, to them alone, for as long as they asked."""

import asyncio
import os
from datetime import timedelta
from typing import Any

import pytest
from openai import APIStatusError, ConflictError, NotFoundError
from sqlmodel import Session, select

from fleet.db import batches
from fleet.db.batches import BatchRow
from fleet.db.stored_files import CHUNK_BYTES, StoredChunkRow, StoredFileRow
from fleet.db.tables import now
from tests.unit.openai_files.conftest import Here


async def keep(here: Here, data: bytes = b"x", purpose: Any = "user_data", key: str = "key-a", **more: Any) -> Any:
    return await here.client(key).files.create(file=("a.bin", data), purpose=purpose, **more)


def chunks(here: Here) -> int:
    return len(here.database.read(lambda s: s.exec(select(StoredChunkRow.number)).all()))


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17])
async def test_what_was_kept_comes_back_byte_for_byte(here: Here, size: int) -> None:
    data = os.urandom(size)
    file = await keep(here, data)
    assert (file.bytes, file.filename, file.purpose, file.status) == (size, "a.bin", "user_data", "processed")
    assert file.expires_at is None
    content = await here.client().files.content(file.id)
    assert content.content == data
    assert content.response.headers["content-length"] == str(size)
    assert chunks(here) == -(-size // CHUNK_BYTES)


async def test_a_file_is_its_keys_alone(here: Here) -> None:
    file, stranger = await keep(here), here.client("key-b")
    for ask in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
        with pytest.raises(NotFoundError, match="No such file"):
            await ask(file.id)
    assert (await stranger.files.list()).data == []
    with pytest.raises(NotFoundError):
        await stranger.files.list(after=file.id)
    assert (await here.client().files.retrieve(file.id)).id == file.id


async def test_deleted_nothing_is_left_of_it(here: Here) -> None:
    file = await keep(here, os.urandom(CHUNK_BYTES + 1))
    assert (await here.client().files.delete(file.id)).deleted
    assert chunks(here) == 0
    with pytest.raises(NotFoundError):
        await here.client().files.delete(file.id)


async def test_lists_go_page_by_page_in_both_orders_and_by_purpose(here: Here) -> None:
    made = [(await keep(here, purpose="batch" if n % 2 else "vision")).id for n in range(5)]
    files = here.client().files
    assert [f.id async for f in files.list(limit=2)] == made[::-1]
    assert [f.id async for f in files.list(limit=2, order="asc")] == made
    assert [f.id async for f in files.list(purpose="batch", limit=1)] == made[3:0:-2]
    page = await files.list(limit=4)
    assert (len(page.data), page.has_more) == (4, True)
    with pytest.raises(APIStatusError, match="'limit' must be a number from 1 to 10000"):
        await files.list(limit=0)


async def test_after_its_time_it_is_gone_and_its_room_is_given_back(here: Here) -> None:
    file = await keep(here, expires_after={"anchor": "created_at", "seconds": 3600})
    assert abs(file.expires_at - file.created_at - 3600) <= 1
    kept = await keep(here, purpose="batch")
    assert kept.expires_at is not None, "inputs of batches go by themselves"

    def later(session: Session) -> None:
        row = session.get_one(StoredFileRow, file.id)
        row.expires_at = now() - timedelta(seconds=1)
        session.add(row)

    here.database.write(later)
    with pytest.raises(NotFoundError):
        await here.client().files.retrieve(file.id)
    assert [f.id async for f in here.client().files.list()] == [kept.id]
    assert here.database.write(lambda s: batches.sweep_files(s, now())) == 1
    assert chunks(here) == 1


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"purpose": "fun"}, "purpose"),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "created_at", "seconds": 10**9}}, "expires_after.seconds"),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_kept(here: Here, changes: dict[str, Any], param: str) -> None:
    with pytest.raises(APIStatusError) as refused:
        await keep(here, **({"purpose": "batch"} | changes))
    assert (refused.value.status_code, refused.value.param) == (400, param)
    assert chunks(here) == 0
    assert here.database.read(lambda s: s.exec(select(StoredFileRow)).all()) == []


async def test_too_large_a_file_is_refused_and_nothing_of_it_is_kept(here: Here) -> None:
    with pytest.raises(APIStatusError) as refused:
        await keep(here, bytes(here.limits.file_bytes + 1))
    assert (refused.value.status_code, refused.value.code) == (413, "file_too_large")
    assert chunks(here) == 0


async def test_a_key_may_keep_only_so_much(here: Here) -> None:
    first = await keep(here, bytes(5 << 20))
    await keep(here, bytes(5 << 20))
    with pytest.raises(APIStatusError) as refused:
        await keep(here, bytes(3 << 20))
    assert (refused.value.status_code, refused.value.code) == (403, "storage_quota_exceeded")
    await keep(here, bytes(3 << 20), key="key-b")
    await here.client().files.delete(first.id)
    await keep(here, bytes(3 << 20))


async def test_the_file_may_come_before_its_purpose(here: Here) -> None:
    body = _form(("file", "x.bin", b"data"), ("purpose", None, b"vision"))
    answer = await here.http().post("/v1/files", content=body, headers={"content-type": _TYPE})
    assert (answer.status_code, answer.json()["purpose"]) == (200, "vision")


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"", "multipart/form-data", 415),
        (b"nonsense", "multipart/form-data; boundary=b", 400),
        (b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nvision\r\n--b--\r\n', None, 400),
        (b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\ndata', None, 400),
    ],
)
async def test_a_damaged_form_is_refused(here: Here, body: bytes, kind: str | None, status: int) -> None:
    answer = await here.http().post("/v1/files", content=body, headers={"content-type": kind or _TYPE})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    assert here.database.read(lambda s: s.exec(select(StoredFileRow)).all()) == []


async def test_an_upload_that_breaks_off_leaves_nothing(here: Here) -> None:
    body = _form(("file", "x.bin", os.urandom(3 * CHUNK_BYTES)))
    messages = [
        {"type": "http.request", "body": body[: 2 * CHUNK_BYTES], "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there")

    scope = {"method": "POST", "path": "/v1/files", "headers": [(b"content-type", _TYPE.encode())]}
    assert await here.handler(scope, receive, send, "key-a") == 499
    assert chunks(here) == 0


async def test_an_input_stays_as_long_as_its_batch_reads_it(here: Here) -> None:
    file = await keep(here, purpose="batch")
    batch = await here.client().batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
    )
    with pytest.raises(ConflictError, match=batch.id):
        await here.client().files.delete(file.id)

    def later(session: Session) -> None:
        row = session.get_one(StoredFileRow, file.id)
        row.expires_at = now() - timedelta(seconds=1)
        session.add(row)

    here.database.write(later)
    assert here.database.write(lambda s: batches.sweep_files(s, now())) == 0
    here.database.write(lambda s: batches.seal(s, batch.id))
    assert here.database.read(lambda s: s.get_one(BatchRow, batch.id).sealed)
    assert here.database.write(lambda s: batches.sweep_files(s, now())) == 1


async def test_many_uploads_at_once(here: Here) -> None:
    data = [os.urandom(300_000) for _ in range(8)]
    files = await asyncio.gather(*(keep(here, d) for d in data))
    assert [(await here.client().files.content(f.id)).content for f in files] == data


@pytest.mark.parametrize("path", ["/v1/files/x/y", "/v1/files/x/cancel", "/v1/batches/x/content", "/v1/filesx"])
async def test_other_urls_are_unknown(here: Here, path: str) -> None:
    assert (await here.http().get(path)).status_code == 404


async def test_other_methods_are_refused_with_those_that_go(here: Here) -> None:
    answer = await here.http().put("/v1/files/x")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, DELETE")


@pytest.mark.parametrize("name", ["file-\x00", "file-%00", "x" * 200])
async def test_odd_names_are_not_found(here: Here, name: str) -> None:
    assert (await here.http().get(f"/v1/files/{name.replace(chr(0), '%00')}")).status_code == 404


_TYPE = "multipart/form-data; boundary=b"


def _form(*parts: tuple[str, str | None, bytes]) -> bytes:
    body = b""
    for name, filename, data in parts:
        more = f'; filename="{filename}"' if filename else ""
        body += f'--b\r\ncontent-disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data + b"\r\n"
    return body + b"--b--\r\n"
