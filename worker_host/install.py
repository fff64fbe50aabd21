"""Getting engines onto this host: each in a virtual environment of its own, never in ours."""

import asyncio
import fcntl
import re
import shutil
import subprocess
import sys
from pathlib import Path

from fleet.engines.adapter import EngineAdapter, Install
from fleet.inventory import EngineBuild

_MARKER = ".installed"
_TIMEOUT_S = 1800
_NO_PATHS = ("pypi", "image", "spec")
"""Origins of builds that are no binaries of this host."""


class InstallFailed(Exception):
    """With the tail of what the installer said."""


class Engines:
    """The engines below ``<home>/engines``, and binaries that a person named."""

    def __init__(self, folder: Path, builds: tuple[EngineBuild, ...]) -> None:
        self._folder = folder
        self._own = {(b.engine, b.version): Path(b.origin) for b in builds if b.origin not in _NO_PATHS}
        self._default = {b.engine: b.version for b in builds if b.origin != "image"}

    def installed(self, adapter: EngineAdapter, version: str) -> Path | None:
        """The program, if it is here already; an engine that names its own program always is."""
        version = version or self._default.get(adapter.name, adapter.default_version)
        if own := self._own.get((adapter.name, version)):
            return own
        install = adapter.install(version)
        if install is None:
            return Path(adapter.program)
        environment = self._environment(adapter, version)
        return _binary(environment, install) if (environment / _MARKER).exists() else None

    async def ensure(self, adapter: EngineAdapter, version: str) -> Path:
        """The program, installed if need be. Two at once install once. Raises InstallFailed."""
        found = self.installed(adapter, version)
        if found is not None:
            return found
        version = version or self._default.get(adapter.name, adapter.default_version)
        install = adapter.install(version)
        assert install is not None  # noqa: S101  # else it is always here
        return await asyncio.to_thread(_install, self._environment(adapter, version), install)

    def _environment(self, adapter: EngineAdapter, version: str) -> Path:
        return self._folder / f"{adapter.name}-{version}"


def _install(environment: Path, install: Install) -> Path:
    environment.parent.mkdir(parents=True, exist_ok=True)
    with environment.with_name(environment.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (environment / _MARKER).exists():
            shutil.rmtree(environment, ignore_errors=True)  # half an installation
            _run([sys.executable, "-m", "venv", str(environment)])
            _pip(environment, "install", "--no-deps", install.requirement)
            if install.dependencies:
                _pip(environment, "install", *_needed(environment, install))
            if install.without:  # others may have brought it along
                _pip(environment, "uninstall", "--yes", *install.without)
            for path, text in install.files:
                _write(_site_packages(environment) / path, text)
            _binary(environment, install)
            (environment / _MARKER).touch()
    return _binary(environment, install)


def _pip(environment: Path, *args: str) -> None:
    """With what pip is configured to on this machine: indexes, folders of wheels, certificates."""
    _run([str(environment / "bin" / "python"), "-m", "pip", args[0], "--quiet", *args[1:]])


def _needed(environment: Path, install: Install) -> list[str]:
    """What the installed package requires, as its own Python would read it, less what it can do without."""
    name = install.requirement.split("==", 1)[0]
    said = _run([str(environment / "bin" / "python"), "-c", _REQUIREMENTS, name])
    return [line for line in said.splitlines() if _project(line) not in install.without]


_REQUIREMENTS = """
import sys
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for text in requires(sys.argv[1]) or ():
    wanted = Requirement(text)
    if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
        wanted.marker = None
        print(wanted)
"""


def _project(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else requirement


def _site_packages(environment: Path) -> Path:
    return next(environment.glob("lib/python*/site-packages"))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _binary(environment: Path, install: Install) -> Path:
    found = sorted(environment.glob(install.binary))
    if not found:
        raise InstallFailed(f"{environment} has no {install.binary}")
    return found[0]


def _run(command: list[str]) -> str:
    """What it prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallFailed(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        raise InstallFailed(f"{' '.join(command)}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout
