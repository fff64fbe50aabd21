"""``defragment``: move replicas so that one that waits finds room."""

from typing import Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import WrongUsage, connect

Json = dict[str, Any]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def defragment(
    deployment: Annotated[
        str | None, typer.Argument(help="A replica of it waits for room; without: list what is moved.")
    ] = None,
    stop: Annotated[bool, typer.Option("--stop", help="No move more; what is not through stays.")] = False,
    reason: Annotated[str, typer.Option(help="For people, with --stop.")] = "",
    as_json: AsJson = False,
) -> None:
    """Move replicas of others so that a deployment finds room which is there in pieces. Nothing is interrupted."""
    from fleet.cli.client import path_of

    api = connect()
    if deployment is None:
        if stop:
            raise WrongUsage("say which: holdfast defragment DEPLOYMENT --stop")
        _print_all(api.items("/api/v1/defragmentations"), as_json)
        return
    if stop:
        found = api.post(f"{path_of('defragmentations', deployment)}/stop", {"reason": reason})
    else:
        found = api.post("/api/v1/defragmentations", {"deployment": deployment})
    if as_json:
        output.print_json(found)
    else:
        print(f"{deployment}: {found['state']}, {found['message']}")


def _print_all(found: list[Json], as_json: bool) -> None:
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ["DEPLOYMENT", "STATE", "WAITING", "DONE", "LEFT", "AGE", "MESSAGE"],
        [
            [
                d["deployment"],
                output.state(d["state"]),
                d["waiting"] or "",
                str(_count(d, "done")),
                str(len(d["moves"]) - _count(d, "done")),
                output.age(d["started_at"]),
                d["message"],
            ]
            for d in found
        ],
        empty="nothing is being moved",
    )


def _count(found: Json, state: str) -> int:
    return sum(m["state"] == state for m in found["moves"])
