"""Ids of responses and of what is in them. An item's id says which response it belongs to, so that one that a client
merely refers to can be found."""

import secrets

_HEX = 32
_INPUT = 0x8000
"""Items of the input are counted from here, those of the output from 0."""


def new_response_id() -> str:
    return f"resp_{secrets.token_hex(_HEX // 2)}"


def output_id(prefix: str, response_id: str, index: int) -> str:
    return f"{prefix}_{_stem(response_id)}{index:04x}"


def input_id(prefix: str, response_id: str, index: int) -> str:
    return f"{prefix}_{_stem(response_id)}{_INPUT + index:04x}"


def response_of(item_id: str) -> str | None:
    """The response that an item of this id belongs to; None: it is not one of ours."""
    stem = item_id.partition("_")[2]
    return f"resp_{stem[:_HEX]}" if len(stem) > _HEX and stem[:_HEX].isalnum() else None


def _stem(response_id: str) -> str:
    return response_id.partition("_")[2] or response_id
