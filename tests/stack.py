"""A whole Holdfast of real processes on free ports and a folder of its own, for tests."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
from openai import OpenAIError

from fleet.access.keys import admin_key
from fleet.settings import Settings
from fleet.temporal_server import command_for

T = TypeVar("T")
ROOT = Path(__file__).parent.parent


def free_ports(count: int) -> list[int]:
    """Different ports, all free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def eventually(check: Callable[[], T], *, within: float = 60.0, what: str = "", every: float = 0.05) -> T:
    """The first true answer of ``check``; its last answer or error is in the message when time is up."""
    deadline = time.monotonic() + within
    last: object = None
    while time.monotonic() < deadline:
        try:
            if answer := check():
                return answer
            last = answer
        except (httpx.HTTPError, OpenAIError, AssertionError, KeyError, OSError) as error:
            last = error
        time.sleep(every)
    raise AssertionError(f"{what or check} not within {within} s; last: {last!r}")


def crowded() -> float:
    """How many times longer than on an idle machine things may take: this one may have more to do than cores."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Process:
    """One of our processes, restartable, its output in a file."""

    def __init__(self, name: str, argv: list[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._argv = argv
        self._env = dict(env)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._argv, env=self._env, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=ROOT
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """As ``kill -9``."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def ensure(self) -> None:
        if self._process is None or self._process.poll() is not None:
            self.start()

    def stop(self, within: float = 20.0) -> int:
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop within {within} s:\n{self.log()}") from None

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-6000:] if self._log.exists() else ""


