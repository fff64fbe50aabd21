"""A machine becomes a host."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from sqlmodel import select

from api.relay import joining
from fleet.access.authority import (
    CertificateAuthority,
    name_of_host,
    new_key,
    public_key_of,
    signing_request,
)
from fleet.access.secrets import new_secret
from fleet.db import join_tokens
from fleet.db.session import Database
from fleet.db.tables import HostRow, JoinTokenRow
from fleet.errors import Forbidden, InvalidInput, Unauthenticated
from fleet.join import JOIN, JoinAnswer, JoinRequest
from tests.raw_host import RawHost, join_request
from tests.unit.relay.world import World

CA = CertificateAuthority.create()


def token(database: Database, max_uses: int = 1) -> tuple[str, str]:
    """The token's id, and what a host is given."""
    new = join_tokens.new_token("test", 600, max_uses)
    id_, secret = new.row.id, new.secret
    database.write(lambda s: join_tokens.add(s, new.row))
    return id_, f"{secret}.{CA.pin}"


def join(database: Database, request: JoinRequest) -> joining.Joined:
    return database.write(lambda s: joining.join(s, request, CA))


def hosts(database: Database) -> list[HostRow]:
    return list(database.read(lambda s: s.exec(select(HostRow)).all()))


def test_a_host_gets_an_id_of_its_name_and_a_certificate_for_it(database: Database) -> None:
    token_id, secret = token(database)
    key = new_key()
    joined = join(database, join_request(secret, "GPU Box 1".replace(" ", "-"), key, new_secret("host")))
    assert joined.host_id.startswith("gpu-box-1-")
    certificate = x509.load_pem_x509_certificate(joined.certificate.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name_of_host(joined.host_id)]
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(CA.certificate_pem.encode()))
    row = hosts(database)[0]
    assert (row.public_key, row.joined_with) == (public_key_of(key), token_id)
    assert row.certificate_expires_at == certificate.not_valid_after_utc


