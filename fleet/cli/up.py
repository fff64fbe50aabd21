"""``holdfast up``: all of Holdfast as child processes on one machine."""

import asyncio
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from fleet import temporal_server
from fleet.cli import home, ports
from fleet.cli.output import bytes_text, print_error
from fleet.cli.supervisor import ATTACHED, ChildSpec, Supervisor, last_lines
from fleet.errors import HoldfastError, Unavailable

if TYPE_CHECKING:
    from fleet.settings import Settings

T = TypeVar("T")

TEMPORAL_WITHIN_S = 60.0
API_WITHIN_S = 60.0
RELAY_WITHIN_S = 60.0
HOST_WITHIN_S = 60.0
POLL_EVERY_S = 0.1
HOST_STOPS_WITHIN_S = 40.0
"""It drains its engines (30 s) before it ends."""
TOKEN_LIFETIME_S = 600
INTERRUPTED = 130


def run_up(settings: "Settings", *, demo: bool, exit_after: bool) -> int:
    """Until Ctrl-C or SIGTERM (then 0); with ``exit_after`` until all is up and the demo has answered or failed."""
    settings = settings.model_copy(update={"home": settings.home.expanduser().absolute()})
    home.prepare(settings.home)
    with home.only_one(settings.home):
        home.end_leftovers(settings.home, say)
        ports.check(ports.wanted(settings))
        _migrate(settings)
        key = home.make_keys(settings)
        try:
            return asyncio.run(_AllInOne(settings, key).run(demo=demo, exit_after=exit_after))
        finally:
            home.forget_record(settings.home)


def say(line: str) -> None:
    print(line, flush=True)


def _migrate(settings: "Settings") -> None:
    from sqlalchemy.exc import SQLAlchemyError

    from fleet.db.migrate import upgrade

    try:
        upgrade(settings.effective_database_url)
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip()
        raise Unavailable(f"the database: {reason}", hint="check HOLDFAST_DATABASE_URL") from None


