"""A host in small: the real supervisor and real processes, with a scripted Temporal and control plane."""

import stat
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import cast

import httpx

from fleet.access.sealing import host_sealer
from fleet.engines.adapter import EngineAdapter
from fleet.engines.spec import EngineSpec
from fleet.instances import EngineLaunch, EnginePhase, EngineReport
from fleet.inventory import EngineRef, Gpu
from fleet.placement.request import Placement
from fleet.settings import Settings
from tests.unit.host import fake_llama_server
from tests.unit.host.fake_temporal import FakeTemporal
from tests.unit.host.waiting import eventually
from worker_host.control_plane import ControlPlane, Gone
from worker_host.engine_log import EngineLogs
from worker_host.install import Engines, InstallFailed
from worker_host.records import EngineRecord, Records
from worker_host.runtime.choice import runtimes_of
from worker_host.runtime.process import ProcessRuntime, lives
from worker_host.runtime.protocol import ProcessRef
from worker_host.starting import Starter
from worker_host.supervised import HostParts
from worker_host.supervisor import Supervisor

INSTANCE = "chat/1-abcdef"
SEALER = host_sealer("the host's credential")
TOKEN = b"first token"


@dataclass
class FakeControlPlane:
    """Collects reports; ``gone`` makes it know nobody."""

    reports: list[EngineReport] = field(default_factory=list)
    gone: bool = False

    async def report(self, report: EngineReport) -> None:
        if self.gone:
            raise Gone("no such instance")
        self.reports.append(report)

    def phases(self) -> list[EnginePhase]:
        return [r.phase for r in self.reports]


@dataclass
class FakeEngines:
    """Has the stand-in for ``llama-server``, at once or after an installation."""

    binary: Path
    here: bool = True
    broken: str = ""
    """Why an installation fails."""

    def installed(self, _adapter: EngineAdapter, _version: str) -> Path | None:
        return self.binary if self.here else None

    async def ensure(self, _adapter: EngineAdapter, _version: str) -> Path:
        if self.broken:
            raise InstallFailed(self.broken)
        return self.binary


class World:
    """``restart`` is what a crash and a new process do: the engines and the disk stay, everything else is new."""

    def __init__(
        self, folder: Path, http: httpx.AsyncClient, host_id: str, *, docker: str = "unix:///no/docker/here"
    ) -> None:
        self.folder = folder
        self.host_id = host_id
        self.temporal = FakeTemporal()
        self.control_plane = FakeControlPlane()
        self.engines = FakeEngines(_executable(folder / "llama-server"))
        self.logs = EngineLogs(folder / "logs")
        self.in_flight = 0
        self.settings = Settings(home=folder, host_docker=docker)
        self.gpus: tuple[Gpu, ...] = ()
        self.models = folder / "models"
        self.models.mkdir()
        self._http = http
        self.supervisor = self._new_supervisor()

    @property
    def records(self) -> Records:
        return Records(self.folder / "host")

    def record(self, instance_id: str = INSTANCE) -> EngineRecord | None:
        return next((r for r in self.records.engines() if r.launch.instance_id == instance_id), None)

    async def restart(self, *, resume: bool = True) -> None:
        await self.supervisor.let_go()
        self.supervisor = self._new_supervisor()
        if resume:
            self.supervisor.resume()

    def launch(self, model: str = "fine", fence: int = 1, **changes: object) -> EngineLaunch:
        spec = EngineSpec(engine="llama_cpp", engine_version="", model_path=model, served_name="chat")
        sealed = {"TOKEN": SEALER.seal("a-secret-value")}
        placement = Placement(host_id=self.host_id, model_path=str(self.models / model), env_for_host=sealed)
        return EngineLaunch(
            instance_id=INSTANCE,
            deployment="chat",
            fence=fence,
            spec=spec.model_copy(update=changes),
            placement=placement,
            drain=timedelta(seconds=20),
        )

    async def take(self, model: str = "fine", token: bytes = TOKEN, fence: int = 1, **changes: object) -> None:
        await self.supervisor.take(self.launch(model, fence, **changes), token)

    async def serving(self, model: str = "fine", token: bytes = TOKEN, fence: int = 1, **changes: object) -> ProcessRef:
        """An engine that has become ready."""
        await self.take(model, token, fence, **changes)
        return await self.ready(fence)

    async def ready(self, fence: int = 1) -> ProcessRef:
        def process() -> ProcessRef | None:
            record = self.record()
            known = record is not None and record.launch.fence == fence and record.ready_since is not None
            return cast(ProcessRef, record.process) if record is not None and known else None

        return await eventually(process, what="the engine is ready")

    async def gone(self) -> None:
        """Until the host answers for nothing any more."""
        await eventually(lambda: self.record() is None and not self.supervisor.running(), what="nothing is left")

    def alive(self, process: ProcessRef) -> bool:
        return lives(process)

    def running(self) -> list[tuple[EngineRef, ProcessRef]]:
        return ProcessRuntime(self.host_id).all()

    def starts(self) -> list[int]:
        """Process ids of all engines that were ever started."""
        path = self.models / "starts"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def be_busy(self, *, busy: bool) -> None:
        self.be("busy", busy)

    def be(self, what: str, yes: bool = True) -> None:
        """What the engine does from now on: see ``fake_llama_server``."""
        marker = self.models / what
        marker.touch() if yes else marker.unlink()

    def get_on(self) -> None:
        """The engine's counter moves."""
        with (self.models / "decodes").open("a") as counter:
            counter.write("++")

    def log(self, attempt: int = 1) -> str:
        return self.logs.path(INSTANCE, attempt).read_text()

    def _new_supervisor(self) -> Supervisor:
        runtimes = runtimes_of(self.settings, self.host_id, self.folder / "host")
        starter = Starter(
            runtimes=runtimes,
            engines=cast(Engines, self.engines),
            logs=self.logs,
            sealer=SEALER,
            gpus=lambda: self.gpus,
            cpu_count=2,
        )
        parts = HostParts(
            client=self.temporal.client,
            control_plane=cast(ControlPlane, self.control_plane),
            records=Records(self.folder / "host"),
            runtimes=runtimes,
            starter=starter,
            logs=self.logs,
            sealer=SEALER,
            http=self._http,
            door=lambda: "https://127.0.0.1:7",
            in_flight=lambda _: self.in_flight,
        )
        return Supervisor(parts)


def _executable(path: Path) -> Path:
    source = Path(fake_llama_server.__file__).read_text()
    path.write_text(f"#!{sys.executable} -SE\n{source}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
