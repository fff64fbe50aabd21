"""``doctor``: looks at everything that Holdfast needs, and says what to do about what is missing."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import load_settings
from fleet.errors import HoldfastError

if TYPE_CHECKING:
    from fleet.cli.client import Api
    from fleet.join import Identity
    from fleet.settings import Settings

SCARCE_DISK_BYTES = 10 << 30
"""Less than this holds hardly any model besides the demo's."""
FULL_DISK_BYTES = 1 << 30
SQLITE = "sqlite:///"
TEMPORAL_WITHIN_S = 5.0
NAMED = 5
"""More than this are counted, not listed."""


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    check: str
    level: Level
    message: str
    remedy: str = ""


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False) -> None:
    """Check this installation; ends with 1 if something is broken."""
    findings = list(examine(load_settings()))
    if as_json:
        output.print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            _say(finding)
    raise typer.Exit(int(any(finding.level is Level.FAIL for finding in findings)))


def _say(finding: Finding) -> None:
    line = output.state(f"{finding.level:<4}")
    line.stylize(output.STYLES[finding.level])
    line.append(f"  {finding.check:<10}  ").append_text(output.plain(finding.message))
    out = output.console()
    out.print(line, soft_wrap=True)
    if finding.remedy:
        out.print(output.plain(f"      {'':<10}  → {finding.remedy}", "dim"), soft_wrap=True)


def examine(settings: "Settings") -> Iterator[Finding]:
    """All findings, in the order in which a person would look. Changes nothing."""
    yield _python()
    yield _home(settings)
    yield _disk(settings)
    yield from _ports(settings)
    yield _database(settings)
    yield from _temporal(settings)
    yield from _host_here(settings)
    yield from _server(settings)


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding("python", Level.OK, f"{version} ({sys.executable})")


def _home(settings: "Settings") -> Finding:
    home = settings.home
    if not home.exists():
        return Finding("home", Level.WARN, f"{home} does not exist yet", "`holdfast up` makes it")
    if not (home.is_dir() and os.access(home, os.R_OK | os.W_OK | os.X_OK)):
        remedy = "set HOLDFAST_HOME to a folder of yours"
        return Finding("home", Level.FAIL, f"{home} cannot be written to", remedy)
    if home.stat().st_mode & 0o077:
        return Finding("home", Level.WARN, f"{home} is open to other users", f"chmod 700 {home}")
    return Finding("home", Level.OK, str(home))


def _disk(settings: "Settings") -> Finding:
    folder = next(f for f in (settings.home.absolute(), *settings.home.absolute().parents) if f.exists())
    free = shutil.disk_usage(folder).free
    message = f"{output.bytes_text(free)} free for models and logs"
    remedy = "make room, or move HOLDFAST_HOME to a larger disk"
    if free < FULL_DISK_BYTES:
        return Finding("disk", Level.FAIL, message, remedy)
    if free < SCARCE_DISK_BYTES:
        return Finding("disk", Level.WARN, message, remedy)
    return Finding("disk", Level.OK, message)


def _ports(settings: "Settings") -> Iterator[Finding]:
    """While `up` runs, the ports are its own."""
    from fleet.cli import home, ports

    wanted = ports.wanted(settings)
    numbers = ", ".join(str(port.number) for port in wanted)
    if home.is_held(settings.home):
        pid = home.read_record(settings.home).get("pid")
        yield Finding("ports", Level.OK, f"{numbers} in use by `holdfast up` (pid {pid})")
        return
    try:
        ports.check(wanted)
    except HoldfastError as error:
        yield Finding("ports", Level.WARN, error.detail, f"if that is not Holdfast: {error.hint}")
    else:
        yield Finding("ports", Level.OK, f"{numbers} are free")


def _database(settings: "Settings") -> Finding:
    from sqlalchemy.exc import SQLAlchemyError

    from fleet.db import migrate

    url = settings.effective_database_url
    if url.startswith(SQLITE) and not Path(url.removeprefix(SQLITE)).exists():
        return Finding("database", Level.WARN, "not made yet", "`holdfast up` makes it")
    try:
        found, newest = migrate.current(url), migrate.head()
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip()
        return Finding("database", Level.FAIL, reason, "check HOLDFAST_DATABASE_URL, and that the server runs")
    if found != newest:
        message = f"schema {found or 'none'}, but this version wants {newest}"
        return Finding("database", Level.WARN, message, "start Holdfast of this version: it migrates")
    return Finding("database", Level.OK, f"schema {found}")


def _temporal(settings: "Settings") -> Iterator[Finding]:
    import asyncio

    from fleet.temporal_server import find_binary

    if settings.embedded_temporal:
        yield _try("temporal", find_binary, lambda binary: f"embedded, {binary}")
    yield asyncio.run(_ask_temporal(settings))


async def _ask_temporal(settings: "Settings") -> Finding:
    import asyncio
    from datetime import timedelta

    from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
    from temporalio.service import RPCError

    from fleet.temporal import connect
    from fleet.temporal_server import SEARCH_ATTRIBUTES

    where = f"{settings.effective_temporal_address}, namespace {settings.temporal_namespace}"
    limit = timedelta(seconds=TEMPORAL_WITHIN_S)
    try:
        client = await asyncio.wait_for(connect(settings), TEMPORAL_WITHIN_S)
        request = ListSearchAttributesRequest(namespace=settings.temporal_namespace)
        known = await client.operator_service.list_search_attributes(request, timeout=limit)
    except (RPCError, RuntimeError, OSError) as error:  # RuntimeError: cannot connect
        remedy = "start `holdfast up`" if settings.embedded_temporal else "check the HOLDFAST_TEMPORAL_* settings"
        return Finding("temporal", Level.FAIL, f"{where}: {str(error).split(': tonic')[0] or 'no answer'}", remedy)
    missing = [name for name in SEARCH_ATTRIBUTES if name not in known.custom_attributes]
    if missing:
        message = f"{where} lacks the search attributes {', '.join(missing)}"
        return Finding("temporal", Level.WARN, message, "the controller adds them when it starts")
    return Finding("temporal", Level.OK, where)


