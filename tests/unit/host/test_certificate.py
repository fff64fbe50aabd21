"""The certificate that a host shows, and its renewal."""

import asyncio
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from fleet.access.authority import HOST_LIFETIME, expires_at, key_of_request, name_of_host, new_key, signing_request
from fleet.join import Certificate, Identity
from tests.unit.host.fake_relay import HOST, FakeRelay
from tests.unit.host.waiting import eventually
from worker_host import certificate
from worker_host.certificate import HostCertificate, is_due
from worker_host.control_plane import ControlPlane


class Renewing:
    """The control plane, as far as it renews."""

    def __init__(self, relay: FakeRelay) -> None:
        self._relay = relay
        self.asked: list[str] = []
        self.key = ""
        """Whose certificate it sends; empty: of the one that asks."""

    async def renew(self, request: str) -> Certificate:
        self.asked.append(key_of_request(request))
        wanted = signing_request(self.key, "x") if self.key else request
        issued = self._relay.ca.issue_to_host(wanted, HOST)
        return Certificate(certificate=issued, ca=self._relay.ca.certificate_pem)

    @property
    def plane(self) -> ControlPlane:
        return cast(ControlPlane, self)


@pytest.fixture
def relay() -> FakeRelay:
    return FakeRelay()


@pytest.fixture
def identity(relay: FakeRelay) -> Identity:
    return relay.identity()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "identity.json"


async def shown(context: ssl.SSLContext, relay: FakeRelay) -> bytes:
    """What a client sees that trusts only our CA and expects this host's name."""
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        trusting = ssl.create_default_context(cadata=relay.ca.certificate_pem)
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting, server_hostname=name_of_host(HOST))
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
    return bytes(found)


async def renewed(made: HostCertificate, control_plane: Renewing) -> None:
    """Let it look once."""
    task = asyncio.create_task(made.keep(control_plane.plane))
    await eventually(lambda: control_plane.asked)
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])


async def test_host_shows_the_certificate_that_it_joined_with(relay: FakeRelay, identity: Identity, path: Path) -> None:
    made = HostCertificate(identity, path)
    assert ssl.DER_cert_to_PEM_cert(await shown(made.context, relay)) == identity.certificate
    assert stat.S_IMODE(path.with_name("certificate.pem").stat().st_mode) == 0o600


def test_certificate_is_due_when_a_third_of_its_life_is_left(identity: Identity) -> None:
    ends = expires_at(identity.certificate)
    assert not is_due(identity.certificate, datetime.now(UTC))
    assert not is_due(identity.certificate, ends - HOST_LIFETIME / 3 - timedelta(days=1))
    assert is_due(identity.certificate, ends - HOST_LIFETIME / 3)
    assert is_due(identity.certificate, ends + timedelta(days=1))


async def test_renewed_certificate_is_shown_at_once_and_kept(
    relay: FakeRelay, identity: Identity, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "is_due", lambda *_: True)
    control_plane = Renewing(relay)
    made = HostCertificate(identity, path)
    await renewed(made, control_plane)
    assert control_plane.asked == [relay.public_key]
    now = ssl.DER_cert_to_PEM_cert(await shown(made.context, relay))
    assert now != identity.certificate
    kept = Identity.model_validate_json(path.read_text())
    assert kept == identity.model_copy(update={"certificate": now})
    following = HostCertificate(kept, path)
    assert ssl.DER_cert_to_PEM_cert(await shown(following.context, relay)) == now


async def test_certificate_for_another_key_is_not_taken(
    relay: FakeRelay, identity: Identity, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "is_due", lambda *_: True)
    control_plane = Renewing(relay)
    control_plane.key = new_key()
    made = HostCertificate(identity, path)
    await renewed(made, control_plane)
    assert ssl.DER_cert_to_PEM_cert(await shown(made.context, relay)) == identity.certificate
    assert not path.exists()


async def test_full_disk_leaves_the_old_certificate_in_place(
    relay: FakeRelay, identity: Identity, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = HostCertificate(identity, path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(certificate, "is_due", lambda *_: True)
    monkeypatch.setattr(certificate, "write_atomically", full)
    await renewed(made, Renewing(relay))
    assert ssl.DER_cert_to_PEM_cert(await shown(made.context, relay)) == identity.certificate


async def test_nothing_is_asked_for_while_there_is_time(
    relay: FakeRelay, identity: Identity, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "_LOOK_EVERY_S", 0.01)
    control_plane = Renewing(relay)
    task = asyncio.create_task(HostCertificate(identity, path).keep(control_plane.plane))
    done, _ = await asyncio.wait({task}, timeout=0.2)
    assert not done
    task.cancel()
    assert control_plane.asked == []
