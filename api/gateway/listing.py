"""``GET /v1/models``: every public name."""

from typing import Any

import orjson

from api.gateway import refusals
from api.gateway.known_routes import KnownRoute
from api.gateway.table import RoutingTable


class Listing:
    def __init__(self) -> None:
        self.all = b""
        """The whole answer."""
        self._models: dict[str, dict[str, Any]] = {}

    def adopt(self, table: RoutingTable) -> None:
        self._models = {name: _model(name, route) for name, route in table.routes.items()}
        self.all = orjson.dumps({"object": "list", "data": list(self._models.values())})

    def one(self, name: str) -> bytes:
        """Raises ``Refusal``."""
        model = self._models.get(name)
        if model is None:
            raise refusals.unknown_model(name)
        return orjson.dumps(model)


def _model(name: str, route: KnownRoute) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": route.created_at, "owned_by": "holdfast"}
