"""Errors that reach a person.

HoldfastError
├── InvalidInput        422  a field is wrong; names it and the remedy
├── Unauthenticated     401
├── Forbidden           403
├── NotFound            404
├── Conflict            409  the name is taken, or the state forbids it
├── PreconditionFailed  412  somebody else changed it first
└── Unavailable         503  a part of ours is down; comes with a retry hint
"""

from typing import Any


class HoldfastError(Exception):
    """Base of all errors with a message for people.

    ``hint`` says what to do; ``field`` names the input at fault, as a dotted path.
    """

    status = 500
    title = "Internal error"

    def __init__(self, detail: str, *, hint: str = "", field: str = "", **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.field = field
        self.extra = extra


class InvalidInput(HoldfastError):
    status = 422
    title = "Invalid input"


class Unauthenticated(HoldfastError):
    status = 401
    title = "Not authenticated"


class Forbidden(HoldfastError):
    status = 403
    title = "Not allowed"


class NotFound(HoldfastError):
    status = 404
    title = "Not found"


class Conflict(HoldfastError):
    status = 409
    title = "Conflict"


class PreconditionFailed(HoldfastError):
    status = 412
    title = "Precondition failed"


class Unavailable(HoldfastError):
    status = 503
    title = "Temporarily unavailable"
