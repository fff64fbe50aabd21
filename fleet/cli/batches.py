"""``batches``: what is worked off on spare capacity, of all keys."""

from typing import Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import connect

Json = dict[str, Any]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
BatchId = Annotated[str, typer.Argument(help="Id of the batch.")]

batches = typer.Typer(help="What is worked off on spare capacity: OpenAI batches of all keys.", no_args_is_help=True)


@batches.command("list")
def list_(
    running: Annotated[bool, typer.Option("--running", help="Only those that have not ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Newest first."""
    found = [b for b in connect().items("/api/v1/batches") if not running or b["ended_at"] is None]
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ["ID", "STATUS", "MODEL", "DONE", "OF", "FAILED", "LINES/S", "AGE", "KEY"], map(_row, found), empty="no batches"
    )


@batches.command()
def show(batch: BatchId, as_json: AsJson = False) -> None:
    """Everything about one."""
    _print(connect().get(f"/api/v1/batches/{batch}"), as_json)


@batches.command()
def cancel(batch: BatchId, as_json: AsJson = False) -> None:
    """No line more. What was answered is kept; the other lines are in its error file."""
    _print(connect().post(f"/api/v1/batches/{batch}/cancel"), as_json)


@batches.command()
def pause(batch: BatchId, as_json: AsJson = False) -> None:
    """No line more for now. Its time runs on."""
    _print(connect().post(f"/api/v1/batches/{batch}/pause"), as_json)


@batches.command()
def resume(batch: BatchId, as_json: AsJson = False) -> None:
    """Go on."""
    _print(connect().post(f"/api/v1/batches/{batch}/resume"), as_json)


def _row(b: Json) -> list[Any]:
    done = str(b["completed"] + b["failed"])
    rate = f"{b['lines_per_second']:.1f}"
    state = output.state(_state(b))
    return [
        b["id"],
        state,
        b["model"],
        done,
        str(b["total"]),
        str(b["failed"]),
        rate,
        output.age(b["created_at"]),
        b["key_id"],
    ]


def _state(b: Json) -> str:
    return "paused" if b["paused"] else str(b["status"])


def _print(b: Json, as_json: bool) -> None:
    if as_json:
        output.print_json(b)
        return
    output.print_fields(
        [
            ("id", b["id"]),
            ("status", output.state(_state(b))),
            ("message", b["message"]),
            ("endpoint", b["endpoint"]),
            ("model", b["model"]),
            ("lines", f"{b['completed']} answered, {b['failed']} with errors, of {b['total']}"),
            ("rate", f"{b['lines_per_second']:.1f} lines/s"),
            ("last error", b["last_error"]),
            ("key", b["key_id"]),
            ("until", b["expires_at"]),
            ("workflow", b["workflow_url"]),
        ]
    )
