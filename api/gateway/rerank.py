"""Cohere's rerank, as its clients speak it, over the form that engines share."""

from typing import Any

import orjson

from api.gateway import refusals
from api.gateway.conversion import Document
from api.gateway.filters import Headers
from api.gateway.operation import RERANK


class CohereRerank:
    """A ``Conversion``: documents may be objects, and the answer has an id and what was billed."""

    def __init__(self, request_id: str) -> None:
        self.path = RERANK.path
        self._id = request_id
        self._documents: list[Any] = []
        self._returned = False

    def request(self, document: Document) -> Document:
        documents = document.get("documents")
        if not isinstance(documents, list):
            raise refusals.Refusal(400, "'documents' must be a list.", param="documents", code="invalid_type")
        self._documents = documents
        self._returned = document.get("return_documents") is True
        fields = document.get("rank_fields")
        chosen = [f for f in fields if isinstance(f, str)] if isinstance(fields, list) else ["text"]
        kept = {name: value for name, value in document.items() if name not in ("rank_fields", "return_documents")}
        return {**kept, "documents": [_text(part, chosen) for part in documents]}

    def answer(self) -> "CohereAnswer":
        return CohereAnswer(self._id, self._documents if self._returned else None)


class CohereAnswer:
    """A ``Filter`` of a whole body."""

    def __init__(self, request_id: str, documents: list[Any] | None) -> None:
        self._id = request_id
        self._documents = documents
        self._status = 200
        self._body = b""

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        self._status = status
        return status, [h for h in headers if h[0] != b"content-length"]

    def feed(self, data: bytes) -> bytes:
        self._body += data
        return b""

    def end(self) -> bytes:
        try:
            said = orjson.loads(self._body)
        except orjson.JSONDecodeError:
            return self._body
        if not isinstance(said, dict):
            return self._body
        if self._status >= 400:
            return orjson.dumps({"message": _message(said)})
        return orjson.dumps(
            {
                "id": self._id,
                "results": [self._result(r) for r in said.get("results") or () if isinstance(r, dict)],
                "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
            }
        )

    def _result(self, result: dict[str, Any]) -> dict[str, Any]:
        index = result.get("index")
        ranked = {"index": index, "relevance_score": result.get("relevance_score")}
        if self._documents is not None and isinstance(index, int) and 0 <= index < len(self._documents):
            part = self._documents[index]
            ranked["document"] = part if isinstance(part, dict) else {"text": part}
        return ranked


def _text(part: object, fields: list[str]) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        return "\n".join(str(part[name]) for name in fields if name in part)
    raise refusals.Refusal(
        400, "'documents' must have texts, or objects with a 'text'.", param="documents", code="invalid_type"
    )


def _message(said: dict[str, Any]) -> str:
    error = said.get("error", said)
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else "the engine refused the request"
