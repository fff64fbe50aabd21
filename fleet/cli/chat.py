"""``chat``: talk to a deployed model from the terminal."""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.cli.setup import connect
from fleet.errors import HoldfastError

if TYPE_CHECKING:
    from fleet.cli.client import Api

DEFAULT_SYSTEM = "You are a helpful assistant."
"""Small models answer noticeably better with it than with none."""


class BrokenAnswer(HoldfastError):
    title = "The answer broke off"


def chat(
    name: Annotated[str, typer.Argument(help="Name of the deployment.", show_default=False)],
    prompt: Annotated[str | None, typer.Argument(help="Ask this and end; without it, talk.")] = None,
    system: Annotated[str, typer.Option(help="System prompt; empty for none.")] = DEFAULT_SYSTEM,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.", min=1)] = None,
    temperature: Annotated[float | None, typer.Option(help="0: always the likeliest.", min=0)] = None,
) -> None:
    """Talk to a model."""
    options: dict[str, Any] = {"model": name, "max_tokens": max_tokens, "temperature": temperature}
    messages = [{"role": "system", "content": system}] if system else []
    api = connect()
    if prompt is not None:
        _ask(api, options, messages, prompt)
        return
    print("Ctrl-D ends.", file=sys.stderr)
    while (line := _read_line()) is not None:
        if line.strip():
            messages = _ask(api, options, messages, line)


def _read_line() -> str | None:
    try:
        return input("> ")
    except EOFError:
        return None


def _ask(api: "Api", options: dict[str, Any], messages: list[dict[str, str]], prompt: str) -> list[dict[str, str]]:
    """Print the answer as it comes; answers the conversation with it."""
    messages = [*messages, {"role": "user", "content": prompt}]
    body = {key: value for key, value in options.items() if value is not None}
    parts: list[str] = []
    with api.stream("POST", "/v1/chat/completions", body={**body, "messages": messages, "stream": True}) as answer:
        for text in deltas(answer.iter_lines()):
            parts.append(text)
            print(text, end="", flush=True)
    print()
    return [*messages, {"role": "assistant", "content": "".join(parts)}]


def deltas(lines: Iterable[str]) -> Iterator[str]:
    """The pieces of text in a stream of server-sent chat completion chunks."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        chunk = json.loads(data)
        if error := chunk.get("error"):
            raise BrokenAnswer(str(error.get("message", error) if isinstance(error, dict) else error))
        for choice in chunk.get("choices", []):
            if text := choice.get("delta", {}).get("content"):
                yield text
    raise BrokenAnswer("the stream ended without its end mark", hint="see `holdfast instances` and `holdfast logs`")
