"""What a host says to the control plane and hears from it, through the relay."""

import asyncio
import logging

import grpc

from fleet.access.authority import NotOurs, pin_of
from fleet.instances import EngineReport
from fleet.inventory import EngineRef, Registration
from fleet.join import (
    ENGINES,
    JOIN,
    REASON_HEADER,
    REGISTER,
    RENEW,
    REPORT,
    Certificate,
    CertificateRequest,
    EngineList,
    JoinAnswer,
    JoinRequest,
    JoinToken,
    Reason,
    Registered,
    StatusAnswer,
)
from fleet.relay_address import NotTls, RelayAddress, WrongClock, check_certificate, pem_of
from fleet.telemetry import HostStatus
from worker_host.link import CALL_S, Link, open_channel, trailers
from worker_host.pauses import Pauses, jittered
from worker_host.status_line import StatusLine

log = logging.getLogger("holdfast.host")

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_OTHER_MACHINE_S = 15.0
"""Between attempts while another machine speaks as this host."""
_REGISTER_S = 30.0

_PASSING = {
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
}
"""What is no word of the relay about our request."""


class JoinRefused(Exception):
    """The control plane said no, or is not the one that we were sent to; trying again will not help."""


class Gone(Exception):
    """The control plane knows no such instance or host (any more)."""


class VersionRefused(Exception):
    """The control plane does not work with this version of a host; says with which it does."""


async def join(address: RelayAddress, token: JoinToken, request: JoinRequest) -> JoinAnswer:
    """Ask until the relay that the token was made for answers. Raises JoinRefused."""
    pauses = Pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
    while True:
        try:
            return await _try_to_join(address, token, request)
        except (NotOurs, NotTls, WrongClock) as error:
            raise JoinRefused(str(error)) from error
        except OSError as error:
            reason = str(error) or repr(error)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _PASSING:
                raise JoinRefused(_text(error)) from error
            reason = _text(error)
        log.warning("%s does not answer yet: %s", address.url, reason)
        await pauses.wait()


async def _try_to_join(address: RelayAddress, token: JoinToken, request: JoinRequest) -> JoinAnswer:
    shown = await asyncio.to_thread(address.certificate)
    check_certificate(shown, token.pin)
    # Nobody but the owner of this very certificate gets the token's secret.
    async with open_channel(address, pem_of(shown)) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(JOIN)
        answer = JoinAnswer.model_validate_json(await call(request.model_dump_json().encode(), timeout=CALL_S))
    if pin_of(answer.ca) != token.pin:
        raise NotOurs("the server answered with the certificates of another installation")
    return answer


class ControlPlane:
    """Calls that are tried until they succeed; the relay may be away for as long as it likes."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._statuses = StatusLine(link)

    async def register(self, registration: Registration) -> Registered:
        """Say who we are and what runs here. Raises Gone, VersionRefused.

        While another machine speaks as this host it goes on asking, slowly.
        """
        asked = self._link.clock.now()
        answer = Registered.model_validate_json(
            await self._ask(REGISTER, registration.model_dump_json(), timeout_s=_REGISTER_S)
        )
        if self._link.clock.now() - asked < CALL_S:  # else it waited, and ``now`` says little
            self._link.heard(answer.now, asked)
        return answer

    async def confirm(self, engines: list[EngineRef]) -> set[EngineRef]:
        """Say what runs here. Answers the engines that may go on. Raises Gone."""
        answer = await self._ask(ENGINES, EngineList(engines=engines).model_dump_json())
        return set(EngineList.model_validate_json(answer).engines)

    async def report(self, report: EngineReport) -> None:
        """Raises Gone when nobody wants to know any more."""
        await self._ask(REPORT, report.model_dump_json())

    async def renew(self, certificate_request: str) -> Certificate:
        """A new certificate for our key. Raises Gone."""
        body = CertificateRequest(certificate_request=certificate_request).model_dump_json()
        return Certificate.model_validate_json(await self._ask(RENEW, body))

    async def status(self, status: HostStatus) -> StatusAnswer:
        """One attempt: the next status says it all again. Raises AioRpcError."""
        asked = self._link.clock.now()
        answer = StatusAnswer.model_validate_json(await self._statuses.say(status.model_dump_json().encode()))
        self._link.heard(answer.now, asked)
        return answer

    async def _ask(self, method: str, body: str, timeout_s: float = CALL_S) -> bytes:
        pauses = Pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            try:
                return await self._link.ask(method, body, timeout_s)
            except grpc.aio.AioRpcError as error:
                _raise_if_final(error)
                log.warning("%s: %s; trying again", method.rpartition("/")[2], await self._explained(error))
                other_machine = error.code() is grpc.StatusCode.FAILED_PRECONDITION
            await (asyncio.sleep(jittered(_OTHER_MACHINE_S)) if other_machine else pauses.wait())

    async def _explained(self, error: grpc.aio.AioRpcError) -> str:
        trouble = await self._link.trouble() if error.code() is grpc.StatusCode.UNAVAILABLE else ""
        return f"{self._link.address.url}: {trouble}" if trouble else _text(error)


def _raise_if_final(error: grpc.aio.AioRpcError) -> None:
    if error.code() is grpc.StatusCode.NOT_FOUND:
        raise Gone(_text(error)) from error
    if trailers(error).get(REASON_HEADER) == Reason.VERSION:
        raise VersionRefused(_text(error)) from error


def _text(error: grpc.aio.AioRpcError) -> str:
    return error.details() or error.code().name
