"""``set-host``: what people set of a host, over what it says of itself."""

from typing import Annotated, Any

import typer

from fleet.cli import output, quantities
from fleet.cli.hosts import show_host
from fleet.cli.setup import connect
from fleet.cli.spec import parse_pairs

Json = dict[str, Any]

OWN = "own"
"""As the host says."""


def set_host(  # noqa: PLR0917 (options, by name)
    host: Annotated[str, typer.Argument(help="As in `holdfast hosts`.", show_default=False)],
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Give it a label; repeat.")] = None,
    unlabel: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Take back a label; repeat.")] = None,
    reserved_for: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only deployments with all of these labels are placed here; repeat."),
    ] = None,
    open_to_all: Annotated[bool, typer.Option("--open-to-all", help="No reservation any more.")] = False,
    reserve_ram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="RAM to leave alone, e.g. 8GiB; `own`: as the host says.")
    ] = None,
    reserve_vram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of each GPU to leave alone; `own`: as the host says.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Set labels, whom a host is for, and what placement leaves alone. Replicas that run there stay."""
    if open_to_all and reserved_for:
        raise typer.BadParameter("either --reserved-for or --open-to-all")
    body: Json = {}
    if label or unlabel:
        body["labels"] = {**dict.fromkeys(unlabel or []), **parse_pairs(label or [], "--label")}
    reserve = {
        name: None if text == OWN else quantities.size(text)
        for name, text in (("ram_bytes", reserve_ram), ("vram_bytes", reserve_vram))
        if text is not None
    }
    if reserve:
        body["reserve"] = reserve
    if open_to_all:
        body["reserved_for"] = None
    from fleet.cli.client import path_of

    api, path = connect(), path_of("hosts", host)
    if reserved_for:
        before = api.get(path)["reserved_for"]
        body["reserved_for"] = {**dict.fromkeys(before), **parse_pairs(reserved_for, "--reserved-for")}
    if not body:
        raise typer.BadParameter("say what to set; see --help")
    found = api.patch(path, body)
    output.print_json(found) if as_json else show_host(found)
