"""``hosts`` and ``join-token``."""

from typing import Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import connect

Json = dict[str, Any]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

join_token = typer.Typer(help="Tokens by which a new host joins.", no_args_is_help=True)


def list_hosts(
    host: Annotated[str | None, typer.Argument(help="Show only this one, in full.")] = None,
    forget: Annotated[bool, typer.Option(help="Forget HOST: it is gone and will not come back.")] = False,
    as_json: AsJson = False,
) -> None:
    """List hosts, show one, or forget one that is gone for good."""
    from fleet.cli.client import path_of

    api = connect()
    if host is None:
        if forget:
            raise typer.BadParameter("say which host to forget: holdfast hosts ID --forget")
        found = api.items("/api/v1/hosts")
        output.print_json(found) if as_json else print_hosts(found)
        return
    if forget:
        api.delete(path_of("hosts", host))
        print(f"{host} is forgotten")
        return
    one = api.get(path_of("hosts", host))
    if as_json:
        output.print_json(one)
    else:
        _show(one)


@join_token.command("create")
def create_token(
    description: Annotated[str, typer.Option(help="What it is for, to tell it from others.")] = "",
    ttl: Annotated[int, typer.Option(help="How long it may be used, in seconds.", min=1)] = 3600,
    as_json: AsJson = False,
) -> None:
    """Make a token; it is shown once and good for one host."""
    made = connect().post("/api/v1/join-tokens", {"description": description, "ttl_s": ttl})
    if as_json:
        output.print_json(made)
        return
    print(f"token    {made['token']}\nexpires  {made['expires_at']}")
    if made.get("command"):
        print(f"\nRun this on the new host:\n\n  {made['command']}")


@join_token.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """List tokens, without their secrets."""
    found = connect().items("/api/v1/join-tokens")
    if as_json:
        output.print_json(found)
        return
    rows = [[str(token.get(k) or "") for k in ("id", "description", "expires_at", "used_at")] for token in found]
    output.print_table(["ID", "DESCRIPTION", "EXPIRES", "USED"], rows, empty="no join tokens")


@join_token.command("revoke")
def revoke_token(token_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)]) -> None:
    """Make a token useless; a host that joined with it stays."""
    from fleet.cli.client import path_of

    connect().delete(path_of("join-tokens", token_id))
    print(f"{token_id} is revoked")


def print_hosts(found: list[Json]) -> None:
    output.print_table(
        ["ID", "NAME", "STATE", "MAINTENANCE", "ADDRESS", "CPUS", "RAM USED", "GPUS", "GPU MEMORY USED", "MESSAGE"],
        [
            [
                h["id"],
                h["name"],
                output.state(h["state"]),
                output.state(_maintenance(h)),
                h.get("address") or "",
                str((h.get("inventory") or {}).get("cpu_count") or ""),
                _of(h.get("ram_used_bytes"), h.get("ram_allocatable_bytes")),
                str(len(h.get("gpus") or [])),
                _gpu_memory(h),
                "; ".join(text for text in (h.get("message"), h.get("maintenance_message")) if text),
            ]
            for h in found
        ],
        empty="no hosts; `holdfast join-token create` says how one joins",
    )


def print_waiting(found: list[Json]) -> None:
    """A line when lost hosts wait for a person; nothing otherwise."""
    waiting = [h["id"] for h in found if h.get("replacement_paused")]
    if waiting:
        hosts = "1 lost host waits" if len(waiting) == 1 else f"{len(waiting)} lost hosts wait"
        line = f"{hosts} for approval before replicas are replaced ({', '.join(waiting)}): holdfast approve-replacement"
        output.console().print(output.plain(line, "bold red"), soft_wrap=True)


def _maintenance(host: Json) -> str:
    value = host.get("maintenance") or "none"
    return "" if value == "none" else str(value)


def _of(used: int | None, total: int | None) -> str:
    return f"{output.bytes_text(used)} of {output.bytes_text(total)}" if total else ""


def _gpu_memory(host: Json) -> str:
    gpus = host.get("gpus") or []
    return _of(sum(g["used_bytes"] for g in gpus), sum(g["allocatable_bytes"] for g in gpus))


def _show(host: Json) -> None:
    inventory = host.get("inventory") or {}
    engines = [f"{e['engine']} {e['version']}" for e in inventory.get("engines") or []]
    output.print_fields(
        [
            ("id", host["id"]),
            ("name", host["name"]),
            ("state", output.state(host["state"])),
            ("message", host.get("message") or ""),
            ("maintenance", " ".join(p for p in (_maintenance(host), host.get("maintenance_message")) if p)),
            ("address", host.get("address") or ""),
            ("version", host.get("version") or ""),
            ("system", f"{inventory.get('os', '')} {inventory.get('arch', '')}".strip()),
            ("cpus", str(inventory.get("cpu_count") or "")),
            ("ram claimed", _of(host.get("ram_used_bytes"), host.get("ram_allocatable_bytes"))),
            ("disk free", _of(inventory.get("disk_free_bytes"), inventory.get("disk_bytes"))),
            ("engines", ", ".join(engines)),
            ("labels", " ".join(f"{k}={v}" for k, v in (host.get("labels") or {}).items())),
            ("workflow", host.get("workflow_url") or ""),
            *((f"gpu {n}", _gpu(gpu)) for n, gpu in enumerate(host.get("gpus") or [])),
        ]
    )


def _gpu(gpu: Json) -> str:
    text = f"{gpu['name']}, {_of(gpu['used_bytes'], gpu['allocatable_bytes'])} claimed, {gpu['uuid']}"
    if not gpu.get("healthy", True):
        text = f"{text}, NOT HEALTHY: {gpu.get('reason')}"
    return f"{text}, CORDONED: {gpu.get('cordon_reason')}" if gpu.get("cordoned") else text
