"""Getting engines onto this host: each in a virtual environment of its own, never in ours."""

import asyncio
import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

from fleet.engines.adapter import EngineAdapter
from fleet.inventory import EngineBuild

_MARKER = ".installed"
_TIMEOUT_S = 1800


class InstallFailed(Exception):
    """With the tail of what the installer said."""


class Engines:
    """The engines below ``<home>/engines``, and binaries that a person named."""

    def __init__(self, folder: Path, builds: tuple[EngineBuild, ...]) -> None:
        self._folder = folder
        self._own = {(b.engine, b.version): Path(b.origin) for b in builds if b.origin not in ("pypi", "image")}
        self._default = {b.engine: b.version for b in builds if b.origin != "image"}

    def installed(self, adapter: EngineAdapter, version: str) -> Path | None:
        """The program, if it is here already."""
        version = version or self._default.get(adapter.name, adapter.default_version)
        if own := self._own.get((adapter.name, version)):
            return own
        environment = self._environment(adapter, version)
        return _binary(environment, adapter, version) if (environment / _MARKER).exists() else None

    async def ensure(self, adapter: EngineAdapter, version: str) -> Path:
        """The program, installed if need be. Two at once install once. Raises InstallFailed."""
        found = self.installed(adapter, version)
        if found is not None:
            return found
        version = version or self._default.get(adapter.name, adapter.default_version)
        return await asyncio.to_thread(self._install, adapter, version)

    def _install(self, adapter: EngineAdapter, version: str) -> Path:
        environment = self._environment(adapter, version)
        environment.parent.mkdir(parents=True, exist_ok=True)
        with environment.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (environment / _MARKER).exists():
                shutil.rmtree(environment, ignore_errors=True)  # half an installation
                _run([sys.executable, "-m", "venv", str(environment)])
                pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
                _run([*pip, adapter.install(version).requirement])
                _binary(environment, adapter, version)
                (environment / _MARKER).touch()
        return _binary(environment, adapter, version)

    def _environment(self, adapter: EngineAdapter, version: str) -> Path:
        return self._folder / f"{adapter.name}-{version}"


def _binary(environment: Path, adapter: EngineAdapter, version: str) -> Path:
    found = sorted(environment.glob(adapter.install(version).binary))
    if not found:
        raise InstallFailed(f"{environment} has no {adapter.install(version).binary}")
    return found[0]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallFailed(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        raise InstallFailed(f"{' '.join(command)}: {(done.stdout + done.stderr)[-2000:]}")
