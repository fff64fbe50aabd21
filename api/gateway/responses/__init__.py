"""OpenAI's ``/v1/responses``, with and without storage, over engines that speak chat completions or responses."""

from api.gateway.responses.collect import Collect
from api.gateway.responses.conversion import ResponsesToChat
from api.gateway.responses.prepared import Prepared, prepare
from api.gateway.responses.store import StoredResponses
from api.gateway.responses.stored_paths import answer_stored

__all__ = ["Collect", "Prepared", "ResponsesToChat", "StoredResponses", "answer_stored", "prepare"]
