"""``hosts``."""

from typing import Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import connect

Json = dict[str, Any]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def list_hosts(
    host: Annotated[str | None, typer.Argument(help="Show only this one, in full.")] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Forget HOST: it is gone and will not come back.")] = False,
    revoke: Annotated[bool, typer.Option("--revoke", help="Trust HOST no more, at once: it was stolen, say.")] = False,
    as_json: AsJson = False,
) -> None:
    """List hosts, show one, or forget one that is gone for good."""
    from fleet.cli.client import path_of

    api = connect()
    if host is None:
        if forget or revoke:
            raise typer.BadParameter("say which host: holdfast hosts ID --forget")
        found = api.items("/api/v1/hosts")
        output.print_json(found) if as_json else print_hosts(found)
        return
    if revoke:
        api.post(f"{path_of('hosts', host)}/revoke")
        print(f"{host}: its key is worth nothing now; forget it (--forget) once it is lost")
        return
    if forget:
        api.delete(path_of("hosts", host))
        print(f"{host} is forgotten")
        return
    one = api.get(path_of("hosts", host))
    if as_json:
        output.print_json(one)
    else:
        show_host(one)


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
                "; ".join(text for text in (h.get("message"), h.get("maintenance_message"), _for_whom(h)) if text),
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


def _for_whom(host: Json) -> str:
    return f"reserved for {_labels(host['reserved_for'])}" if host.get("reserved_for") else ""


def _of(used: int | None, total: int | None) -> str:
    return f"{output.bytes_text(used)} of {output.bytes_text(total)}" if total else ""


def _gpu_memory(host: Json) -> str:
    gpus = host.get("gpus") or []
    return _of(sum(g["used_bytes"] for g in gpus), sum(g["allocatable_bytes"] for g in gpus))


def show_host(host: Json) -> None:
    inventory = host.get("inventory") or {}
    engines = [f"{e['engine']} {e['version']}" for e in inventory.get("engines") or []]
    output.print_fields(
        [
            ("id", host["id"]),
            ("name", host["name"]),
            ("state", output.state(host["state"])),
            ("message", host.get("message") or ""),
            ("maintenance", " ".join(p for p in (_maintenance(host), host.get("maintenance_message")) if p)),
            ("reserved for", _labels(host.get("reserved_for"))),
            ("reach", _reach(host)),
            ("version", host.get("version") or ""),
            ("last status", _status(host)),
            ("certificate", _until(host.get("certificate_expires_at"))),
            ("system", f"{inventory.get('os', '')} {inventory.get('arch', '')}".strip()),
            ("cpus", str(inventory.get("cpu_count") or "")),
            ("ram claimed", _of(host.get("ram_used_bytes"), host.get("ram_allocatable_bytes"))),
            ("disk free", _of(inventory.get("disk_free_bytes"), inventory.get("disk_bytes"))),
            ("reserve", _reserve(host)),
            ("engines", ", ".join(engines)),
            ("labels", _labels(host.get("labels"))),
            ("given labels", _labels(host.get("given_labels"))),
            ("workflow", host.get("workflow_url") or ""),
            *((f"gpu {n}", _gpu(gpu)) for n, gpu in enumerate(host.get("gpus") or [])),
        ]
    )


def _labels(labels: dict[str, str] | None) -> str:
    return " ".join(f"{k}={v}" for k, v in (labels or {}).items())


def _reach(host: Json) -> str:
    if host.get("reach") == "tunnel":
        return "through its tunnel" if host.get("tunnel_connected") else "through its tunnel, which is not connected"
    address, port = host.get("address") or "", host.get("http_port")
    return f"{address} port {port}" if address and port else address


def _status(host: Json) -> str:
    """E.g. ``4s ago, CPU 20%, load 1.5``."""
    said = host.get("status")
    if not said:
        return ""
    parts = [f"{output.age(host.get('status_at'))} ago"]
    if said.get("cpu_utilization") is not None:
        parts.append(f"CPU {said['cpu_utilization']:.0%}")
    if said.get("ram_used_bytes") is not None:
        parts.append(f"RAM used {output.bytes_text(said['ram_used_bytes'])}")
    if said.get("load") is not None:
        parts.append(f"load {said['load']:.1f}")
    parts.append(f"{len(said.get('engines') or [])} engines")
    return ", ".join(parts)


def _until(at: str | None) -> str:
    return f"until {at[:10]}" if at else ""


def _reserve(host: Json) -> str:
    names = {"ram_bytes": "RAM", "vram_bytes": "of each GPU"}
    return ", ".join(f"{output.bytes_text(size)} {names[k]}" for k, size in (host.get("reserve") or {}).items())


def _gpu(gpu: Json) -> str:
    text = f"{gpu['name']}, {_of(gpu['used_bytes'], gpu['allocatable_bytes'])} claimed, {gpu['uuid']}"
    if gpu.get("foreign_bytes"):
        text = f"{text}, {output.bytes_text(gpu['foreign_bytes'])} used by others"
    text = ", ".join([text, *_measured(gpu.get("status") or {})])
    if not gpu.get("healthy", True):
        text = f"{text}, NOT HEALTHY: {gpu.get('reason')}"
    return f"{text}, CORDONED: {gpu.get('cordon_reason')}" if gpu.get("cordoned") else text


def _measured(status: Json) -> list[str]:
    found = []
    if status.get("utilization") is not None:
        found.append(f"busy {status['utilization']:.0%}")
    if status.get("temperature_c") is not None:
        found.append(f"{status['temperature_c']:.0f} °C")
    if status.get("power_w") is not None:
        found.append(f"{status['power_w']:.0f} W")
    return found
