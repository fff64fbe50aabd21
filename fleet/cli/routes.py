"""``routes``: by which names clients ask for models, and where their requests go."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import WrongUsage, connect
from fleet.cli.spec import assign, parse_pairs, read_json

Json = dict[str, Any]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Name = Annotated[str, typer.Argument(help="Its own name, not an alias.", show_default=False)]

routes = typer.Typer(help="Public names of models, and where their requests go.", invoke_without_command=True)

_TARGET = ("deployment", "revision", "adapter", "provider", "model", "weight")
_NUMBERS = ("revision", "weight")
_TARGET_HINT = "--target deployment=smol,weight=3, or --target provider=openai,model=gpt-x"


@dataclass(frozen=True)
class RouteOptions:
    """What was given on the command line; empty leaves the file's value, or what is there, alone."""

    targets: Sequence[str] = ()
    aliases: Sequence[str] = ()
    fallbacks: Sequence[str] = ()
    labels: Sequence[str] = ()
    assignments: Sequence[str] = ()


@routes.callback()
def list_routes(
    context: typer.Context,
    label: Annotated[str | None, typer.Option(help="Only those with this key=value.")] = None,
    as_json: AsJson = False,
) -> None:
    """List routes, or do something with one."""
    if context.invoked_subcommand is not None:
        return
    found = connect().items("/api/v1/routes", label=label)
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ["NAME", "TARGETS", "ALIASES", "FALLBACKS", "POLICY", "AGE"],
        [_row(route) for route in found],
        empty="no routes; deployments are reached by their own names, others with `holdfast routes set`",
    )


@routes.command("get")
def get_route(name: Name, as_json: AsJson = False) -> None:
    """Show one in full."""
    from fleet.cli.client import path_of

    _show(connect().get(path_of("routes", name)), as_json)


@routes.command("set")
def set_route(  # noqa: PLR0917 (options, by name)
    file: Annotated[str | None, typer.Argument(help="Route, or just its spec, as JSON; '-': stdin.")] = None,
    name: Annotated[str | None, typer.Option(help="By which clients ask for it.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE,…", help="E.g. deployment=smol,weight=3; repeat.")
    ] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Another name for it; repeat.")] = None,
    fallback: Annotated[list[str] | None, typer.Option(help="Route to try when nothing answers; repeat.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="key=value; repeat.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the spec; repeat.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a route, or change the one that is there: what is not named stays, lists are replaced whole."""
    options = RouteOptions(target or (), alias or (), fallback or (), label or (), set_ or ())
    body = build(name, read_json(file, "FILE") if file else {}, options)
    _show(_put(body), as_json)


@routes.command("delete")
def delete_route(name: Name) -> None:
    """Delete a route; if a deployment has this name, the name leads to it again."""
    from fleet.cli.client import path_of

    connect().delete(path_of("routes", name))
    print(f"{name} is deleted")


def build(name: str | None, document: Json, options: RouteOptions) -> Json:
    """The body to send: ``document`` (a route, or a bare spec) with the options laid over it. The API checks all
    values."""
    document = document if "spec" in document else {"spec": document}
    name = name or document.get("name")
    if not name:
        raise WrongUsage("a route needs a name", field="--name", hint="holdfast routes set --name NAME --target …")
    spec = dict(_map(document, "spec"))
    if options.targets:
        spec["targets"] = [parse_target(text) for text in options.targets]
    if options.aliases:
        spec["aliases"] = list(options.aliases)
    if options.fallbacks:
        spec["fallbacks"] = {**_map(spec, "fallbacks"), "general": list(options.fallbacks)}
    for assignment in options.assignments:
        assign(spec, assignment)
    body: Json = {"name": name, "spec": spec}
    labels = {**_map(document, "labels"), **parse_pairs(options.labels, "--label")}
    return {**body, "labels": labels} if labels or "labels" in document else body


def _map(document: Json, name: str) -> Json:
    value = document.get(name) or {}
    if not isinstance(value, dict):
        raise WrongUsage(f"{name} is no JSON object", field="FILE", hint="as in `holdfast routes get NAME --json`")
    return value


def parse_target(text: str) -> Json:
    """``provider=openai,model=gpt-x,weight=3``. Raises WrongUsage."""
    target: Json = {}
    for key, value in parse_pairs(text.split(","), "--target").items():
        if key not in _TARGET:
            raise WrongUsage(f"{key!r} is nothing that a target has", field="--target", hint=_TARGET_HINT)
        if key in _NUMBERS and not (value.isascii() and value.isdigit() and len(value) < 12):
            raise WrongUsage(f"{key} must be a number, and is {value!r}", field="--target", hint=_TARGET_HINT)
        target[key] = int(value) if key in _NUMBERS else value
    return target


def _put(body: Json) -> Json:
    from fleet.cli.client import ApiProblem, path_of

    api, path = connect(), path_of("routes", body["name"])
    try:
        api.get(path)
    except ApiProblem as problem:
        if problem.status != 404:
            raise
        made: Json = api.post("/api/v1/routes", body)
        return made
    changed: Json = api.patch(path, {key: body[key] for key in ("labels", "spec") if key in body})
    return changed


def _row(route: Json) -> list[str]:
    spec = route["spec"]
    return [
        route["name"],
        ", ".join(map(_target, spec["targets"])),
        ", ".join(spec["aliases"]),
        ", ".join(spec["fallbacks"]["general"]),
        spec["balancing"]["policy"],
        output.age(route.get("created_at")),
    ]


def _target(target: Json) -> str:
    """E.g. ``smol@2:law x3``, ``openai/gpt-x``."""
    if target.get("provider"):
        text = "/".join(part for part in (target["provider"], target.get("model")) if part)
    else:
        text = target["deployment"]
        text += f"@{target['revision']}" if target.get("revision") else ""
        text += f":{target['adapter']}" if target.get("adapter") else ""
    return text if target["weight"] == 1 else f"{text} x{target['weight']}"


def _show(route: Json, as_json: bool) -> None:
    if as_json:
        output.print_json(route)
        return
    spec = route["spec"]
    output.print_fields(
        [
            ("name", route["name"]),
            ("aliases", ", ".join(spec["aliases"])),
            ("targets", ", ".join(map(_target, spec["targets"]))),
            ("labels", " ".join(f"{k}={v}" for k, v in (route.get("labels") or {}).items())),
            ("created", f"{output.age(route.get('created_at'))} ago"),
            ("changed", f"{output.age(route.get('updated_at'))} ago"),
            ("spec", json.dumps(spec, indent=2, ensure_ascii=False)),
        ]
    )