def _host_here(settings: "Settings") -> Iterator[Finding]:
    """Each host that this machine has joined as: who it is, and whether it reaches its relay."""
    from fleet.access.authority import expires_at
    from fleet.join import Identity

    for path in sorted(settings.home.glob("hosts/*/identity.json")):
        try:
            identity = Identity.model_validate_json(path.read_text())
            until = expires_at(identity.certificate)
        except (OSError, ValueError):
            remedy = f"restore it, or delete {path.parent} and join with a new token"
            yield Finding("this host", Level.FAIL, f"{path} cannot be read or is damaged", remedy)
            continue
        message = f"{identity.name} is {identity.host_id}, certificate until {until:%Y-%m-%d}"
        yield Finding("this host", Level.OK, message)
        yield _relay_of(settings, identity)


def _relay_of(settings: "Settings", identity: "Identity") -> Finding:
    from fleet.access.authority import NotOurs, pin_of
    from fleet.relay_address import NotTls, RelayAddress, WrongClock, check_certificate

    url = settings.server if settings.server.startswith("https://") else identity.server
    try:
        check_certificate(RelayAddress.parse(url).certificate(), pin_of(identity.ca))
    except WrongClock as error:
        return Finding("relay", Level.FAIL, str(error), "set this machine's clock, e.g. with an NTP service")
    except NotOurs as error:
        message = f"{url} is not the relay that this host joined ({error})"
        return Finding("relay", Level.FAIL, message, "set HOLDFAST_SERVER to its URL, or join anew with a new token")
    except (NotTls, OSError, ValueError) as error:
        remedy = "start `holdfast relay`, or open the way to it: hosts dial this one port"
        return Finding("relay", Level.FAIL, f"{url}: {error or repr(error)}", remedy)
    return Finding("relay", Level.OK, f"{identity.name} reaches {url}")


def _server(settings: "Settings") -> Iterator[Finding]:
    from fleet.cli.client import api_for

    api = api_for(settings)
    try:
        api.get("/healthz")
    except HoldfastError as error:
        yield Finding("api", Level.FAIL, f"{error.title}: {error.detail}", error.hint)
        return
    yield Finding("api", Level.OK, api.url)
    yield _readiness(api)
    yield _try("key", lambda: api.items("/api/v1/api-keys"), lambda _: "the API accepts it")
    yield from _lost(api)
    yield from _hosts(api)


def _readiness(api: "Api") -> Finding:
    try:
        parts = api.get("/readyz")
    except HoldfastError as error:
        return Finding("ready", Level.FAIL, f"{error.title}: {error.detail}", error.hint or "see the API's log")
    if parts.get("temporal") is False:
        remedy = "models serve, but changes wait until Temporal is back"
        return Finding("ready", Level.FAIL, "the API does not reach Temporal", remedy)
    return Finding("ready", Level.OK, "the API reaches the database and Temporal")


def _try(check: str, question: Callable[[], Any], good: Callable[[Any], str]) -> Finding:
    try:
        return Finding(check, Level.OK, good(question()))
    except HoldfastError as error:
        return Finding(check, Level.FAIL, f"{error.title}: {error.detail}", error.hint)


def _lost(api: "Api") -> Iterator[Finding]:
    """Entities that the database knows and Temporal does not."""
    try:
        lost = api.get("/api/v1/system/lost")
    except HoldfastError as error:
        yield Finding("workflows", Level.FAIL, f"{error.title}: {error.detail}", error.hint)
        return
    found = [f"{kind[:-1]} {name}" for kind in ("deployments", "hosts") for name in lost[kind]]
    if not found:
        yield Finding("workflows", Level.OK, "all deployments and hosts have theirs")
        return
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    message = f"nobody looks after {', '.join(found[:NAMED])}{more}: Temporal has lost their workflows"
    yield Finding("workflows", Level.FAIL, message, "`holdfast resync` begins them anew; engines go on serving")


def _hosts(api: "Api") -> Iterator[Finding]:
    try:
        hosts = api.items("/api/v1/hosts")
    except HoldfastError as error:
        yield Finding("hosts", Level.FAIL, f"{error.title}: {error.detail}", error.hint)
        return
    ready = [host for host in hosts if host["state"] == "ready"]
    if not ready:
        remedy = "start one with `holdfast host` (`holdfast join-token create` says how), or use `holdfast up`"
        yield Finding("hosts", Level.FAIL, f"{len(hosts)} known, none ready", remedy)
        return
    for host in hosts:
        if host not in ready:
            message = f"{host['name']} is {host['state']}: {host.get('message') or 'no reason given'}"
            yield Finding("hosts", Level.WARN, message, f"see `holdfast hosts {host['id']}`")
    yield Finding("hosts", Level.OK, f"{len(ready)} ready")
    builds = [e for host in ready for e in (host.get("inventory") or {}).get("engines") or []]
    engines = sorted({e["engine"] for e in builds})
    if engines:
        yield Finding("engines", Level.OK, ", ".join(engines))
    else:
        yield Finding("engines", Level.FAIL, "no host can run any engine", "see the host's log for the reason")
