"""``keys``: API keys for people and programs."""

from enum import StrEnum
from typing import Annotated

import typer

from fleet.cli import output
from fleet.cli.setup import connect

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

keys = typer.Typer(help="API keys.", no_args_is_help=True)


class Scope(StrEnum):
    ADMIN = "admin"
    INFERENCE = "inference"


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What it is for.", show_default=False)],
    scope: Annotated[Scope, typer.Option(help="What it may do.")] = Scope.INFERENCE,
    ttl: Annotated[int | None, typer.Option(help="Seconds until it expires; never if unset.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key; it is shown once."""
    made = connect().post("/api/v1/api-keys", {"name": name, "scope": scope.value, "ttl_s": ttl})
    if as_json:
        output.print_json(made)
    else:
        print(made["key"])
        output.console(stderr=True).print(f"This is {made['id']}; the key is not shown again.", markup=False)


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List keys, without their secrets."""
    found = connect().items("/api/v1/api-keys")
    if as_json:
        output.print_json(found)
        return
    columns = ("id", "name", "prefix", "scope", "created_at", "expires_at", "revoked_at")
    rows = [[str(key.get(column) or "") for column in columns] for key in found]
    output.print_table(["ID", "NAME", "KEY", "SCOPE", "CREATED", "EXPIRES", "REVOKED"], rows, empty="no keys")


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)]) -> None:
    """Make a key useless at once."""
    from fleet.cli.client import path_of

    connect().delete(path_of("api-keys", key_id))
    print(f"{key_id} is revoked")
