"""The gateway as a process of its own: ``/v1`` plus health and metrics, nothing else."""

from api.gateway.app import Gateway, Scope
from api.gateway.request import Receive, Send


class _Standalone:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        path = scope.get("path", "")
        if scope["type"] == "http" and path in ("/healthz", "/readyz", "/metrics"):
            await _plain(send, *self._own(path, scope))
        else:
            await self._gateway(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._gateway.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self._gateway.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _own(self, path: str, scope: Scope) -> tuple[int, bytes]:
        if scope["method"] not in ("GET", "HEAD"):
            return 405, b"Use GET.\n"
        if path == "/healthz":
            return 200, b"ok\n"
        if path == "/readyz":
            return (200, b"ok\n") if self._gateway.ready else (503, b"The table of models was not read yet.\n")
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        if not self._gateway.allows(authorization):
            return 401, b"Send the header 'Authorization: Bearer <key>'.\n"
        return 200, self._gateway.metrics.render()


def standalone(gateway: Gateway) -> _Standalone:
    """An ASGI application that starts and stops ``gateway`` with its server. ``/metrics`` needs a key."""
    return _Standalone(gateway)


async def _plain(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
