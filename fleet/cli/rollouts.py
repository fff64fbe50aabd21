"""``update``, ``rollback``, ``revisions``, ``rollout``."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.deployments import DEFAULT_TIMEOUT_S, AsJson, Name, Timeout, Wait, follow
from fleet.cli.setup import WrongUsage, connect

Json = dict[str, Any]


class Action(StrEnum):
    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ABORT = "abort"


def update(  # noqa: PLR0917 (options, by name)
    name: Name,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Of the spec, e.g. max_model_len=4096; null removes; repeat."
        ),
    ] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", help="Merge patch as JSON; '-': stdin.")] = None,
    wait: Wait = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Change a deployment; what needs new engines is rolled out."""
    from fleet.cli import spec
    from fleet.cli.client import path_of

    patch: Json = spec.read_document(file) if file else {}
    for assignment in assign or ():
        spec.assign(patch.setdefault("spec", {}), assignment)
    if not patch:
        raise WrongUsage("say what to change", hint="e.g. --set max_model_len=4096, or --file patch.json")
    follow(connect().patch(path_of("deployments", name), patch), wait, timeout, as_json)


def rollback(
    name: Name,
    to: Annotated[int | None, typer.Option(help="Revision; unset: what worked before.", min=1)] = None,
    wait: Wait = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Go back to an earlier revision."""
    from fleet.cli.client import path_of

    body = {} if to is None else {"revision": to}
    follow(connect().post(f"{path_of('deployments', name)}/rollback", body), wait, timeout, as_json)


def revisions(name: Name, as_json: AsJson = False) -> None:
    """List what a deployment was, newest first."""
    from fleet.cli.client import path_of

    found = connect().items(f"{path_of('deployments', name)}/revisions")
    if as_json:
        output.print_json(found)
        return
    rows = [
        [
            f"{r['revision']}{' *' if r['current'] else ''}",
            r["outcome"],
            f"{r['engine']} {r['engine_version']}".strip(),
            output.age(r["created_at"]),
            r["cause"],
        ]
        for r in found
    ]
    output.print_table(["REVISION", "OUTCOME", "ENGINE", "AGE", "CAUSE"], rows, empty="no revisions")


def rollout(
    name: Name,
    action: Annotated[Action | None, typer.Argument(help="What to do; without it: how far it is.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the rollout in progress, or pause, resume, promote or abort it."""
    from fleet.cli.client import path_of

    api = connect()
    path = path_of("deployments", name)
    deployment = api.get(path) if action is None else api.post(f"{path}/rollout/{action}")
    found = deployment["status"].get("rollout")
    if as_json:
        output.print_json(found)
        return
    if found is None:
        print(f"{name}: no rollout is in progress; {deployment['status']['message']}")
        return
    output.print_fields(
        [
            ("revision", f"{found['from_revision'] or '-'} → {found['revision']}"),
            ("strategy", f"{found['strategy']} ({found['mode']})"),
            ("stage", "paused" if found["paused"] else found["stage"]),
            ("new", f"{found['new_ready_replicas']} of {found['new_replicas']} ready"),
            ("old", str(found["old_replicas"])),
            ("bakes until", found["bake_until"] or ""),
            ("note", found["note"]),
        ]
    )
