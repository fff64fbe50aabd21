"""``gpus``."""

from typing import Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import connect

Json = dict[str, Any]


def list_gpus(
    cordon: Annotated[str | None, typer.Option(metavar="UUID", help="Place nothing more on this one.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why it is cordoned, for whoever wonders.")] = None,
    uncordon: Annotated[str | None, typer.Option(metavar="UUID", help="Use it again and forget its faults.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """List GPUs, or say which take new replicas."""
    if cordon is not None and uncordon is not None:
        raise typer.BadParameter("either --cordon or --uncordon")
    if (cordon is None) != (reason is None):
        raise typer.BadParameter("--cordon UUID and --reason TEXT go together")
    if cordon is not None:
        _told(_post(cordon, "cordon", {"reason": reason}), "is cordoned", as_json=as_json)
    elif uncordon is not None:
        _told(_post(uncordon, "uncordon"), "takes new replicas again", as_json=as_json)
    else:
        found = connect().items("/api/v1/gpus")
        output.print_json(found) if as_json else _print(found)


def _post(uuid: str, verb: str, body: Json | None = None) -> Json:
    from fleet.cli.client import path_of

    answer: Json = connect().post(f"{path_of('gpus', uuid)}/{verb}", body)
    return answer


def _told(gpu: Json, what: str, *, as_json: bool) -> None:
    output.print_json(gpu) if as_json else print(f"{gpu['uuid']} {what}")


def _print(found: list[Json]) -> None:
    output.print_table(
        ["UUID", "HOST", "NAME", "STATE", "MEMORY USED", "FAULTS", "REASON"],
        [
            [
                g["uuid"],
                g["host_id"],
                g["name"],
                output.state(_state(g)),
                f"{output.bytes_text(g['used_bytes'])} of {output.bytes_text(g['allocatable_bytes'])}",
                str(len(g["faults"]) or ""),
                g["cordon_reason"] or g["reason"],
            ]
            for g in found
        ],
        empty="no GPUs",
    )


def _state(gpu: Json) -> str:
    if not gpu["healthy"]:
        return "failed"
    return "cordoned" if gpu["cordoned"] else "ready"
