"""What cannot be converted: where it stands in the request, and what to do about it."""

from collections.abc import Callable
from typing import Any

from api.gateway.conversion import Document
from api.gateway.refusals import Refusal, shown


class Wrong(Exception):
    """``field`` is completed on the way up, so that a request without faults never spells out where it is."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def under(self, prefix: str) -> "Wrong":
        joint = "." if self.field and not self.field.startswith("[") else ""
        return Wrong(self.message, prefix + joint + self.field)

    def refusal(self) -> Refusal:
        return Refusal(400, f"'{shown(self.field)}' {self.message}", param=self.field, code="invalid_value")


def each(name: str, items: Any, visit: Callable[[Document], None]) -> None:
    """Visits every object of a list; a fault found inside names its place."""
    if not isinstance(items, list):
        raise Wrong("must be a list.", name)
    for number, item in enumerate(items):
        try:
            if not isinstance(item, dict):
                raise Wrong("must be an object.")
            visit(item)
        except Wrong as wrong:
            raise wrong.under(f"{name}[{number}]") from None


def inside(item: Document, name: str) -> Document:
    """The object in a field. Raises ``Wrong`` when there is none."""
    value = item.get(name)
    if not isinstance(value, dict):
        raise Wrong("must be an object.", name)
    return value


def string(item: Document, name: str) -> str:
    """The text in a field. Raises ``Wrong`` when there is none."""
    value = item.get(name)
    if not isinstance(value, str):
        raise Wrong("must be a string.", name)
    return value
