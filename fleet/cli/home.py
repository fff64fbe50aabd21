"""``HOLDFAST_HOME`` as ``holdfast up`` keeps it: folders, keys, who runs on it."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet.errors import HoldfastError

if TYPE_CHECKING:
    import psutil

    from fleet.cli.supervisor import Supervisor
    from fleet.settings import Settings

LEFTOVERS_END_WITHIN_S = 45.0
"""A host that lost its `up` drains its engines first."""
SAME_PROCESS_S = 2.0
"""How exactly the start of a process is known."""


class HomeUnusable(HoldfastError):
    title = "HOLDFAST_HOME cannot be used"


class AlreadyRunning(HoldfastError):
    title = "Already running"


def prepare(home: Path) -> None:
    """Make the folder (only its owner may enter) and those inside; what exists stays as it is."""
    try:
        if not home.exists():
            home.mkdir(parents=True, mode=0o700)
        for folder in ("hosts", "logs", "models"):
            (home / folder).mkdir(exist_ok=True)
    except OSError as error:
        raise HomeUnusable(
            f"{home}: {error.strerror}", field="HOLDFAST_HOME", hint="choose a folder that you may write to"
        ) from None


def make_keys(settings: "Settings") -> str:
    """The admin key; it and the master key are made the first time."""
    from fleet.access.sealing import read_or_create_secret
    from fleet.access.secrets import new_secret

    if settings.master_key is None:
        read_or_create_secret(settings.home / "master_key", new_secret("master"))
    return read_or_create_secret(settings.home / "admin_key", new_secret("key"))


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the home; raises ``AlreadyRunning`` while another ``up`` holds it."""
    with (home / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = read_record(home).get("pid")
            raise AlreadyRunning(
                f"another `holdfast up` runs on {home}" + (f" (pid {pid})" if pid else ""),
                hint="use that one, end it with Ctrl-C, or set HOLDFAST_HOME to another folder",
            ) from None
        yield


def is_held(home: Path) -> bool:
    """Whether an ``up`` runs on this home."""
    try:
        with (home / "up.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read_record(home: Path) -> dict[str, Any]:
    """What the newest ``up`` wrote about itself; empty if there is nothing to read."""
    try:
        record = json.loads((home / "up.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(home: Path, supervisor: "Supervisor") -> None:
    """``{"pid", "children": {name: {"pid", "started_at"}}}``; readers see the old or the new one, whole."""
    children = {n: {"pid": c.pid, "started_at": c.started_at} for n, c in supervisor.children.items()}
    temporary = home / ".up.json.new"
    temporary.write_text(json.dumps({"pid": os.getpid(), "children": children}))
    temporary.replace(home / "up.json")


def forget_record(home: Path) -> None:
    (home / "up.json").unlink(missing_ok=True)


def end_leftovers(home: Path, say: Callable[[str], None]) -> None:
    """Wait for children of an ``up`` that was killed; those that do not end are killed, too."""
    import psutil

    left = list(_leftovers(home))
    if not left:
        return
    say("waiting for what the last `holdfast up` left behind to end")
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(left, timeout=LEFTOVERS_END_WITHIN_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def _leftovers(home: Path) -> Iterator["psutil.Process"]:
    import psutil

    for child in read_record(home).get("children", {}).values():
        with contextlib.suppress(psutil.Error, TypeError, KeyError):
            process = psutil.Process(child["pid"])
            same = abs(process.create_time() - child["started_at"]) < SAME_PROCESS_S
            if same:
                yield process
