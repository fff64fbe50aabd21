"""The host's HTTP server, asked as the control plane asks it."""

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse

from fleet.access import tickets
from fleet.access.secrets import digest
from fleet.host_client import FileFacts, HostAddress, HostClient, HostUnreachable
from fleet.join import Identity, TemporalAccess
from fleet.model_files import ModelFiles
from fleet.serving import CannotListen, listen
from tests.unit.host.conftest import Door
from worker_host.engine_log import EngineLogs
from worker_host.server import HostServer

CREDENTIAL = "hf-host-credential"
INSTANCE = "chat/1-a"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "m.gguf").write_bytes(b"GGUF" + b"\0" * 96)
    return folder


@pytest.fixture
def logs(tmp_path: Path) -> EngineLogs:
    return EngineLogs(tmp_path / "logs")


@pytest.fixture
def host(models: Path, logs: EngineLogs, door: Door) -> HostAddress:
    """The address of a real server."""
    temporal = TemporalAccess(address="127.0.0.1:1", namespace="default")
    identity = Identity(host_id="h1", name="h", server="http://127.0.0.1:1", credential=CREDENTIAL, temporal=temporal)

    async def metrics_of(instance: str) -> str | None:
        return "requests 1\n" if instance == "smol/1-ab" else None

    door.app = HostServer(identity=identity, models=models, logs=logs, running=lambda: 3, metrics_of=metrics_of).app()
    return HostAddress("h1", "127.0.0.1", door.port, digest(CREDENTIAL))


@pytest.fixture
async def client() -> AsyncIterator[HostClient]:
    made = HostClient()
    yield made
    await made.aclose()


