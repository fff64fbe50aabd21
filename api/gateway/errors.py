"""What an engine's or provider's error means: to be passed on, to be blamed, or to be asked elsewhere."""

from api.gateway import refusals
from api.gateway.call import Call
from api.gateway.exchange import Exchange
from api.gateway.prepare import conversion_for, convertible
from fleet.http.connection import Connection
from fleet.policy.blame import Blame, clients_fault, meaning

_NOT_SPOKEN = frozenset({404, 405, 501})
_MAY_BE_THE_CLIENTS = frozenset({500, 501})
_ABOUT_THE_REQUEST = frozenset({400, 413, 422})
_READ_AT_MOST = 64 << 10


class Unspoken(Exception):
    """The target does not speak this; it is asked again in a way that it does."""


async def look_at_error(call: Call, exchange: Exchange, connection: Connection, *, elsewhere: bool) -> bytes:
    """The beginning of an error that is to be passed on as it is.

    Raises ``Unspoken``; ``Refusal`` when the gateway has better words for it, or when ``elsewhere`` (others can be
    asked) and this one is at fault; ``UpstreamError`` when it breaks off.
    """
    status = connection.status
    destination = exchange.destination
    if status in _NOT_SPOKEN and exchange.prepared.conversion is None and convertible(call):
        destination.lacks.add(call.path)
        if conversion_for(call, destination) is not None:
            connection.abort()
            raise Unspoken
    begun = b""
    fallbacks = call.route.spec.fallbacks
    if status in _ABOUT_THE_REQUEST and (fallbacks.context_window or fallbacks.content_policy):
        begun = await _beginning(connection)
        _raise_what_others_might_answer(begun)
    elif status in _MAY_BE_THE_CLIENTS:
        begun = await _beginning(connection)
        if (message := clients_fault(status, begun)) is not None:
            raise refusals.refused_by_engine(message)
    if status >= 500:
        exchange.blame()
    if elsewhere and (status >= 500 or status == 429):
        connection.abort()
        raise refusals.engine_failed(call.model, f"answered {status}")
    return begun


async def _beginning(connection: Connection) -> bytes:
    body = b""
    while not connection.ended and len(body) < _READ_AT_MOST:
        body += await connection.read()
    return body


def _raise_what_others_might_answer(body: bytes) -> None:
    match meaning(body):
        case Blame.CONTEXT, message:
            raise refusals.too_long_for_the_model(message)
        case Blame.POLICY, message:
            raise refusals.against_the_policy(message)
