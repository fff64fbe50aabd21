"""A machine becomes a host: the transaction."""

import re
import secrets
from dataclasses import dataclass

from sqlmodel import Session, select

from fleet.access.authority import CertificateAuthority, NotOurs, expires_at, key_of_request
from fleet.db import registry
from fleet.db.join_tokens import use_token
from fleet.db.tables import HostRow
from fleet.errors import Forbidden, InvalidInput
from fleet.join import JoinRequest, JoinToken
from fleet.states import HostState

JOINED = "joined, has not registered yet"


@dataclass(frozen=True)
class Joined:
    host_id: str
    certificate: str
    token_id: str
    again: bool
    """It had joined before, with the same token and key: its answer was lost."""


def join(session: Session, request: JoinRequest, ca: CertificateAuthority) -> Joined:
    """Raises InvalidInput; Unauthenticated for the token; Forbidden when the secret is another host's."""
    key = _key_of(request)
    known = session.exec(select(HostRow).where(HostRow.credential_hash == request.credential_hash)).first()
    if known is not None and known.public_key != key:
        raise Forbidden("a host with this secret has joined with another key", hint="delete the host's folder first")
    host_id = known.id if known is not None else _new_id(request.name)
    token_id = use_token(session, _secret_of(request.token), host_id, known.joined_with if known is not None else "")
    certificate = ca.issue_to_host(request.certificate_request, host_id)
    if known is None:
        session.add(_new_host(request, host_id, key, token_id, certificate))
        registry.bump(session)
    else:
        known.joined_with = token_id
        known.certificate_expires_at = expires_at(certificate)
        session.add(known)
    return Joined(host_id, certificate, token_id, again=known is not None)


def _new_host(request: JoinRequest, host_id: str, key: str, token_id: str, certificate: str) -> HostRow:
    return HostRow(
        id=host_id,
        name=request.name,
        machine_id=request.machine_id,
        state=HostState.LOST,
        message=JOINED,
        credential_hash=request.credential_hash,
        public_key=key,
        joined_with=token_id,
        version=request.version,
        certificate_expires_at=expires_at(certificate),
    )


def _key_of(request: JoinRequest) -> str:
    try:
        return key_of_request(request.certificate_request)
    except NotOurs as error:
        raise InvalidInput(str(error), field="certificate_request", hint="it must be for a P-256 key") from error


def _secret_of(token: str) -> str:
    """The pin is for the host to look at; a token without it is as good here."""
    try:
        return JoinToken.parse(token).secret
    except ValueError:
        return token


def _new_id(name: str) -> str:
    return f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')[:40] or 'host'}-{secrets.token_hex(3)}"
