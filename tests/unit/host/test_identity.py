"""How a machine becomes a host, once."""

import asyncio
import json
import stat
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import SecretStr

from fleet import relay_address
from fleet.access.authority import CertificateAuthority, key_of_request, public_key_of
from fleet.access.secrets import digest
from fleet.join import JOIN, REASON_HEADER, JoinAnswer, JoinRequest, Reason
from fleet.serving import listen
from fleet.settings import Settings
from tests.unit.host.fake_relay import FakeRelay, Say
from tests.unit.host.waiting import eventually
from worker_host import control_plane
from worker_host.fingerprint import Fingerprint
from worker_host.identity import CannotJoin, host_folder, host_name, identify, identity_path, only_one

DOWN = Say(grpc.StatusCode.UNAVAILABLE, "the database is away")


@pytest.fixture
async def relay(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeRelay]:
    monkeypatch.setattr(control_plane, "_FIRST_PAUSE_S", 0.01)
    made = FakeRelay()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def settings(tmp_path: Path, relay: FakeRelay) -> Settings:
    return settings_for(tmp_path, relay)


def settings_for(home: Path, relay: FakeRelay, token: str = "") -> Settings:
    return Settings(home=home, server=relay.url, host_name="box", host_token=SecretStr(token or str(relay.token)))


def requests(relay: FakeRelay) -> list[JoinRequest]:
    return [JoinRequest.model_validate_json(body) for body in relay.sent(JOIN)]


async def test_host_joins_once_and_is_known_ever_after(relay: FakeRelay, settings: Settings) -> None:
    identity = await identify(settings)
    [sent] = requests(relay)
    assert sent.token == "hf-join-secret", "the pin is for the host alone"
    assert sent.credential_hash == digest(identity.credential)
    assert key_of_request(sent.certificate_request) == public_key_of(identity.private_key)
    assert sent.version
    said = relay.sent(JOIN)[0].decode()
    assert identity.credential not in said, "the credential itself never leaves the host"
    assert "PRIVATE KEY" not in said
    assert (identity.host_id, identity.name, identity.server) == ("box-1", "box", relay.url)
    assert (identity.ca, identity.namespace) == (relay.ca.certificate_pem, "default")
    assert await identify(settings.model_copy(update={"host_token": None})) == identity
    assert len(relay.asked) == 1


async def test_only_the_owner_reads_who_we_are(settings: Settings) -> None:
    await identify(settings)
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in host_folder(settings).iterdir()}
    assert files == {"credential": 0o600, "key.pem": 0o600, "identity.json": 0o600}


async def test_lost_answer_is_asked_for_again_with_the_same_key(relay: FakeRelay, settings: Settings) -> None:
    relay.script[JOIN] = [
        DOWN,
        Say(grpc.StatusCode.INTERNAL),
        Say(grpc.StatusCode.RESOURCE_EXHAUSTED),
        *relay.script[JOIN],
    ]
    await identify(settings)
    assert len({r.credential_hash for r in requests(relay)}) == 1
    assert len({key_of_request(r.certificate_request) for r in requests(relay)}) == 1
    assert len(requests(relay)) == 4


async def test_crash_after_the_join_gives_the_same_host(relay: FakeRelay, settings: Settings) -> None:
    first = await identify(settings)
    identity_path(settings).unlink()
    second = await identify(settings)
    assert (second.credential, second.private_key) == (first.credential, first.private_key)
    assert [key_of_request(r.certificate_request) for r in requests(relay)] == [public_key_of(first.private_key)] * 2


@pytest.mark.parametrize(
    "refusal",
    [
        Say(grpc.StatusCode.UNAUTHENTICATED, "the join token has expired; make a new one"),
        Say(grpc.StatusCode.PERMISSION_DENIED, "the join token has expired; make a new one"),
        Say(grpc.StatusCode.INVALID_ARGUMENT, "the join token has expired; make a new one"),
        Say(grpc.StatusCode.FAILED_PRECONDITION, "the join token has expired; make a new one"),
    ],
    ids=lambda say: say.code.name,
)
async def test_refusal_is_final_and_says_why(relay: FakeRelay, settings: Settings, refusal: Say) -> None:
    relay.script[JOIN] = [refusal]
    with pytest.raises(CannotJoin, match=r"cannot join at .*: the join token has expired; make a new one"):
        await identify(settings)
    assert len(relay.asked) == 1
    assert not identity_path(settings).exists()


async def test_host_of_a_version_that_does_not_fit_is_told_so(relay: FakeRelay, settings: Settings) -> None:
    refusal = Say(grpc.StatusCode.FAILED_PRECONDITION, "upgrade the host to 9.1", **{REASON_HEADER: Reason.VERSION})
    relay.script[JOIN] = [refusal]
    with pytest.raises(CannotJoin, match=r"upgrade the host to 9\.1"):
        await identify(settings)


async def test_token_is_not_shown_to_any_other_server(relay: FakeRelay, tmp_path: Path) -> None:
    other = FakeRelay()
    settings = settings_for(tmp_path, relay, token=str(other.token))
    with pytest.raises(CannotJoin, match="the server is not the one that the token was made for"):
        await identify(settings)
    assert relay.asked == []


async def test_answer_of_another_installation_is_not_taken(relay: FakeRelay, settings: Settings) -> None:
    def other(body: bytes) -> JoinAnswer:
        real = relay._joined(body)
        return real.model_copy(update={"ca": CertificateAuthority.create().certificate_pem})

    relay.script[JOIN] = [other]
    with pytest.raises(CannotJoin, match="another installation"):
        await identify(settings)
    assert not identity_path(settings).exists()


