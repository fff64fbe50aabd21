"""``usage``."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import WrongUsage, connect

_PAGE = 500
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_LONGEST = timedelta(days=36_500)


class Dimension(StrEnum):
    KEY = "key"
    ROUTE = "route"
    DEPLOYMENT = "deployment"
    OPERATION = "operation"
    DAY = "day"
    HOUR = "hour"


def usage(
    *,
    by: Annotated[list[Dimension] | None, typer.Option(help="What to tell apart by; may be repeated.")] = None,
    since: Annotated[str, typer.Option(help="30m, 12h, 7d, 4w, or a time such as 2026-11-30T04:00.")] = "30d",
    until: Annotated[str | None, typer.Option(help="The same; requests before that.")] = None,
    key: Annotated[str | None, typer.Option(help="Only of the key with this ID.")] = None,
    route: Annotated[str | None, typer.Option(help="Only for this public name.")] = None,
    deployment: Annotated[str | None, typer.Option(help="Only by this deployment, or provider:NAME.")] = None,
    operation: Annotated[str | None, typer.Option(help="Only this, e.g. chat.completions.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """What requests used: tokens, audio, images."""
    dimensions = list(dict.fromkeys(d.value for d in by or [Dimension.ROUTE]))
    times = {"from": _time(since, "--since"), "to": _time(until, "--until") if until else None}
    chosen = {"key": key, "route": route, "deployment": deployment, "operation": operation}
    found = connect().items("/api/v1/usage", by=dimensions, limit=_PAGE, **times, **chosen)
    if as_json:
        output.print_json(found)
        return
    columns = ["REQUESTS", "FAILED", "PROMPT", "CACHED", "COMPLETION", "REASONING", "AUDIO", "IMAGES"]
    output.print_table(
        [*(d.upper() for d in dimensions), *columns], [_row(entry, dimensions) for entry in found], empty="no requests"
    )


def _row(entry: dict[str, Any], dimensions: list[str]) -> list[str]:
    group = dict(entry["group"])
    if entry.get("key_name"):
        group["key"] = f"{entry['key_name']} ({group['key']})"
    tokens = (entry[f"{name}_tokens"] for name in ("prompt", "cached", "completion", "reasoning"))
    audio = f"{entry['audio_seconds']:.1f}s" if entry["audio_seconds"] else ""
    counts = [entry["requests"], entry["failed"], *tokens]
    return [*(group[d] for d in dimensions), *(f"{n:,}" for n in counts), audio, str(entry["images"] or "")]


def _time(text: str, option: str) -> str:
    """ISO 8601, in UTC where nothing else is said."""
    number, unit = text[:-1], _UNITS.get(text[-1:])
    if unit is not None and number.isascii() and number.isdigit() and len(number) < 9:
        return (datetime.now(UTC) - min(int(number) * unit, _LONGEST)).isoformat()
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise WrongUsage(
            f"{option} {text!r} is no time", hint="say how long ago, like 12h or 7d, or when, like 2026-11-30T04:00"
        ) from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat()
