"""How the command line speaks: tables and colours for people, JSON for scripts, errors on stderr."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fleet.errors import HoldfastError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

WIDTH_WHEN_PIPED = 240
"""Nobody looks at the lines, so nothing needs to be cut."""

STYLES = {
    "ready": "green",
    "ok": "green",
    "failed": "bold red",
    "fail": "bold red",
    "lost": "bold red",
    "degraded": "yellow",
    "suspect": "yellow",
    "cordoned": "yellow",
    "recovering": "yellow",
    "warn": "yellow",
    "stopped": "dim",
    "forgotten": "dim",
    "deleting": "dim",
    "draining": "dim",
}
IN_BETWEEN = "cyan"


def console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_WHEN_PIPED
    return Console(file=stream, width=width, highlight=False)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence["str | Text"]], *, empty: str) -> None:
    """``empty`` is said instead of a table without rows."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*(plain(cell) if isinstance(cell, str) else cell for cell in row))
    if table.row_count:
        console().print(table)
    else:
        print(empty)


def print_fields(fields: Iterable[tuple[str, "str | Text"]]) -> None:
    """One ``name  value`` a line; empty values are left out."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name, value in fields:
        if value:
            table.add_row(plain(name, "bold"), plain(value) if isinstance(value, str) else value)
    console().print(table)


def print_error(error: HoldfastError) -> None:
    """Title, detail, field and hint, on stderr."""
    from rich.text import Text

    out = console(stderr=True)
    text = Text("error: ", "bold red").append_text(plain(error.title, "bold"))
    if error.detail:
        text.append(": ").append_text(plain(error.detail))
    out.print(text, soft_wrap=True)
    for name, value in (("field", error.field), ("hint", error.hint)):
        if value:
            out.print(Text(f"  {name}: ", "bold").append_text(plain(value)), soft_wrap=True)


def plain(text: str, style: str = "") -> "Text":
    """``text`` as it is: no markup in it counts, and no control sequence in it reaches the terminal."""
    from rich.text import Text

    return Text("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text), style)


def state(value: str) -> "Text":
    return plain(value, STYLES.get(value, IN_BETWEEN))


def bytes_text(count: int | None) -> str:
    """E.g. ``23.4 GiB``."""
    if count is None:
        return ""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def age(timestamp: str | None, now: datetime | None = None) -> str:
    """How long ago an ISO 8601 time was: ``42s``, ``7m``, ``3h``, ``12d``."""
    if not timestamp:
        return ""
    then = datetime.fromisoformat(timestamp)
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    seconds = max(0, int(((now or datetime.now(UTC)) - then).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
