"""Which request is for what."""

import re
from collections.abc import Awaitable, Callable

from sqlalchemy.exc import OperationalError

from api.gateway import refusals
from api.gateway.refusals import Refusal
from api.openai_files.batches import Batches, Tell
from api.openai_files.exchange import ClientGone, Exchange, Receive, Scope, Send
from api.openai_files.files import Files
from api.openai_files.limits import Limits
from fleet.db.session import Database

_PATH = re.compile(r"/v1/(files|batches)(?:/([^/]{1,200})(?:/(content|cancel))?)?/?")
_Handler = Callable[[Exchange, str, str], Awaitable[None]]


class FilesAndBatches:
    """ASGI for HTTP scopes with paths below ``/v1/files`` and ``/v1/batches``, once the key is known."""

    def __init__(self, database: Database, start_batch: Tell, cancel_batch: Tell, limits: Limits | None = None) -> None:
        """``start_batch``, ``cancel_batch``: of the batch with this id. They may be called twice, and raise
        HoldfastError when nobody can be told now: nothing is lost then."""
        limits = limits or Limits()
        files, batches = Files(database, limits), Batches(database, start_batch, cancel_batch, limits)
        self._handlers: dict[tuple[str, bool, str], dict[str, _Handler]] = {
            ("files", False, ""): {"POST": _of_all(files.upload), "GET": _of_all(files.list)},
            ("files", True, ""): {"GET": files.read, "DELETE": files.delete},
            ("files", True, "content"): {"GET": files.content},
            ("batches", False, ""): {"POST": _of_all(batches.create), "GET": _of_all(batches.list)},
            ("batches", True, ""): {"GET": batches.read},
            ("batches", True, "cancel"): {"POST": batches.cancel},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send, key_id: str) -> int:
        """Returns the status that was answered; 499 when the client has gone. Raises when an answer breaks off."""
        status = 0

        async def sent(message: dict[str, object]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(str(message["status"]))
            await send(message)

        exchange = Exchange(scope, receive, sent)  # type: ignore[arg-type]
        try:
            await self._answer(exchange, scope["method"], scope["path"], key_id)
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except OperationalError:
            if status:
                raise
            await exchange.refuse(_database_away())
        except ClientGone:
            return 499
        return status

    async def _answer(self, exchange: Exchange, method: str, path: str, key_id: str) -> None:
        found = _PATH.fullmatch(path)
        kind, name, what = (part or "" for part in found.groups()) if found else ("", "", "")
        handlers = self._handlers.get((kind, bool(name), what))
        if handlers is None:
            raise refusals.unknown_url(method, path)
        handler = handlers.get(method)
        if handler is None:
            raise refusals.wrong_method(method, path, ", ".join(handlers))
        await handler(exchange, key_id, name)


def _of_all(handler: Callable[[Exchange, str], Awaitable[None]]) -> _Handler:
    return lambda exchange, key_id, _: handler(exchange, key_id)


def _database_away() -> Refusal:
    return Refusal(
        503,
        "Files and batches cannot be reached now: the database does not answer. Try again in a moment.",
        kind="server_error",
        code="unavailable",
        headers=((b"retry-after", b"5"),),
    )
