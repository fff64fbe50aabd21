"""The host's HTTP server, asked as the control plane asks it."""

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse

from fleet.access.authority import CertificateAuthority, name_of_host, new_key
from fleet.access.tickets import Scope, TicketSigner
from fleet.db.authority import Authority
from fleet.host_client import FileFacts, HostAddress, HostClient, HostUnreachable
from fleet.model_files import ModelFiles
from fleet.serving import CannotListen, listen
from tests.connect_relay import connect_relay
from tests.doors import HostDoor, authority, load_certificate, ticket, visitor
from worker_host.engine_log import EngineLogs
from worker_host.model_reader import ModelReader

INSTANCE = "chat/1-a"


@pytest.fixture
def host(door: HostDoor, models: Path) -> HostAddress:
    """The address of a real server."""
    door.engine_metrics["smol/1-ab"] = "requests 1\n"
    return door.address


@pytest.fixture
def models(door: HostDoor) -> Path:
    (door.models / "m.gguf").write_bytes(b"GGUF" + b"\0" * 96)
    return door.models


@pytest.fixture
def logs(door: HostDoor) -> EngineLogs:
    return door.logs


@pytest.fixture
async def client() -> AsyncIterator[HostClient]:
    made = HostClient(visitor())
    yield made
    await made.aclose()