async def test_wrong_clock_is_named(relay: FakeRelay, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Behind(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime.fromtimestamp(time.time(), UTC) - timedelta(days=400)

    monkeypatch.setattr(relay_address, "datetime", Behind)
    with pytest.raises(CannotJoin, match=r"this machine's clock says .* one of the two clocks is wrong"):
        await identify(settings)
    assert relay.asked == []


async def test_server_that_speaks_no_tls_is_no_relay(tmp_path: Path, relay: FakeRelay) -> None:
    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        settings = settings_for(tmp_path, relay).model_copy(update={"server": url})
        with pytest.raises(CannotJoin, match="does not speak TLS: it is not the port of a relay"):
            await asyncio.wait_for(identify(settings), 10)


@pytest.mark.parametrize("url", ["http://api:8480", "relay.example", "https://", "https://[::1", "https://x:99999"])
async def test_what_is_no_url_of_a_relay_is_named(settings: Settings, url: str) -> None:
    with pytest.raises(CannotJoin, match=r"HOLDFAST_SERVER \(--server\): .* is no URL"):
        await identify(settings.model_copy(update={"server": url}))


async def test_host_without_a_token_is_told_how_to_get_one(settings: Settings) -> None:
    with pytest.raises(CannotJoin, match=r"'box' has not joined yet.*join-token create.*HOLDFAST_HOST_TOKEN"):
        await identify(settings.model_copy(update={"host_token": None}))


@pytest.mark.parametrize("token", ["hf-join-abc", "hf-key-abc.pin", "x"])
async def test_what_is_no_join_token_is_named(settings: Settings, token: str) -> None:
    with pytest.raises(CannotJoin, match=r"HOLDFAST_HOST_TOKEN \(--token\): a join token looks like"):
        await identify(settings.model_copy(update={"host_token": SecretStr(token)}))


async def test_token_with_a_damaged_pin_is_refused(relay: FakeRelay, tmp_path: Path) -> None:
    with pytest.raises(CannotJoin, match="no certificate pin, or a damaged one"):
        await identify(settings_for(tmp_path, relay, token="hf-join-secret.abcd"))


async def test_relay_that_is_not_up_yet_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_plane, "_FIRST_PAUSE_S", 0.01)
    listening = listen("127.0.0.1", 0)
    relay = FakeRelay()
    relay.port = listening.getsockname()[1]
    listening.close()
    joining = asyncio.create_task(identify(settings_for(tmp_path, relay)))
    done, _ = await asyncio.wait({joining}, timeout=0.1)
    assert not done
    await relay.start(relay.port)
    assert (await asyncio.wait_for(joining, 10)).host_id == "box-1"
    await relay.stop()


async def test_copy_of_the_disk_on_another_machine_is_no_host(settings: Settings, relay: FakeRelay) -> None:
    identity = await identify(settings)
    elsewhere = str(Fingerprint(board="b" * 16, cards=("c" * 16,), system="d" * 16))
    copied = identity.model_copy(update={"machine_id": elsewhere})
    identity_path(settings).write_text(copied.model_dump_json())
    with pytest.raises(CannotJoin, match=r"made on another machine.*copy.*delete .*/hosts/box and join with a new"):
        await identify(settings)
    assert len(relay.asked) == 1


@pytest.mark.parametrize("damage", ["", "{", json.dumps({"host_id": "box-1"})])
async def test_damaged_identity_is_named(settings: Settings, damage: str) -> None:
    await identify(settings)
    identity_path(settings).write_text(damage)
    with pytest.raises(CannotJoin, match=r"identity\.json is damaged.*join with a new token"):
        await identify(settings)


async def test_damaged_key_is_named(settings: Settings) -> None:
    await identify(settings)
    identity_path(settings).unlink()
    (host_folder(settings) / "key.pem").write_text("-----BEGIN")
    with pytest.raises(CannotJoin, match=r"key\.pem: the private key is damaged"):
        await identify(settings)


async def test_second_process_of_a_host_waits_for_the_first(settings: Settings) -> None:
    first = await only_one(settings)
    waiting = asyncio.create_task(only_one(settings))
    done, _ = await asyncio.wait({waiting}, timeout=0.4)
    assert not done
    first.close()
    (await asyncio.wait_for(waiting, 10)).close()


async def test_relay_that_changes_its_certificate_meanwhile_is_asked_again(
    relay: FakeRelay, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate that was looked at is the only one that is trusted with the token."""
    shown, read = [], relay_address.RelayAddress.certificate

    def other_first(address: relay_address.RelayAddress) -> bytes:
        shown.append(read(address))
        if len(shown) > 1:
            return shown[-1]
        _, certificate = relay.ca.issue_to_relay()
        return x509.load_pem_x509_certificate(certificate.encode()).public_bytes(Encoding.DER)

    monkeypatch.setattr(relay_address.RelayAddress, "certificate", other_first)
    joining = asyncio.create_task(identify(settings))
    await eventually(lambda: len(shown) > 1)
    assert (await joining).host_id == "box-1"
    assert len(relay.asked) == 1


@pytest.mark.parametrize(
    ("given", "name"),
    [("gpu-1.rack", "gpu-1.rack"), ("my box!", "my-box"), ("--x--", "x"), ("ü", "host"), ("a" * 99, "a" * 63)],
)
def test_name_of_a_host_is_made_of_usual_letters(tmp_path: Path, given: str, name: str) -> None:
    assert host_name(Settings(home=tmp_path, host_name=given)) == name
