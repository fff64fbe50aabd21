"""``status``: everything at a glance."""

from typing import Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import connect


def status(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False) -> None:
    """Show the server, its hosts and its deployments."""
    api = connect()
    found: dict[str, Any] = {
        "server": api.url,
        "version": api.get("/version").get("version", ""),
        **_readiness(),
        "hosts": api.items("/api/v1/hosts"),
        "deployments": api.items("/api/v1/deployments"),
    }
    if as_json:
        output.print_json(found)
    else:
        _show(found)


def _readiness() -> dict[str, Any]:
    """Ready or why not; that the server is not ready must not hide the rest."""
    from fleet.cli.client import ApiProblem

    try:
        parts = connect().get("/readyz")
    except ApiProblem as problem:
        return {"ready": False, "reason": problem.detail or problem.title}
    if parts.get("temporal") is False:
        return {"ready": False, "reason": "Temporal does not answer: models serve, but changes wait"}
    return {"ready": True, "reason": ""}


def _show(found: dict[str, Any]) -> None:
    from fleet.cli.deployments import print_deployments
    from fleet.cli.hosts import print_hosts, print_waiting

    readiness = output.state("ready") if found["ready"] else output.state("degraded")
    output.print_fields(
        [
            ("server", found["server"]),
            ("version", found["version"]),
            ("state", readiness),
            ("reason", found["reason"]),
        ]
    )
    print()
    print_waiting(found["hosts"])
    print_hosts(found["hosts"])
    print()
    print_deployments(found["deployments"])