def write_log(logs: EngineLogs, attempt: int, text: str) -> Path:
    path = logs.path(INSTANCE, attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


async def get(host: HostAddress, path: str, *, instance: str = "", token: str | None = None) -> httpx.Response:
    """With a ticket for all that is not an engine; ``token`` instead of it, and none if that is empty."""
    token = ticket(host.host_id, Scope.HOST, instance) if token is None else token
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(trust_env=False, verify=visitor().tls) as http:
        name = {"sni_hostname": name_of_host(host.host_id)}
        return await http.get(f"https://127.0.0.1:{host.port}{path}", headers=headers, extensions=name)


async def log(client: HostClient, host: HostAddress, instance: str = INSTANCE, **params: str | int) -> tuple[int, str]:
    async with client.engine_log(host, instance, dict(params)) as answer:
        return answer.status_code, (await answer.aread()).decode()


# -- who may ask ---------------------------------------------------------------------------------------------------


async def test_anybody_may_ask_whether_it_lives(host: HostAddress) -> None:
    assert (await get(host, "/healthz", token="")).json() == {"status": "ok"}


BAD: dict[str, Callable[[], str]] = {
    "no_ticket": lambda: "",
    "invalid": lambda: "x",
    "expired": lambda: ticket("h-1", Scope.HOST, now=time.time() - 10_000),
    "other_host": lambda: ticket("h-2", Scope.HOST),
    "other_instance": lambda: ticket("h-1", Scope.HOST, "chat/9-z"),
    "scope": lambda: ticket("h-1", Scope.TUNNEL),
}


@pytest.mark.parametrize("reason", BAD)
@pytest.mark.parametrize(
    "path", ["/files?path=m.gguf", f"/engines/{INSTANCE}/log", f"/engines/{INSTANCE}/metrics", "/metrics", "/nope"]
)
async def test_everything_else_takes_a_ticket_for_just_this(host: HostAddress, path: str, reason: str) -> None:
    answer = await get(host, path, token=BAD[reason]())
    assert answer.status_code == (401 if reason in ("no_ticket", "invalid", "expired") else 403)
    assert (answer.headers["holdfast-refused"], "ticket" in answer.json()["detail"]) == (reason, True)


async def test_a_ticket_for_an_engine_shows_nothing_of_its_host(host: HostAddress) -> None:
    token = ticket("h-1", Scope.ENGINE, INSTANCE, 1)
    answer = await get(host, f"/engines/{INSTANCE}/log", token=token)
    assert (answer.status_code, answer.headers["holdfast-refused"]) == (403, "scope")


async def test_those_who_were_turned_away_are_counted_and_told_once(host: HostAddress, door: HostDoor) -> None:
    for _ in range(3):
        await get(host, "/files", token="")
    await get(host, f"/engines/{INSTANCE}/log", token=BAD["expired"]())
    text = (await get(host, "/metrics")).text
    assert 'holdfast_host_refused_total{reason="no_ticket"} 3.0' in text
    assert 'holdfast_host_refused_total{reason="expired"} 1.0' in text
    assert 'holdfast_host_refused_total{reason="scope"} 0.0' in text
    assert sorted((r.reason, r.instance_id, r.peer, r.count) for r in door.server.take_refusals()) == [
        ("expired", INSTANCE, "127.0.0.1", 1),
        ("no_ticket", "", "127.0.0.1", 3),
    ]
    assert door.server.take_refusals() == ()


async def test_metrics_of_the_host_are_shown_with_those_of_its_door(host: HostAddress, door: HostDoor) -> None:
    door.own_metrics = b"holdfast_host_ram_bytes 7.0\n"
    text = (await get(host, "/metrics")).text
    assert text.startswith("holdfast_host_ram_bytes 7.0\n")
    assert "holdfast_host_refused_total" in text


async def test_a_renewed_certificate_is_shown_without_a_restart(host: HostAddress, door: HostDoor) -> None:
    before = await shown_certificate(host)
    load_certificate(door.tls, "h-1")
    assert await shown_certificate(host) != before
    assert (await get(host, "/metrics")).status_code == 200


async def shown_certificate(host: HostAddress) -> bytes:
    _, writer = await asyncio.open_connection(
        "127.0.0.1", host.port, ssl=visitor().tls, server_hostname=name_of_host(host.host_id)
    )
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return bytes(certificate)


# -- model files ---------------------------------------------------------------------------------------------------


async def test_file_is_found_in_the_models_folder_and_by_its_absolute_path(
    host: HostAddress, client: HostClient, models: Path
) -> None:
    expected = await client.file_facts(host, "m.gguf")
    assert (expected.path, expected.exists, expected.readable) == (str(models / "m.gguf"), True, True)
    assert (expected.size_bytes, expected.is_gguf, expected.is_folder) == (100, True, False)
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
    def denied(*_args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    facts = ModelReader().read(models / "m.gguf")
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
    path = f"/engines/{instance}/log?attempt=1"
    named = re.fullmatch("/engines/(.+)/log", httpx.URL(f"https://h{path}").path)  # the client resolves dots itself
    answer = await get(host, path, instance=named[1] if named is not None else "")
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
    nobody = HostAddress("h9", address, 1)
    with pytest.raises(HostUnreachable, match="h9"):
        await client.file_facts(nobody, "m.gguf")
    with pytest.raises(HostUnreachable, match="h9"):
        await log(client, nobody)
    with pytest.raises(HostUnreachable, match="h9"):
        await client.engine_metrics(nobody, INSTANCE)


async def test_host_that_does_not_know_us_is_unreachable(host: HostAddress) -> None:
    stranger = Authority(authority().ca, TicketSigner(new_key()))
    client = HostClient(visitor(stranger))
    with pytest.raises(HostUnreachable, match="401"):
        await client.file_facts(host, "m.gguf")
    await client.aclose()


async def test_whoever_else_is_at_its_address_is_not_taken_for_a_host(host: HostAddress, client: HostClient) -> None:
    with pytest.raises(HostUnreachable, match="certificate verify failed"):
        await client.file_facts(replace(host, host_id="h-2"), "m.gguf")
    elsewhere = Authority(CertificateAuthority.create(), authority().tickets)
    other = HostClient(visitor(elsewhere))
    with pytest.raises(HostUnreachable, match="certificate verify failed"):
        await other.file_facts(host, "m.gguf")
    await other.aclose()


async def test_host_that_answers_nonsense_is_unreachable(
    client: HostClient, host: HostAddress, door: HostDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "server", PlainTextResponse("<html>"))
    with pytest.raises(HostUnreachable):
        await client.file_facts(host, "m.gguf")


async def test_a_host_that_cannot_be_reached_is_asked_through_its_tunnel(
    host: HostAddress, client: HostClient, logs: EngineLogs
) -> None:
    write_log(logs, 1, "first\n")
    async with connect_relay() as relay:
        relay.hosts["h-1"] = host.port
        hidden = HostAddress("h-1", "", 0, tunnel_only=True, tunnel_url=relay.url)
        assert (await client.file_facts(hidden, "m.gguf")).is_gguf
        assert await log(client, hidden) == (200, "first\n")
        assert await client.engine_metrics(hidden, "smol/1-ab") == "requests 1\n"
        assert len(relay.asked) == 3
        with pytest.raises(HostUnreachable, match="503"):
            await client.file_facts(replace(hidden, host_id="h-2"), "m.gguf")
    for without in (replace(hidden, tunnel_url=""), hidden):
        with pytest.raises(HostUnreachable, match="h-1"):
            await client.file_facts(without, "m.gguf")


async def test_all_hosts_are_asked_and_one_that_is_away_is_none(host: HostAddress, client: HostClient) -> None:
    away = HostAddress("away", "127.0.0.1", 1)
    found = await ModelFiles(client).on([host, away], "m.gguf")
    assert found["away"] is None
    assert found["h-1"] is not None
    assert found["h-1"].is_gguf


async def test_file_that_was_found_is_remembered_and_one_that_was_missing_is_not(
    host: HostAddress, client: HostClient, models: Path
) -> None:
    files = ModelFiles(client)
    assert (await files.on([host], "new.gguf"))["h-1"] == FileFacts(path=str(models / "new.gguf"), exists=False)
    (models / "new.gguf").write_bytes(b"GGUF")
    first = (await files.on([host], "new.gguf"))["h-1"]
    assert first is not None
    assert first.is_gguf
    (models / "new.gguf").unlink()
    assert (await files.on([host], "new.gguf"))["h-1"] == first


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
