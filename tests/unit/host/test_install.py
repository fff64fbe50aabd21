"""Getting engines onto a host, from a wheel that is made here."""

import asyncio
import hashlib
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from fleet.engines.adapter import Install
from fleet.engines.custom import Custom
from fleet.engines.llama_cpp import LlamaCpp
from fleet.inventory import EngineBuild
from fleet.specs import CustomEngine
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
    folder = tmp_path_factory.mktemp("wheels")
    return _wheel(folder, "tiny_engine", "nonexistent", files={"tiny_engine/server": b"#!/bin/sh\necho serving\n"})


def _wheel(folder: Path, name: str, *requires: str, files: dict[str, bytes] | None = None) -> Path:
    info = f"{name}-1.0.dist-info"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n{needs}"
    held = {
        **(files or {f"{name}.py": b""}),
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in held.items())
    held[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in held.items():
            archive.writestr(file, data)
    return path


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is run, while it is run: with a pip of our own, because the real one takes seconds."""
    seen: list[list[str]] = []
    run = install._run

    def watched(command: list[str]) -> str:
        seen.append(command)
        if "venv" not in command:
            return run(command)
        said = run([*command, "--without-pip"])
        [packages] = Path(command[-1]).glob("lib/python*/site-packages")
        (packages / "pip.py").write_text(PIP)
        return said

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


@pytest.mark.slow
async def test_engine_gets_what_it_requires_but_for_what_it_can_do_without(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path_factory.mktemp("index")
    needed = ("helper_a>=1", "un.wanted", 'never; python_version < "3"', 'extra_thing; extra == "all"')
    _wheel(wheels, "large_engine", *needed, files={"large_engine/server": b"#!/bin/sh\n"})
    _wheel(wheels, "helper_a", "brought_along")
    _wheel(wheels, "brought_along")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))

    class Large(LlamaCpp):
        name = "large"

        def install(self, version: str) -> Install:
            return Install(
                f"large-engine=={version}",
                "lib/python*/site-packages/large_engine/server",
                dependencies=True,
                without=("un-wanted", "brought-along"),
                files=(("large-1.0.dist-info/METADATA", "Name: large\n"),),
            )

    binary = await Engines(tmp_path, ()).ensure(Large(), "1.0")
    packages = binary.parent.parent
    assert (packages / "helper_a.py").exists()
    assert not (packages / "brought_along.py").exists()
    assert (packages / "large-1.0.dist-info" / "METADATA").read_text() == "Name: large\n"


async def test_engine_that_names_its_own_program_is_always_there(tmp_path: Path) -> None:
    build = EngineBuild(engine="custom", version="", origin="spec")
    adapter = Custom(CustomEngine(command=["/opt/server"]))
    assert Engines(tmp_path, (build,)).installed(adapter, "") == Path("/opt/server")
    assert await Engines(tmp_path, (build,)).ensure(adapter, "") == Path("/opt/server")


def _digest(data: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