class _AllInOne:
    """One run of ``holdfast up``."""

    def __init__(self, settings: "Settings", key: str) -> None:
        self.settings = settings
        self.key = key
        self.url = local_url(settings)
        self.host_name = host_name(settings)
        self.logs = settings.home / "logs"
        self.supervisor: Supervisor
        self._told_to_stop: asyncio.Event

    async def run(self, *, demo: bool, exit_after: bool) -> int:
        self.supervisor = Supervisor(self.logs, say=say, changed=partial(home.write_record, self.settings.home))
        self._told_to_stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        work = asyncio.create_task(self._work(demo=demo))
        try:
            code = await self._first(work)
            if code is None:
                return INTERRUPTED if exit_after else 0
            if not exit_after:
                if code:
                    say("That did not work, but Holdfast keeps running. Ctrl-C stops.")
                await self._first(self.supervisor.broken)
                return 0
            return code
        except HoldfastError as error:
            print_error(error)
            return 1
        finally:
            work.cancel()
            await asyncio.wait([work])
            say("stopping: " + ", ".join(reversed(self.supervisor.children)))
            await self.supervisor.stop_all()
            say("stopped")

    async def _first(self, awaited: "asyncio.Future[T]") -> T | None:
        """What ``awaited`` gives; None when we are told to stop before."""
        stop = asyncio.create_task(self._told_to_stop.wait())
        broken = self.supervisor.broken
        try:
            waited: list[asyncio.Future[Any]] = [awaited, stop, broken]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        if broken.done():
            broken.result()
        return awaited.result() if awaited.done() else None

    def _on_signal(self) -> None:
        if self._told_to_stop.is_set():
            say("killing everything; engines may be left running until the next start")
            self.supervisor.kill_all()
        self._told_to_stop.set()

    async def _work(self, *, demo: bool) -> int:
        """Start everything in order, then the demo; answers the exit code for ``--exit``."""
        settings = self.settings
        say(f"Holdfast in {settings.home}, logs in {self.logs}")
        await self._start_temporal()
        self.supervisor.start(self._child("controller"))
        self.supervisor.start(self._child("api"))
        await self._wait("api", API_WITHIN_S, self._api_answers)
        say(f"  api         {self.url}  (docs: {self.url}/docs)")
        self.supervisor.start(self._child("relay"))
        await self._wait("relay", RELAY_WITHIN_S, self._relay_answers)
        say(f"  relay       {local_relay(settings)}  (for hosts)")
        self.supervisor.start(self._host())
        host = await self._wait("host", HOST_WITHIN_S, self._ready_host)
        say(f"  host        {describe_host(host)}")
        if demo:
            return await self._demo()
        say(f"Ready: try `holdfast status`. Admin key: {settings.home / 'admin_key'}. Ctrl-C stops.")
        return 0

    async def _start_temporal(self) -> None:
        settings = self.settings
        if settings.embedded_temporal:
            command = temporal_server.command_for(settings)
            self.supervisor.start(ChildSpec(name="temporal", command=command, environment=dict(os.environ)))
            await temporal_server.wait_until_serving(
                settings.effective_temporal_address, TEMPORAL_WITHIN_S, settings.temporal_namespace
            )
        where = settings.effective_temporal_address
        say(f"  temporal    {where}  (UI: {settings.effective_temporal_ui_url})")

    def _child(self, name: str) -> ChildSpec:
        # -P: a folder `api` or `fleet` where we happen to be started must not be taken for ours.
        command = [sys.executable, "-P", "-m", "fleet.cli", name]
        return ChildSpec(name=name, command=command, environment=self._environment())

    def _host(self) -> ChildSpec:
        child = self._child("host")
        return ChildSpec(
            name=child.name,
            command=child.command,
            environment={
                **child.environment,
                "HOLDFAST_HOST_STOP_ENGINES_ON_EXIT": "1",
                "HOLDFAST_HOST_NAME": self.host_name,
                # Its identity remembers where the relay was when it joined; the port may have been changed since.
                "HOLDFAST_SERVER": local_relay(self.settings),
            },
            extra_environment=self._join_token,
            stop_within_s=HOST_STOPS_WITHIN_S,
        )

    def _environment(self) -> dict[str, str]:
        """Ours, but on this home and this API, and without what only a person's command line needs."""
        kept = {k: v for k, v in os.environ.items() if k not in ("HOLDFAST_API_KEY", "HOLDFAST_HOST_TOKEN")}
        ours = {"HOLDFAST_HOME": str(self.settings.home), "HOLDFAST_SERVER": self.url}
        return {**kept, **ours, "PYTHONUNBUFFERED": "1"}

    async def _join_token(self) -> Mapping[str, str]:
        """For a host that has no identity yet."""
        if (self.settings.home / "hosts" / self.host_name / "identity.json").exists():
            return {}
        body = {"description": f"holdfast up on {self.host_name}", "ttl_s": TOKEN_LIFETIME_S}
        made = await self._call("POST", "/api/v1/join-tokens", body)
        return {"HOLDFAST_HOST_TOKEN": str(made["token"])}

    async def _api_answers(self) -> Any:
        return await self._call("GET", "/healthz") or True

    async def _relay_answers(self) -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                return (await client.get(f"{local_internal_relay(self.settings)}/healthz")).is_success
        except httpx.HTTPError as error:
            raise Unavailable(f"its internal port: {error or type(error).__name__}") from None

    async def _ready_host(self) -> Any:
        hosts = (await self._call("GET", "/api/v1/hosts"))["items"]
        return next((h for h in hosts if h["name"] == self.host_name and h["state"] == "ready"), None)

    async def _wait(self, child: str, within_s: float, condition: Callable[[], Any]) -> Any:
        """The first true answer of ``condition``; ``Unavailable`` with the log's end after ``within_s``."""
        deadline = time.monotonic() + within_s
        reason = "not ready"
        while time.monotonic() < deadline:
            try:
                if found := await condition():
                    return found
            except Unavailable as error:
                reason = error.detail
            await asyncio.sleep(POLL_EVERY_S)
        log = self.logs / f"{child}.log"
        raise Unavailable(
            f"{child} did not come up within {within_s:g} s ({reason}); end of {log}:\n{last_lines(log)}",
            hint="`holdfast doctor` checks what it needs",
        )

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"authorization": f"Bearer {self.key}"}
        try:
            async with httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False) as client:
                response = await client.request(method, path, json=body)
                response.raise_for_status()
                return response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable(f"{method} {path}: {error or type(error).__name__}") from None

    async def _demo(self) -> int:
        """In a process of its own, which has our terminal, so that it can be given up at any time."""
        launcher = [sys.executable, "-I", "-S", str(ATTACHED), str(os.getpid())]
        command = [sys.executable, "-P", "-m", "fleet.cli", "demo"]
        process = await asyncio.create_subprocess_exec(*launcher, *command, env=self._environment())
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()


def local_url(settings: "Settings") -> str:
    """How this machine reaches its own API, wherever that listens."""
    everywhere = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    address = everywhere.get(settings.bind, settings.bind)
    return f"http://[{address}]:{settings.port}" if ":" in address else f"http://{address}:{settings.port}"


def local_relay(settings: "Settings") -> str:
    """How a host on this machine reaches the relay."""
    from fleet.settings import in_url

    return f"https://{in_url(settings.relay_bind or settings.bind)}:{settings.relay_port}"


def local_internal_relay(settings: "Settings") -> str:
    from fleet.settings import in_url

    return f"http://{in_url(settings.relay_internal_bind)}:{settings.relay_internal_port}"


def host_name(settings: "Settings") -> str:
    """The configured name or the machine's, in the characters that a host's name may have."""
    name = settings.host_name or socket.gethostname()
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).strip("-._")[:63] or "host"


def describe_host(host: Mapping[str, Any]) -> str:
    inventory = host.get("inventory") or {}
    gpus = [gpu["name"] for gpu in host.get("gpus") or []]
    parts = [f"{inventory.get('cpu_count')} CPUs", f"{bytes_text(inventory.get('ram_bytes'))} RAM"]
    return f"{host['name']}: {', '.join([*parts, *gpus])}" + ("" if gpus else ", no GPU")
