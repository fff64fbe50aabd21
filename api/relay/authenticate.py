"""Who calls: a host proves itself on each call with a pass that it has signed."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from sqlalchemy.exc import SQLAlchemyError

from api.relay.directory import HostDirectory, KnownHost
from api.relay.refusal import Refused
from fleet.access import tickets
from fleet.access.tickets import PASS_S, Pass
from fleet.join import AUTHORIZATION, TIME_HEADER

_REMEMBERED = 8192
_PASS_MAX = 2048


@dataclass(frozen=True, slots=True)
class Caller:
    host: KnownHost
    boot_id: str
    """Of the machine that called."""

    @property
    def is_current(self) -> bool:
        """Whether it is the machine that registered as this host: a copy of its disk is not."""
        return self.boot_id == self.host.boot_id


class Authenticator:
    """Good passes are remembered: verifying one costs as much as passing a call on."""

    def __init__(self, directory: HostDirectory) -> None:
        self._directory = directory
        self._verified: dict[str, tuple[Pass, str, float]] = {}
        """By token: what it says, the key that verified it, and until when we need not look again."""

    async def identify(self, metadata: Mapping[str, str | bytes]) -> Caller:
        """The host that calls, whichever machine speaks as it. Raises Refused."""
        token = _bearer(metadata)
        known = self._verified.get(token)
        host = await self._host_of(known[0].host_id if known is not None else _said_by(token))
        found = self._read(token, host)
        if found.boot_id != host.boot_id and (fresh := await self._again(host)) is not None:
            host = fresh  # it may have registered through another relay a moment ago
        return Caller(host, found.boot_id)

    def still(self, caller: Caller) -> Caller:
        """Who makes a call that goes on, as the host is known by now. Raises Refused when it is none any more."""
        host = self._directory.known(caller.host.id)
        if host is None or host.public_key != caller.host.public_key:
            raise _unknown_host(caller.host.id)
        return Caller(host, caller.boot_id)

    async def _host_of(self, host_id: str) -> KnownHost:
        try:
            host = await self._directory.find(host_id)
        except SQLAlchemyError as error:
            raise _database_away() from error
        if host is None or not host.public_key:
            raise _unknown_host(host_id)
        return host

    async def _again(self, host: KnownHost) -> KnownHost | None:
        try:
            return await self._directory.look_up(host.id)
        except SQLAlchemyError:
            return None

    def _read(self, token: str, host: KnownHost) -> Pass:
        now = time.time()
        known = self._verified.get(token)
        if known is not None and known[1] == host.public_key and known[2] > now:
            return known[0]
        try:
            found = tickets.read_pass(token, host.public_key, now)
        except tickets.Refused as error:
            raise _not_valid(error.reason, str(error), now) from error
        if found.host_id != host.id:
            raise _not_valid("invalid", "it is of another host", now)
        if len(self._verified) >= _REMEMBERED:
            self._verified.clear()
        self._verified[token] = (found, host.public_key, now + PASS_S / 10)
        return found


def _bearer(metadata: Mapping[str, str | bytes]) -> str:
    value = metadata.get(AUTHORIZATION, "")
    scheme, _, token = value.partition(" ") if isinstance(value, str) else ("", "", "")
    if scheme.lower() != "bearer" or not token or len(token) > _PASS_MAX:
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, "no_pass", "no pass of a host was sent")
    return token


def _said_by(token: str) -> str:
    try:
        return tickets.issuer_of(token)
    except tickets.Refused as error:
        raise _not_valid(error.reason, str(error), time.time()) from error


def _not_valid(reason: str, text: str, now: float) -> Refused:
    status = grpc.StatusCode.UNAUTHENTICATED
    return Refused(status, reason, f"the pass is not valid: {text}", trailing=((TIME_HEADER, f"{now:.3f}"),))


def _unknown_host(host_id: str) -> Refused:
    text = f"there is no host {host_id[:80]!r} (any more): it may have been forgotten; join with a new token"
    return Refused(grpc.StatusCode.UNAUTHENTICATED, "unknown_host", text)


def _database_away() -> Refused:
    return Refused(grpc.StatusCode.UNAVAILABLE, "database", "the control plane's database does not answer; try again")
