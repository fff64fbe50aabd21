"""``join-token``: how new hosts get in."""

from enum import StrEnum
from typing import Annotated

import typer

from fleet.cli import output, quantities
from fleet.cli.setup import connect

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

join_token = typer.Typer(help="Tokens by which new hosts join.", no_args_is_help=True)


class Kind(StrEnum):
    PROCESS = "process"
    CONTAINER = "container"
    SYSTEMD = "systemd"
    CLOUD_INIT = "cloud-init"


@join_token.command("create")
def create_token(
    description: Annotated[str, typer.Option(help="What it is for, to tell it from others.")] = "",
    ttl: Annotated[str, typer.Option(help="How long it may be used: 90s, 30m, 1h, 7d.")] = "1h",
    uses: Annotated[int, typer.Option(help="How many hosts may join with it.", min=1, max=10_000)] = 1,
    kind: Annotated[
        Kind | None, typer.Option("--for", help="Print only what this needs, for a pipe or a file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token; it is shown once, with the command that makes a machine a host."""
    body = {"description": description, "ttl_s": quantities.seconds(ttl), "max_uses": uses}
    made = connect().post("/api/v1/join-tokens", body)
    if as_json:
        output.print_json(made)
        return
    if made.get("note"):
        output.console(stderr=True).print(output.plain(f"note: {made['note']}", "yellow"), soft_wrap=True)
    if kind is not None:
        print(_command(made, kind))
        return
    hosts = "one host" if uses == 1 else f"{uses} hosts"
    print(f"token    {made['token']}\nfor      {hosts}, until {made['expires_at']}")
    print(f"\nRun this on the new host, where Holdfast is installed:\n\n  {_command(made, Kind.PROCESS)}\n")
    others = ", ".join(k.value for k in Kind if k is not Kind.PROCESS)
    print(f"For {others}: --for, or `commands` in --json.")


@join_token.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """List tokens, without their secrets."""
    found = connect().items("/api/v1/join-tokens")
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ["ID", "DESCRIPTION", "USED", "EXPIRES", "LAST USED", "LAST HOST", "REVOKED"],
        [
            [
                token["id"],
                token["description"],
                f"{token['uses']} of {token['max_uses']}",
                *(str(token.get(name) or "") for name in ("expires_at", "used_at", "used_by", "revoked_at")),
            ]
            for token in found
        ],
        empty="no join tokens",
    )


@join_token.command("revoke")
def revoke_token(token_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)]) -> None:
    """Make a token useless; hosts that joined with it stay."""
    from fleet.cli.client import path_of

    connect().delete(path_of("join-tokens", token_id))
    print(f"{token_id} is revoked")


def _command(made: dict[str, dict[str, str]], kind: Kind) -> str:
    return made["commands"][kind.value.replace("-", "_")].rstrip()
