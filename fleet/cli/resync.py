"""``resync``: begins what Temporal has lost anew."""

from typing import Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import connect

Json = dict[str, Any]

_KINDS = ("hosts", "instances", "deployments", "batches")


def resync(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False) -> None:
    """After Temporal has lost its data: rebuild all workflows from the database. Engines go on serving."""
    done: Json = connect().post("/api/v1/system/resync")
    if as_json:
        output.print_json(done)
        return
    rows = [[kind, str(done[kind]["started"]), str(done[kind]["existing"])] for kind in _KINDS if kind in done]
    output.print_table(["", "TAKEN UP", "THERE ALREADY"], rows, empty="")
    if done["orphans"]:
        print(f"\ncleaned up, because nobody asks for it any more: {', '.join(done['orphans'])}")
