"""Reading the fields of a request: each refusal names the field and says what it may be."""

from collections.abc import Collection
from typing import Any, NoReturn

from api.gateway.conversion import Document
from api.gateway.refusals import Refusal, shown


def refuse(param: str, message: str, code: str = "invalid_value") -> NoReturn:
    raise Refusal(400, f"'{param}' {message}", param=param, code=code)


def of_type(param: str, expected: str) -> NoReturn:
    refuse(param, f"must be {expected}.", "invalid_type")


def missing(param: str, remedy: str) -> NoReturn:
    refuse(param, f"is missing. {remedy}", "missing_required_parameter")


def text(value: Any, param: str) -> str:
    if not isinstance(value, str):
        of_type(param, "a string")
    return value


def text_or_none(value: Any, param: str) -> str | None:
    return None if value is None else text(value, param)


def flag(value: Any, param: str, default: bool) -> bool:
    if value is None:
        return default
    if not isinstance(value, bool):
        of_type(param, "true or false")
    return value


def mapping(value: Any, param: str) -> Document:
    if not isinstance(value, dict):
        of_type(param, "an object")
    return value


def mapping_or_empty(value: Any, param: str) -> Document:
    return {} if value is None else mapping(value, param)


def array(value: Any, param: str) -> list[Any]:
    if not isinstance(value, list):
        of_type(param, "an array")
    return value


def array_or_empty(value: Any, param: str) -> list[Any]:
    return [] if value is None else array(value, param)


def one_of(value: Any, param: str, allowed: Collection[str], remedy: str = "") -> str:
    if not isinstance(value, str) or value not in allowed:
        said = f" '{shown(value)}'" if isinstance(value, str) else ""
        choice = ", ".join(f"'{name}'" for name in allowed)
        refuse(param, f"cannot be{said or ' that'}; it may be {choice}. {remedy}".rstrip())
    return value


def at(param: str, index: int, name: str = "") -> str:
    """``input`` 2 ``type``: ``input[2].type``."""
    return f"{param}[{index}].{name}" if name else f"{param}[{index}]"
