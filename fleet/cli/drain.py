"""``drain``, ``resume`` and ``approve-replacement``."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import connect
from fleet.errors import HoldfastError
from fleet.states import InstanceState

if TYPE_CHECKING:
    from fleet.cli.client import Api

Json = dict[str, Any]

POLL_EVERY_S = 0.3
DEFAULT_TIMEOUT_S = 3600.0

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


class NotDrained(HoldfastError):
    """It took longer than allowed, or somebody let it take work again."""

    title = "It is not drained"


def drain(  # noqa: PLR0917 (options, by name)
    target: Annotated[str, typer.Argument(metavar="HOST_OR_INSTANCE", help="An instance's id has a slash.")],
    evacuate: Annotated[
        bool, typer.Option("--evacuate/--no-evacuate", help="Move the replicas away; without: take no new ones.")
    ] = True,
    deadline: Annotated[
        int | None, typer.Option(help="Seconds; then replicas go even though no replacement is ready.", min=0)
    ] = None,
    reason: Annotated[str, typer.Option(help="For people.")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until nothing runs there any more.")] = False,
    timeout: Annotated[float, typer.Option(help="How long to wait, in seconds.", min=0)] = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Take a host out of service, or replace one instance. Replacements are ready before anything stops."""
    is_instance = "/" in target
    if is_instance and not evacuate:
        raise typer.BadParameter("--no-evacuate is for hosts")
    from fleet.cli.client import path_of

    path = path_of("instances" if is_instance else "hosts", target)
    body: Json = {"deadline_s": deadline, "reason": reason}
    if not is_instance:
        body["evacuate"] = evacuate
    api = connect()
    found = api.post(f"{path}/drain", body)
    if wait and evacuate:
        waiting = _wait_gone if is_instance else _wait_drained
        found = waiting(api, path, target, timeout)
    if as_json:
        output.print_json(found)
    elif is_instance:
        print(f"{target} {'is gone' if wait else 'leaves once its replacement is ready'}")
    else:
        _say(found)


def resume(
    host: Annotated[str, typer.Argument(help="As in `holdfast hosts`.", show_default=False)], as_json: AsJson = False
) -> None:
    """Let a host that was drained take work again."""
    from fleet.cli.client import path_of

    found = connect().post(f"{path_of('hosts', host)}/resume")
    if as_json:
        output.print_json(found)
    else:
        _say(found)


def approve_replacement(
    host: Annotated[str | None, typer.Argument(help="Only this one; without: all that wait.")] = None,
    as_json: AsJson = False,
) -> None:
    """Lost hosts are really gone: place their replicas elsewhere.

    Holdfast asks when so many hosts are unhealthy at once that the network or the control plane is probably at fault.
    """
    from fleet.cli.client import path_of

    if host is None:
        approved = connect().post("/api/v1/hosts/approve-replacement")
    else:
        connect().post(f"{path_of('hosts', host)}/approve-replacement")
        approved = {"hosts": [host]}
    if as_json:
        output.print_json(approved)
        return
    for host_id in approved["hosts"]:
        print(f"{host_id}: its replicas are placed elsewhere")


def _wait_drained(api: "Api", path: str, host: str, timeout_s: float) -> Json:
    """The drained host. Raises ``NotDrained`` when somebody lets it take work again, or it takes too long."""
    begun = False

    def look() -> tuple[Json | None, str]:
        nonlocal begun
        found: Json = api.get(path)
        if found["maintenance"] == "drained":
            return found, ""
        if begun and found["maintenance"] != "draining":
            raise NotDrained(f"{host} was set to {found['maintenance']}", hint=f"see `holdfast hosts {host}`")
        begun = begun or found["maintenance"] == "draining"
        state = "" if found["state"] == "ready" else f"it is {found['state']}; "
        return None, state + (found.get("maintenance_message") or "")

    return _poll(look, host, timeout_s, f"it goes on by itself: see `holdfast hosts {host}`")


def _wait_gone(api: "Api", path: str, instance: str, timeout_s: float) -> Json:
    from fleet.cli.client import ApiProblem

    def look() -> tuple[Json | None, str]:
        try:
            found: Json = api.get(path)
        except ApiProblem as problem:
            if problem.status == 404:
                return {"id": instance, "state": InstanceState.STOPPED.value}, ""
            raise
        return None, f"it is {found['state']}"

    deployment = instance.rpartition("/")[0]
    return _poll(look, instance, timeout_s, f"it waits for its replacement: see `holdfast deployments {deployment}`")


def _poll(look: Callable[[], tuple[Json | None, str]], what: str, timeout_s: float, hint: str) -> Json:
    """The first answer of ``look``, which else says how it stands. An API that is away for a moment is waited for."""
    from fleet.cli.client import ApiProblem, NoAnswer

    deadline = time.monotonic() + timeout_s
    last = ""
    while True:
        try:
            found, now = look()
        except (ApiProblem, NoAnswer) as error:
            if isinstance(error, ApiProblem) and error.status < 500:
                raise
            found, now = None, f"{error.title}: {error.detail}"
        if found is not None:
            return found
        if now != last:
            output.console(stderr=True).print(output.plain(f"{what}: {now}"), soft_wrap=True)
            last = now
        if time.monotonic() >= deadline:
            raise NotDrained(f"{what}, after {timeout_s:g} s: {last}", hint=hint)
        time.sleep(POLL_EVERY_S)


def _say(host: Json) -> None:
    message = host.get("maintenance_message") or ""
    state = "takes work" if host["maintenance"] == "none" else host["maintenance"]
    print(f"{host['id']}: {state}, {message}" if message else f"{host['id']}: {state}")
