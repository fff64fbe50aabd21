"""The items of a request as they are kept: each with an id, and in the one form in which they are listed."""

from typing import Any

from api.gateway.conversion import Document
from api.gateway.responses.ids import input_id
from api.gateway.responses.prepared import Prepared

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def own_items(prepared: Prepared, response_id: str) -> list[Document]:
    """Those of this request alone. What is no item is left out: an engine may have taken it for one."""
    given = prepared.document["input"]
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": given}]
    items: dict[str, Document] = {}
    for i, item in enumerate(given[prepared.history :]):
        if isinstance(item, dict):
            kept = _kept(item, input_id(_prefix(item), response_id, i))
            if kept["id"] in items:
                kept["id"] = input_id(_prefix(item), response_id, i)
            items[kept["id"]] = kept
    return list(items.values())


def _prefix(item: Document) -> str:
    return _PREFIXES.get(str(item.get("type", "message")), "item")


def _kept(item: Document, new_id: str) -> Document:
    kept = {"type": "message", **item}
    if not isinstance(kept.get("id"), str) or not kept["id"]:
        kept["id"] = new_id
    if kept["type"] == "message":
        kept["content"] = _content(item)
    elif kept["type"] == "reasoning":
        kept["summary"] = item.get("summary") or []
        return kept
    kept["status"] = item.get("status") or "completed"
    return kept


def _content(item: Document) -> list[Any]:
    spoken = item.get("role") == "assistant"
    content = item.get("content")
    if isinstance(content, str):
        content = [{"type": "output_text" if spoken else "input_text", "text": content}]
    return [_part(part, spoken) for part in content] if isinstance(content, list) else []


def _part(part: Any, spoken: bool) -> Any:
    if not isinstance(part, dict):
        return part
    if part.get("type") in ("text", "input_text", "output_text"):
        if spoken:
            return {"annotations": [], **part, "type": "output_text"}
        return part | {"type": "input_text"}
    if part.get("type") == "input_image":
        return {"detail": "auto", **part}
    return part
