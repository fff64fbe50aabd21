"""The host's side of the HTTP conversation with the API."""

import asyncio
import logging

import httpx

from fleet.instances import EngineReport
from fleet.inventory import EngineRef, Registration
from fleet.join import EngineList, Identity, JoinAnswer, JoinRequest

log = logging.getLogger("holdfast.host")

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0


class JoinRefused(Exception):
    """The API said no; trying again will not help."""


class Gone(Exception):
    """The API knows no such instance or host (any more)."""


async def join(server: str, request: JoinRequest) -> JoinAnswer:
    """Ask until the API answers. Raises JoinRefused."""
    async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                answer = await http.post(f"{server}/api/v1/hosts/join", json=request.model_dump())
            except httpx.HTTPError as error:
                log.warning("%s does not answer yet: %r", server, error)
            else:
                if answer.is_success:
                    return JoinAnswer.model_validate_json(answer.content)
                if answer.status_code < 500:
                    raise JoinRefused(_detail(answer))
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)


class ControlPlane:
    """Calls that are tried until they succeed; the API may be down for as long as it likes."""

    def __init__(self, identity: Identity, server: str = "") -> None:
        """``server``: where the API is now, if it is not where it was when this host joined."""
        self._base = f"{server or identity.server}/api/v1/hosts/{identity.host_id}"
        headers = {"authorization": f"Bearer {identity.credential}"}
        self._http = httpx.AsyncClient(timeout=10, headers=headers, trust_env=False)

    async def register(self, registration: Registration) -> set[EngineRef]:
        """Say who we are and what runs here. Answers the engines that may go on."""
        answer = await self._post("register", registration.model_dump_json())
        return set(EngineList.model_validate_json(answer.content).engines)

    async def confirm(self, engines: list[EngineRef]) -> set[EngineRef]:
        """Say what runs here. Answers the engines that may go on."""
        answer = await self._post("engines", EngineList(engines=engines).model_dump_json())
        return set(EngineList.model_validate_json(answer.content).engines)

    async def report(self, report: EngineReport) -> None:
        """Raises Gone when nobody wants to know any more."""
        await self._post("reports", report.model_dump_json())

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _post(self, what: str, body: str) -> httpx.Response:
        pause = _FIRST_PAUSE_S
        while True:
            reason = await self._try(what, body)
            if isinstance(reason, httpx.Response):
                return reason
            log.warning("%s: %s; trying again", what, reason)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    async def _try(self, what: str, body: str) -> httpx.Response | str:
        headers = {"content-type": "application/json"}
        try:
            answer = await self._http.post(f"{self._base}/{what}", content=body, headers=headers)
        except httpx.HTTPError as error:
            return repr(error)
        if answer.is_success:
            return answer
        if answer.status_code in (404, 410):
            raise Gone(_detail(answer))
        return f"{answer.status_code} {_detail(answer)}"


def _detail(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
        return " ".join(str(problem[k]) for k in ("detail", "hint") if problem.get(k)) or answer.text[:500]
    except (ValueError, AttributeError):
        return answer.text[:500]