class Stack:
    """Temporal, controller, API, relay and any number of hosts. ``start`` returns when API and relay are ready."""

    command_line = "fleet.cli"
    """The module that is ``holdfast``."""

    def __init__(
        self, folder: Path, *, engines: Path, database_url: str = "", env: Mapping[str, str] | None = None
    ) -> None:
        """``env``: more settings, e.g. ``HOLDFAST_TEMPORAL_ADDRESS`` of a server that is not ours."""
        self.home = folder / "home"
        (self.home / "models").mkdir(parents=True)
        (self.home / "engines").symlink_to(engines)
        ports = ("port", "temporal_port", "temporal_ui_port", "relay_port", "relay_internal_port")
        ours: dict[str, Any] = dict(zip(ports, free_ports(len(ports)), strict=True))
        more = {
            name.removeprefix("HOLDFAST_").lower(): json.loads(value) if value.startswith("{") else value
            for name, value in (env or {}).items()
        }
        self.settings = Settings(home=self.home, database_url=database_url, **ours | more)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")} | {
            "HOLDFAST_HOME": str(self.home),
            **{f"HOLDFAST_{name.upper()}": str(number) for name, number in ours.items()},
            "HOLDFAST_DATABASE_URL": database_url,
            **(env or {}),
        }
        self._logs = folder / "logs"
        self.temporal = Process("temporal", command_for(self.settings), self.env, self._logs / "temporal.log")
        self.controller = self._ours("controller")
        self.api = self._ours("api")
        self.relay = self._ours("relay")
        self.hosts: dict[str, Process] = {}
        self._more: list[Process] = []
        self.key = admin_key(self.settings)
        self.url = f"http://{self.settings.bind}:{self.settings.port}"
        self.http = httpx.Client(
            base_url=f"{self.url}/api/v1",
            headers={"authorization": f"Bearer {self.key}"},
            timeout=30,
            trust_env=False,
        )

    def _ours(self, command: str, name: str = "", *, prefix: Sequence[str] = (), **env: str) -> Process:
        argv = [*prefix, sys.executable, "-m", self.command_line, command]
        log = self._logs / f"{name or command}.log"
        return Process(name or command, argv, {**self.env, **env}, log)

    def start(self) -> None:
        if self.settings.embedded_temporal:
            self.temporal.start()
        self.controller.start()
        self.api.start()
        self.relay.start()
        try:
            eventually(self._ready, within=60, what="API, relay and Temporal ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def _ready(self) -> bool:
        relay = httpx.get(f"{self.settings.relay_for_gateways}/healthz", trust_env=False)
        return relay.is_success and httpx.get(f"{self.url}/readyz", trust_env=False).json()["status"] == "ok"

    def revive(self) -> None:
        """Start what does not run."""
        for process in self._processes():
            process.ensure()
        eventually(self._ready, within=60, what="API, relay and Temporal ready")

    def add_host(self, name: str, *, prefix: Sequence[str] = (), **env: str) -> Process:
        """Join and start a host; returns when it is ready. ``prefix``: a command that executes it, e.g. elsewhere."""
        token = self.ok(self.http.post("/join-tokens", json={"description": name}))["token"]
        relay = {"HOLDFAST_SERVER": self.settings.relay_for_hosts}
        env = {"HOLDFAST_HOST_NAME": name, "HOLDFAST_HOST_TOKEN": token, **relay, **env}
        host = self._ours("host", f"host-{name}", prefix=prefix, **env)
        self.hosts[name] = host
        host.start()
        try:
            eventually(lambda: (h := self.host(name)) and h["state"] == "ready", within=30, what=f"host {name} ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None
        return host

    def start_more_apis(self, count: int) -> list[tuple[Process, str]]:
        """More API processes, with their URLs; returns when all are ready. They end with the stack."""
        more = []
        for port in free_ports(count):
            process = self._ours("api", f"api-{port}", HOLDFAST_PORT=str(port))
            process.start()
            more.append((process, f"http://{self.settings.bind}:{port}"))
        self._more += [process for process, _ in more]
        for _, url in more:
            eventually(lambda u=url: httpx.get(f"{u}/readyz", trust_env=False).is_success, what=url)  # type: ignore[misc]
        return more

    def host(self, name: str) -> dict[str, Any]:
        """Empty while it has not joined."""
        return next((h for h in self.ok(self.http.get("/hosts"))["items"] if h["name"] == name), {})

    @staticmethod
    def ok(answer: httpx.Response) -> Any:
        assert answer.is_success, f"{answer.request.method} {answer.url}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def deploy(self, name: str, model: str, **spec: Any) -> dict[str, Any]:
        defaults = {
            "model": {"path": model},
            "max_model_len": 512,
            "concurrency": 2,
            "resources": {"cpu_threads": 1},
        }
        return self.ok(self.http.post("/deployments", json={"name": name, "spec": defaults | spec}))

    def deployment(self, name: str) -> dict[str, Any]:
        return self.ok(self.http.get(f"/deployments/{name}"))

    def instances(self, deployment: str | None = None) -> list[dict[str, Any]]:
        params = {"deployment": deployment} if deployment else {}
        return self.ok(self.http.get("/instances", params=params))["items"]

    def until_ready(self, name: str, replicas: int = 1, within: float = 60) -> dict[str, Any]:
        def ready() -> dict[str, Any] | None:
            d = self.deployment(name)
            settled = d["status"]["phase"] == "ready" and d["status"]["ready_replicas"] == replicas
            return d if settled and len(self.instances(name)) == replicas else None

        try:
            return eventually(ready, within=within, what=f"{name} ready with {replicas}")
        except AssertionError as error:
            state = json.dumps([self.deployment(name), self.instances(name)], indent=1)
            raise AssertionError(f"{error}\n{state}\n{self.logs()}") from None

    def until_gone(self, name: str, within: float = 60) -> None:
        eventually(
            lambda: self.http.get(f"/deployments/{name}").status_code == 404,
            within=within,
            what=f"{name} gone",
        )

    def delete_everything(self) -> None:
        names = [d["name"] for d in self.ok(self.http.get("/deployments"))["items"]]
        for name in names:
            self.http.delete(f"/deployments/{name}")
        for name in names:
            self.until_gone(name)

    def engine_pids(self) -> dict[int, str]:
        """Engine processes of this stack: pid → instance id."""
        found = {}
        for process in psutil.process_iter():
            try:
                env = process.environ()
                if process.status() == psutil.STATUS_ZOMBIE or "HOLDFAST_ENGINE_INSTANCE" not in env:
                    continue
                if env["HOLDFAST_ENGINE_HOST"] in self._host_ids():
                    found[process.pid] = env["HOLDFAST_ENGINE_INSTANCE"]
            except (psutil.Error, OSError):
                continue
        return found

    def _host_ids(self) -> set[str]:
        files = self.home.glob("hosts/*/identity.json")
        return {json.loads(f.read_text())["host_id"] for f in files}

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.log()}" for p in self._processes())

    def _processes(self) -> list[Process]:
        return [*self.hosts.values(), self.relay, self.api, self.controller, self.temporal]

    def stop(self) -> None:
        """Everything, engines too."""
        self.http.close()
        for process in [*self._processes(), *self._more]:
            process.kill()
        for pid in self.engine_pids():
            try:
                psutil.Process(pid).kill()
            except psutil.NoSuchProcess:
                continue
