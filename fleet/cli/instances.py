"""``instances``, ``logs`` and ``retry``."""

import sys
from typing import Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import connect

Json = dict[str, Any]


def list_instances(
    instance: Annotated[str | None, typer.Argument(help="Show only this one, in full.")] = None,
    deployment: Annotated[str | None, typer.Option(help="Only those of this deployment.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """List engine instances, or show one."""
    from fleet.cli.client import path_of

    api = connect()
    if instance is None:
        found = api.items("/api/v1/instances", deployment=deployment)
        output.print_json(found) if as_json else print_instances(found)
        return
    one = api.get(path_of("instances", instance))
    if as_json:
        output.print_json(one)
    else:
        _show(one)


def logs(
    instance: Annotated[str, typer.Argument(help="As in `holdfast instances`, e.g. smollm2/1-3f2a9c01.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as new lines come.")] = False,
    tail: Annotated[int | None, typer.Option(help="Only so many of the last lines.", min=0)] = None,
    attempt: Annotated[int | None, typer.Option(help="Of this attempt instead of the newest.")] = None,
) -> None:
    """Print an engine's log."""
    from fleet.cli.client import path_of

    path = f"{path_of('instances', instance)}/logs"
    options: Json = {"tail": tail, "follow": "true" if follow else None, "attempt": attempt}
    with connect().stream("GET", path, **options) as response:
        for chunk in response.iter_bytes():
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()


def retry(
    name: Annotated[
        str,
        typer.Argument(metavar="INSTANCE_OR_DEPLOYMENT", help="A deployment's name means all its failed instances."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Approve that failed instances are tried again, after you have removed the cause."""
    from fleet.cli.client import path_of

    collection = "instances" if "/" in name else "deployments"
    answer = connect().post(f"{path_of(collection, name)}/approve-retry")
    if as_json:
        output.print_json(answer)
        return
    for instance in answer["instances"]:
        print(f"{instance} is tried again")


def print_instances(found: list[Json]) -> None:
    output.print_table(
        ["ID", "STATE", "HOST", "ENDPOINT", "PID", "RESTARTS", "AGE", "MESSAGE"],
        [
            [
                i["id"],
                output.state(i["state"]),
                i.get("host_id") or "",
                i.get("endpoint") or "",
                str(i.get("pid") or ""),
                str(i.get("restarts") or 0),
                output.age(i.get("created_at")),
                _message(i),
            ]
            for i in found
        ],
        empty="no instances",
    )


def _message(instance: Json) -> str:
    progress = instance.get("progress")
    parts = [f"{100 * progress:.0f} %" if progress is not None else "", instance.get("message") or ""]
    return " ".join(part for part in parts if part)


def _show(i: Json) -> None:
    output.print_fields(
        [
            ("id", i["id"]),
            ("deployment", f"{i['deployment']} (revision {i.get('revision')})"),
            ("state", output.state(i["state"])),
            ("message", _message(i)),
            ("hint", i.get("hint") or ""),
            ("host", i.get("host_id") or ""),
            ("gpus", " ".join(i.get("gpu_uuids") or [])),
            ("endpoint", i.get("endpoint") or ""),
            ("pid", str(i.get("pid") or "")),
            ("fence", str(i.get("fence", ""))),
            ("restarts", str(i.get("restarts", ""))),
            ("created", f"{output.age(i.get('created_at'))} ago"),
            ("workflow", i.get("workflow_url") or ""),
            ("log", f"holdfast logs {i['id']}"),
        ]
    )