def write_log(logs: EngineLogs, attempt: int, text: str) -> Path:
    path = logs.path(INSTANCE, attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


async def get(host: HostAddress, path: str, ticket: str | None = None) -> httpx.Response:
    ticket = tickets.issue(host.credential_hash, host.host_id) if ticket is None else ticket
    async with httpx.AsyncClient(trust_env=False) as http:
        headers = {"authorization": f"Bearer {ticket}"} if ticket else {}
        return await http.get(f"{host.base_url}{path}", headers=headers)


async def log(client: HostClient, host: HostAddress, instance: str = INSTANCE, **params: str | int) -> tuple[int, str]:
    async with client.engine_log(host, instance, dict(params)) as answer:
        return answer.status_code, (await answer.aread()).decode()


# -- who may ask ---------------------------------------------------------------------------------------------------


async def test_anybody_may_ask_whether_it_lives(host: HostAddress) -> None:
    assert (await get(host, "/healthz", ticket="")).json() == {"status": "ok"}


@pytest.mark.parametrize(
    "path", ["/files?path=m.gguf", f"/engines/{INSTANCE}/log", f"/engines/{INSTANCE}/metrics", "/metrics"]
)
async def test_everything_else_takes_a_ticket_for_this_host_and_this_minute(host: HostAddress, path: str) -> None:
    key = digest(CREDENTIAL)
    bad = ["", "x", CREDENTIAL, tickets.issue(key, "h2"), tickets.issue(digest("x"), "h1"), tickets.issue(key, "h1", 0)]
    for ticket in bad:
        answer = await get(host, path, ticket)
        assert (answer.status_code, "ticket" in answer.json()["detail"]) == (401, True)
    assert (await get(host, path)).status_code != 401


async def test_metrics_say_how_many_engines_there_are(host: HostAddress) -> None:
    answer = await get(host, "/metrics")
    assert "holdfast_host_engines 3.0" in answer.text
    assert "holdfast_host_ram_bytes" in answer.text


# -- model files ---------------------------------------------------------------------------------------------------


async def test_file_is_found_in_the_models_folder_and_by_its_absolute_path(
    host: HostAddress, client: HostClient, models: Path
) -> None:
    expected = FileFacts(path=str(models / "m.gguf"), exists=True, readable=True, size_bytes=100, is_gguf=True)
    assert await client.file_facts(host, "m.gguf") == expected
    assert await client.file_facts(host, str(models / "m.gguf")) == expected
    (models / "link").symlink_to(models / "m.gguf")
    assert await client.file_facts(host, "link") == expected


async def test_names_with_anything_in_them_are_asked_for_whole(
    host: HostAddress, client: HostClient, models: Path
) -> None:
    name = "my model & ü?#%20+.gguf"
    (models / name).write_bytes(b"GGUF")
    assert (await client.file_facts(host, name)).is_gguf


async def test_missing_file_does_not_exist(host: HostAddress, client: HostClient) -> None:
    for path in ("nope.gguf", "m.gguf/below", "x" * 300, "/" + "x/" * 2500):
        facts = await client.file_facts(host, path)
        assert (facts.exists, facts.readable) == (False, False), path


async def test_what_is_not_a_file_exists_and_cannot_be_read(
    host: HostAddress, client: HostClient, models: Path
) -> None:
    os.mkfifo(models / "pipe")
    for path in (str(models), ".", "pipe"):
        facts = await asyncio.wait_for(client.file_facts(host, path), 5)
        assert (facts.exists, facts.readable, facts.size_bytes) == (True, False, 0), path


async def test_link_to_itself_is_nothing(host: HostAddress, client: HostClient, models: Path) -> None:
    (models / "loop").symlink_to("loop")
    assert not (await client.file_facts(host, "loop")).exists


async def test_file_that_may_not_be_read_is_said_to_be_there(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker_host.server import file_facts

    def denied(*_args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    facts = file_facts(models / "m.gguf")
    assert (facts.exists, facts.readable) == (True, False)


@pytest.mark.parametrize("content", [b"", b"GG", b"safetensors"])
async def test_file_of_another_kind_is_no_gguf(
    host: HostAddress, client: HostClient, models: Path, content: bytes
) -> None:
    (models / "other").write_bytes(content)
    facts = await client.file_facts(host, "other")
    assert (facts.readable, facts.is_gguf, facts.size_bytes) == (True, False, len(content))


@pytest.mark.parametrize("query", ["", "?path=", "?path=a%00b"])
async def test_path_that_is_none_is_refused(host: HostAddress, query: str) -> None:
    assert (await get(host, f"/files{query}")).status_code == 400


# -- logs ----------------------------------------------------------------------------------------------------------


async def test_newest_log_is_read_unless_another_is_asked_for(
    host: HostAddress, client: HostClient, logs: EngineLogs
) -> None:
    write_log(logs, 1, "first\n")
    write_log(logs, 2, "second\n")
    assert await log(client, host) == (200, "second\n")
    assert await log(client, host, attempt=1) == (200, "first\n")
    status, text = await log(client, host, attempt=3)
    assert (status, json.loads(text)["detail"]) == (404, f"{INSTANCE} has no attempt 3 on this host")


async def test_instance_without_a_log_is_not_found(host: HostAddress, client: HostClient) -> None:
    assert (await log(client, host))[0] == 404


@pytest.mark.parametrize(
    ("tail", "expected"), [(0, ""), (1, "c\n"), (2, "b\nc\n"), (3, "a\nb\nc\n"), (99, "a\nb\nc\n"), ("x", "a\nb\nc\n")]
)
async def test_last_lines_are_as_many_as_were_asked_for(
    host: HostAddress, client: HostClient, logs: EngineLogs, tail: int | str, expected: str
) -> None:
    write_log(logs, 1, "a\nb\nc\n")
    assert await log(client, host, tail=tail) == (200, expected)


async def test_lines_of_a_long_log_are_exact(host: HostAddress, client: HostClient, logs: EngineLogs) -> None:
    lines = [f"line {number} {'x' * (number % 200)}\n" for number in range(20_000)]
    write_log(logs, 1, "".join(lines))
    assert await log(client, host, tail=5000) == (200, "".join(lines[-5000:]))


async def test_tokens_in_a_log_are_not_shown(host: HostAddress, client: HostClient, logs: EngineLogs) -> None:
    write_log(logs, 1, "login with hf_abcdefghijkl\n")
    assert await log(client, host) == (200, "login with ********\n")


@pytest.mark.parametrize(
    "instance", ["../../etc/passwd", "..%2F..%2Fsecret", "chat/..", "chat/../other", "chat/1/2", "chat", "./1", "a b/c"]
)
async def test_path_that_leads_elsewhere_is_refused(
    host: HostAddress, logs: EngineLogs, instance: str, tmp_path: Path
) -> None:
    (tmp_path / "logs" / "chat").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "logs", tmp_path / "logs" / "chat"):
        (folder / "1.log").write_text("hidden text")
    answer = await get(host, f"/engines/{instance}/log?attempt=1")
    assert answer.status_code == 404
    assert "hidden text" not in answer.text


async def test_followed_log_goes_on_with_whole_lines_and_loses_none(
    host: HostAddress, client: HostClient, logs: EngineLogs
) -> None:
    with chatty(write_log(logs, 1, "line 0\n")) as written:
        async with client.engine_log(host, INSTANCE, {"follow": "true", "tail": 1}) as answer:
            seen: list[int] = []
            async for line in answer.aiter_lines():
                seen.append(int(line.split()[1]))
                if len(seen) >= 3000:
                    break
        assert written
    assert seen == list(range(seen[0], seen[0] + len(seen)))


async def test_follower_gets_what_comes_later(host: HostAddress, client: HostClient, logs: EngineLogs) -> None:
    path = write_log(logs, 1, "early\n")
    async with client.engine_log(host, INSTANCE, {"follow": "true"}) as answer:
        parts = answer.aiter_text()
        assert await asyncio.wait_for(anext(parts), 5) == "early\n"
        with path.open("a") as file:
            file.write("late with sk-abcdefgh12345678\nunfinished")
        assert await asyncio.wait_for(anext(parts), 5) == "late with ********\n"


# -- the asking side -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "not a host", "[", "::1", ""])
async def test_host_that_is_not_there_is_unreachable(client: HostClient, address: str) -> None:
    nobody = HostAddress("h9", address, 1, "hash")
    with pytest.raises(HostUnreachable, match="h9"):
        await client.file_facts(nobody, "m.gguf")
    with pytest.raises(HostUnreachable, match="h9"):
        await log(client, nobody)
    with pytest.raises(HostUnreachable, match="h9"):
        await client.engine_metrics(nobody, INSTANCE)


async def test_host_that_does_not_know_us_is_unreachable(client: HostClient, host: HostAddress) -> None:
    stranger = HostAddress("h1", host.address, host.port, digest("another credential"))
    with pytest.raises(HostUnreachable, match="401"):
        await client.file_facts(stranger, "m.gguf")


async def test_host_that_answers_nonsense_is_unreachable(client: HostClient, door: Door) -> None:
    door.app = PlainTextResponse("<html>")
    with pytest.raises(HostUnreachable):
        await client.file_facts(HostAddress("h1", "127.0.0.1", door.port, "hash"), "m.gguf")


async def test_all_hosts_are_asked_and_one_that_is_away_is_none(host: HostAddress, client: HostClient) -> None:
    away = HostAddress("away", "127.0.0.1", 1, "hash")
    found = await ModelFiles(client).on([host, away], "m.gguf")
    assert found["away"] is None
    assert found["h1"] is not None
    assert found["h1"].is_gguf


async def test_file_that_was_found_is_remembered_and_one_that_was_missing_is_not(
    host: HostAddress, client: HostClient, models: Path
) -> None:
    files = ModelFiles(client)
    assert (await files.on([host], "new.gguf"))["h1"] == FileFacts(path=str(models / "new.gguf"), exists=False)
    (models / "new.gguf").write_bytes(b"GGUF")
    first = (await files.on([host], "new.gguf"))["h1"]
    assert first is not None
    assert first.is_gguf
    (models / "new.gguf").unlink()
    assert (await files.on([host], "new.gguf"))["h1"] == first


async def test_port_that_is_taken_is_named() -> None:
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    try:
        with pytest.raises(CannotListen, match=f"127.0.0.1 port {port}"):
            listen("127.0.0.1", port)
    finally:
        listening.close()


@contextmanager
def chatty(path: Path) -> Iterator[list[int]]:
    """While open, ``line 1``, ``line 2`` … are written to ``path`` as fast as it goes."""
    stop, written = threading.Event(), [0]

    def write() -> None:
        with path.open("a", buffering=1) as file:
            while not stop.is_set() and written[0] < 200_000:
                written[0] += 1
                file.write(f"line {written[0]}\n")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield written
    finally:
        stop.set()
        thread.join()


async def test_metrics_of_an_engine_are_passed_on_and_of_another_are_not_found(
    host: HostAddress, client: HostClient
) -> None:
    assert await client.engine_metrics(host, "smol/1-ab") == "requests 1\n"
    assert await client.engine_metrics(host, "smol/2-cd") is None
