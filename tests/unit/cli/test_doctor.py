"""``doctor`` names what is wrong and what to do about it."""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleet.access.authority import CertificateAuthority, new_key, signing_request
from fleet.cli import doctor
from fleet.join import Identity
from fleet.relay_address import RelayAddress
from fleet.settings import Settings
from tests.unit.cli.conftest import Holdfast
from tests.unit.cli.fake_api import KEY, FakeApi, host


@pytest.fixture
def settings(api: FakeApi, home: Path, unused_port: int) -> Settings:
    (home / "admin_key").write_text(KEY)
    api.hosts = [host()]
    return Settings(home=home, server=api.url, temporal_port=unused_port, port=1)


def findings(settings: Settings) -> Iterator[tuple[str, str]]:
    return ((f.check, str(f.level)) for f in doctor.examine(settings))


def test_what_works_is_ok_and_a_missing_temporal_is_a_failure(settings: Settings) -> None:
    found = list(findings(settings))
    for check in ("python", "home", "api", "ready", "key", "workflows", "hosts", "engines"):
        assert (check, "ok") in found
    assert ("temporal", "ok") in found  # its binary
    assert ("temporal", "fail") in found  # the server


def test_all_that_fails_has_a_remedy(settings: Settings, api: FakeApi) -> None:
    api.hosts = [host(state="lost")]
    api.temporal = False
    failed = [f for f in doctor.examine(settings) if f.level is doctor.Level.FAIL]
    assert {f.check for f in failed} == {"temporal", "ready", "hosts"}
    assert all(f.remedy for f in failed)


def test_a_lost_host_beside_a_ready_one_is_a_warning(settings: Settings, api: FakeApi) -> None:
    api.hosts = [host(), host(id="host-2", name="beta", state="lost", inventory={})]
    found = list(findings(settings))
    assert ("hosts", "warn") in found
    assert ("hosts", "ok") in found


def test_hosts_without_any_engine_are_a_failure(settings: Settings, api: FakeApi) -> None:
    api.hosts = [host(inventory={"engines": []})]
    assert ("engines", "fail") in findings(settings)


def test_lost_workflows_are_a_failure_with_the_remedy(settings: Settings, api: FakeApi) -> None:
    api.lost = {"deployments": ["alpha", "beta"], "hosts": ["h1", "h2", "h3", "h4"]}
    [found] = [f for f in doctor.examine(settings) if f.check == "workflows"]
    assert found.level is doctor.Level.FAIL
    assert "deployment alpha, deployment beta, host h1, host h2, host h3 and 1 more" in found.message
    assert "holdfast resync" in found.remedy


def test_a_wrong_key_is_a_failure(settings: Settings, home: Path) -> None:
    (home / "admin_key").write_text("wrong")
    assert ("key", "fail") in findings(settings)


def test_a_home_open_to_others_is_a_warning_and_a_file_a_failure(settings: Settings, home: Path) -> None:
    home.chmod(0o755)
    assert ("home", "warn") in findings(settings)
    (home / "file").write_text("")
    assert ("home", "fail") in findings(settings.model_copy(update={"home": home / "file"}))


def test_looking_makes_no_database(settings: Settings, home: Path) -> None:
    assert ("database", "warn") in findings(settings)
    assert not list(home.glob("holdfast.db*"))


def test_a_failure_ends_with_1_and_json_has_all_findings(holdfast: Holdfast, api: FakeApi) -> None:
    seen = holdfast("doctor", "--json")
    assert seen.code == 1
    assert {"check", "level", "message", "remedy"} == set(seen.json[0])
    assert ["hosts", "fail"] in [[f["check"], f["level"]] for f in seen.json]
    assert "→" in holdfast("doctor").out


@pytest.fixture
def joined(settings: Settings) -> Identity:
    """This machine has joined as a host, at a relay that does not run."""
    ca, key = CertificateAuthority.create(), new_key()
    identity = Identity(
        host_id="box-1",
        name="box",
        server="https://127.0.0.1:1",
        machine_id="v1:::",
        credential="hf-host-secret",
        private_key=key,
        certificate=ca.issue_to_host(signing_request(key, "box"), "box-1"),
        ca=ca.certificate_pem,
        namespace="default",
        joined_at=datetime.now(UTC),
    )
    path = settings.home / "hosts" / "box" / "identity.json"
    path.parent.mkdir(parents=True)
    path.write_text(identity.model_dump_json())
    return identity


def test_a_host_that_does_not_reach_its_relay_is_told_so(settings: Settings, joined: Identity) -> None:
    found = {f.check: f for f in doctor.examine(settings)}
    assert f"box is {joined.host_id}" in found["this host"].message
    assert found["relay"].level is doctor.Level.FAIL
    assert "https://127.0.0.1:1" in found["relay"].message
    assert found["relay"].remedy


@pytest.mark.usefixtures("joined")
def test_a_damaged_identity_of_a_host_is_named_without_what_is_in_it(settings: Settings) -> None:
    path = settings.home / "hosts" / "box" / "identity.json"
    path.write_text(path.read_text()[:-20])
    found = {f.check: f for f in doctor.examine(settings)}
    assert found["this host"].level is doctor.Level.FAIL
    assert "hf-host-secret" not in str(found["this host"])
    assert "relay" not in found


@pytest.mark.usefixtures("joined")
def test_another_relay_at_the_same_place_is_told_from_ours(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    _, certificate = CertificateAuthority.create().issue_to_relay()
    der = ssl.PEM_cert_to_DER_cert(certificate)
    monkeypatch.setattr(RelayAddress, "certificate", lambda _self: der)
    found = {f.check: f for f in doctor.examine(settings)}
    assert "is not the relay that this host joined" in found["relay"].message
