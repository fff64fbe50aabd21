"""What a host must remember of its engines and its lease, on disk before it acts on it."""

import base64
import logging
from datetime import datetime, timedelta
from pathlib import Path

from fleet.engines.catalog import ADAPTERS
from fleet.hosts import HostLease
from fleet.instances import EngineExit, EngineLaunch
from fleet.inventory import EngineRef
from fleet.model import Record
from fleet.sizing.measured import Measured
from worker_host.files import write_atomically
from worker_host.runtime.protocol import Handle

log = logging.getLogger("holdfast.host")


class EngineRecord(Record):
    """One engine that this host answers for."""

    launch: EngineLaunch
    token: str | None
    """Task token of ``run_engine``, base64; None once Temporal no longer knows it."""
    heartbeat: timedelta | None = None
    """Temporal gives up what it has not heard of for so long; None: it did not say."""
    process: Handle | None = None
    """The process or container that it runs in."""
    image: str = ""
    """What its container was made from, by digest."""
    port: int | None = None
    attempt: int = 0
    """Of starting a process; names the log file. 0: none was started yet."""
    sequence: int = 0
    """Of reports to the control plane."""
    ready_since: datetime | None = None
    measured: Measured | None = None
    """What it said of its memory when it started."""
    suspect: bool = False
    """It did not answer when it was last looked at."""
    suspended: bool = False
    """We stopped it ourselves because this host was told to end; it is to be started again."""
    ended: EngineExit | None = None
    """How it ended, kept until Temporal has heard it."""

    @property
    def ref(self) -> EngineRef:
        return EngineRef(instance_id=self.launch.instance_id, fence=self.launch.fence)

    def with_(self, **changes: object) -> "EngineRecord":
        return self.model_copy(update=changes)


class LeaseRecord(Record):
    lease: HostLease
    token: str


def pack(token: bytes) -> str:
    return base64.b64encode(token).decode()


def unpack(token: str) -> bytes:
    return base64.b64decode(token)


class Records:
    """Files below ``<home>/hosts/<name>``.

    When the disk is full, engines are looked after from memory. The next host process then does not know them, and
    they are asked for again: better than what an old file says of processes that have gone.
    """

    def __init__(self, folder: Path) -> None:
        self._engines = folder / "engines"
        self._lease = folder / "lease.json"
        self._boot = folder / "boot_id"
        self._engines.mkdir(parents=True, exist_ok=True)

    def begin_boot(self, boot_id: str) -> None:
        """Forget what an earlier boot left: its processes are gone, and its task tokens may be used by the machine that
        this disk is a copy of. What is wanted here is asked for anew."""
        try:
            if self._boot.read_text().strip() == boot_id:
                return
        except OSError:
            pass
        for path in (self._lease, *self._engines.glob("*.json")):
            path.unlink(missing_ok=True)
        try:
            write_atomically(self._boot, boot_id)
        except OSError as error:
            log.error("cannot write %s: %s", self._boot, error)

    def engines(self) -> list[EngineRecord]:
        found = []
        for path in sorted(self._engines.glob("*.json")):
            try:
                record = EngineRecord.model_validate_json(path.read_text())
                if record.launch.spec.engine not in ADAPTERS:
                    raise ValueError(f"this version knows no engine {record.launch.spec.engine!r}")
                found.append(record)
            except (OSError, ValueError) as error:
                # Its engine, if there is one, is stopped as unknown; Temporal asks for it again.
                log.error("cannot read %s: %s", path, error)
                path.unlink(missing_ok=True)
        return found

    def save(self, record: EngineRecord) -> None:
        _write_or_remove(self._path(record.launch.instance_id), record)

    def forget(self, instance_id: str) -> None:
        self._path(instance_id).unlink(missing_ok=True)

    def lease(self) -> LeaseRecord | None:
        try:
            return LeaseRecord.model_validate_json(self._lease.read_text())
        except (OSError, ValueError):
            return None

    def save_lease(self, record: LeaseRecord | None) -> None:
        if record is None:
            self._lease.unlink(missing_ok=True)
        else:
            _write_or_remove(self._lease, record)

    def _path(self, instance_id: str) -> Path:
        return self._engines / f"{instance_id.replace('/', '@')}.json"


def _write_or_remove(path: Path, record: Record) -> None:
    try:
        write_atomically(path, record.model_dump_json())
    except OSError as error:
        log.error("cannot write %s: %s", path, error)
        path.unlink(missing_ok=True)
