"""``audit``."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import connect

_PAGE = 500


class Outcome(StrEnum):
    DONE = "done"
    REFUSED = "refused"


def audit(
    actor: Annotated[str | None, typer.Option(help="Only of this one: key:ID, host:ID or unknown.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this, e.g. hosts.patch; with a dot at the end: all.")] = None,
    outcome: Annotated[Outcome | None, typer.Option(help="Only what was done, or refused.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=100_000)] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Who did, or tried, what; newest first."""
    found = _newest(limit, actor=actor, action=action, outcome=outcome.value if outcome else None)
    if as_json:
        output.print_json(found)
        return
    columns = ("actor", "action", "target", "outcome", "reason", "peer")
    output.print_table(
        ["AT", *(name.upper() for name in columns), "TIMES"],
        [[e["at"][:19], *(str(e[name]) for name in columns), _times(e["count"])] for e in found],
        empty="no entries",
    )


def _newest(limit: int, **chosen: str | None) -> list[dict[str, Any]]:
    api = connect()
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(found) < limit:
        page = api.get("/api/v1/audit", limit=min(_PAGE, limit - len(found)), cursor=cursor, **chosen)
        found += page["items"]
        cursor = page.get("next_cursor")
        if not cursor:
            break
    return found


def _times(count: int) -> str:
    return "" if count == 1 else str(count)