def test_a_host_cannot_have_itself_certified_as_somebody_else(database: Database) -> None:
    _, secret = token(database)
    key = new_key()
    request = join_request(secret, "box", key, new_secret("host"))
    joined = join(
        database, request.model_copy(update={"certificate_request": signing_request(key, "relay.holdfast.internal")})
    )
    certificate = x509.load_pem_x509_certificate(joined.certificate.encode())
    assert [a.value for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [
        name_of_host(joined.host_id)
    ]


def test_asking_again_after_a_lost_answer_gives_the_same_host_and_uses_nothing_up(database: Database) -> None:
    _, secret = token(database, max_uses=2)
    request = join_request(secret, "box", new_key(), new_secret("host"))
    first, again = join(database, request), join(database, request)
    assert (first.host_id, first.again, again.again) == (again.host_id, False, True)
    assert len(hosts(database)) == 1
    assert database.read(lambda s: s.exec(select(JoinTokenRow)).one()).uses == 1


def test_asking_again_is_answered_even_when_the_token_has_ended_meanwhile(database: Database) -> None:
    token_id, secret = token(database)
    request = join_request(secret, "box", new_key(), new_secret("host"))
    first = join(database, request)
    database.write(lambda s: join_tokens.revoke(s, token_id))
    assert join(database, request).host_id == first.host_id


def test_a_token_that_was_used_is_of_no_use_to_another_machine(database: Database) -> None:
    _, secret = token(database)
    join(database, join_request(secret, "box", new_key(), new_secret("host")))
    with pytest.raises(Unauthenticated, match="used already"):
        join(database, join_request(secret, "other", new_key(), new_secret("host")))
    assert len(hosts(database)) == 1


def test_with_somebody_s_secret_but_another_key_nobody_becomes_that_host(database: Database) -> None:
    _, secret = token(database, max_uses=5)
    credential = new_secret("host")
    join(database, join_request(secret, "box", new_key(), credential))
    with pytest.raises(Forbidden):
        join(database, join_request(secret, "box", new_key(), credential))
    assert database.read(lambda s: s.exec(select(JoinTokenRow)).one()).uses == 1


@pytest.mark.parametrize("end", ["unknown", "revoked", "expired"])
def test_a_token_that_is_none_changes_nothing(database: Database, end: str) -> None:
    token_id, secret = token(database)
    if end == "unknown":
        secret = f"hf-join-{'x' * 43}.{CA.pin}"
    if end == "revoked":
        database.write(lambda s: join_tokens.revoke(s, token_id))
    if end == "expired":

        def expire(session: object) -> None:
            row = session.get_one(JoinTokenRow, token_id)  # type: ignore[attr-defined]
            row.expires_at = datetime.now(UTC) - timedelta(seconds=1)

        database.write(expire)
    with pytest.raises(Unauthenticated, match=end):
        join(database, join_request(secret, "box", new_key(), new_secret("host")))
    assert not hosts(database)


def test_a_damaged_request_for_a_certificate_names_its_field_and_uses_nothing_up(database: Database) -> None:
    _, secret = token(database)
    request = join_request(secret, "box", new_key(), new_secret("host"))
    for damaged in ("x", request.certificate_request[:200], request.certificate_request.replace("M", "N", 3)):
        with pytest.raises(InvalidInput) as error:
            join(database, request.model_copy(update={"certificate_request": damaged}))
        assert error.value.field == "certificate_request"
    assert database.read(lambda s: s.exec(select(JoinTokenRow)).one()).uses == 0


def test_of_many_at_once_no_more_get_in_than_the_token_allows(database: Database) -> None:
    _, secret = token(database, max_uses=3)
    together = threading.Barrier(8)

    def one(number: int) -> bool:
        request = join_request(secret, f"box-{number}", new_key(), new_secret("host"))
        together.wait(10)
        try:
            join(database, request)
        except Unauthenticated:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(one, range(8))) == 3
    assert len(hosts(database)) == 3


async def test_through_the_door_a_host_joins_and_it_is_in_the_audit_log(world: World) -> None:
    host = await RawHost.join(world.url, world.token(), "box")
    assert host.namespace == "models"
    row = await world.audited("host.join", "")
    assert (row.actor, row.outcome) == (f"host:{host.host_id}", "done")


async def test_a_wrong_token_is_refused_and_in_the_audit_log(world: World) -> None:
    host = await world.host()
    request = join_request(f"hf-join-{'x' * 43}.{world.keys.ca.pin}", "box", new_key(), new_secret("host"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.ask(JOIN, request, credential="")
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "join-token create" in (refused.value.details() or "")
    assert (await world.audited("host.join", "unauthenticated")).actor == "unknown"


async def test_a_host_of_too_old_a_version_does_not_join_and_keeps_its_token(world: World) -> None:
    host = await world.host()
    token = world.token()
    request = join_request(token, "box", new_key(), new_secret("host"), version="7.3.0")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.ask(JOIN, request, credential="")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "7.3.0" in (refused.value.details() or "")
    assert dict(refused.value.trailing_metadata() or ())["holdfast-reason"] == "version"
    again = join_request(token, "box", new_key(), new_secret("host"))
    assert JoinAnswer.model_validate_json(await host.ask(JOIN, again, credential="")).host_id


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "request"),
        (b"\xff\xfe", "request"),
        (b"[]", "request"),
        (b"{}", "token"),
        (b'{"token":"x","name":"\\u0000"}', "name"),
        (b'{"token":"' + b"x" * 3000 + b'"}', "token"),
        (b'{"nested":' + b"[" * 5000 + b"]" * 5000 + b"}", ""),
    ],
)
async def test_bad_input_names_the_field(world: World, body: bytes, field: str) -> None:
    host = await world.host()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.ask(JOIN, body, credential="")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (refused.value.details() or "")
