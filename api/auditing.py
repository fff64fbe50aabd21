"""Every change that the management API makes, and everybody whom it turns away, is in the audit log."""

from typing import Any

from api.state import Services
from fleet.db.audit import DONE, REFUSED, UNKNOWN

Scope = dict[str, Any]

_PREFIX = "/api/v1/"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_ONLY_ASKING = frozenset({"evaluations"})
"""Tags of routes that change nothing, whatever their method."""
_WHY = {401: "no valid API key", 403: "the key is not for this"}


class Audited:
    """ASGI middleware around the application. The entry's target is what was made, or else the path."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sent(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                _note(scope, message["status"], dict(message.get("headers", ())))
            await send(message)

        await self._app(scope, receive, sent)


def _note(scope: Scope, status: int, headers: dict[bytes, bytes]) -> None:
    refused = status in _WHY
    route = scope.get("route")
    if route is None or not (refused or (status < 400 and _changes(scope["method"], route))):
        return
    services: Services = scope["app"].state.services
    made = headers.get(b"location", b"").decode("latin-1")
    tag = next(iter(route.tags), "api")
    services.audit.note(
        actor=scope.get("state", {}).get("actor", UNKNOWN),
        action=f"{tag}.{route.name.strip('_')}",
        target=(made or scope["path"]).removeprefix(_PREFIX),
        outcome=REFUSED if refused else DONE,
        reason=_WHY.get(status, ""),
        peer=(scope.get("client") or ("",))[0],
    )


def _changes(method: str, route: Any) -> bool:
    return method not in _READING and _ONLY_ASKING.isdisjoint(route.tags)
