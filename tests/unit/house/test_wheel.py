"""What is installed is what is meant to be: nothing forgotten, nothing else."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
TOP_LEVEL = {"workflows", "activities", "api", "worker_host", "cloud_providers", "fleet", "deploy"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in the wheel, built from a copy so that the checkout stays clean."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in sorted(TOP_LEVEL | {"tests"}):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command: list[str | Path] = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", built, source]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    [path] = built.glob("holdfast-*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


@pytest.mark.slow
def test_wheel_has_the_packages_of_the_house_and_no_other(wheel: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == TOP_LEVEL
    assert len(top) == len(TOP_LEVEL) + 1


@pytest.mark.slow
def test_wheel_has_every_module(wheel: list[str]) -> None:
    modules = {str(p.relative_to(ROOT)) for name in TOP_LEVEL for p in (ROOT / name).rglob("*.py")}
    assert modules == {name for name in wheel if name.endswith(".py")}


@pytest.mark.slow
def test_wheel_has_the_data_that_modules_read(wheel: list[str]) -> None:
    engines = {str(p.relative_to(ROOT)) for p in (ROOT / "fleet" / "engines").glob("*.json")}
    assert engines
    templates = {str(p.relative_to(ROOT)) for p in (ROOT / "deploy").glob("*/holdfast-host*")}
    assert len(templates) >= 2
    assert templates | {"deploy/systemd/install-host.sh"} <= set(wheel)
    assert engines | {"fleet/py.typed", "fleet/db/migrations/script.py.mako"} <= set(wheel)


@pytest.mark.slow
def test_wheel_comes_with_its_licence(wheel: list[str]) -> None:
    assert [name for name in wheel if name.endswith(".dist-info/licenses/LICENSE")]


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_packages_listed_are_the_packages_there_are(project: dict[str, Any]) -> None:
    listed = project["tool"]["setuptools"]["packages"]
    assert len(set(listed)) == len(listed)
    there = {p.parent.relative_to(ROOT) for name in TOP_LEVEL for p in (ROOT / name).rglob("*.py")}
    assert set(listed) == {".".join(folder.parts) for folder in there}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in there)


def test_import_rules_and_type_checks_cover_every_package(project: dict[str, Any]) -> None:
    assert set(project["tool"]["importlinter"]["root_packages"]) == TOP_LEVEL
    assert set(project["tool"]["mypy"]["packages"]) == TOP_LEVEL


def test_every_requirement_is_pinned_once_and_fits(project: dict[str, Any]) -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(versions) == len(pins)
    assert all(pin.url is None and str(pin.specifier).startswith("==") for pin in pins)
    groups = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        if requirement.name != "holdfast":
            pinned = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pinned), f"{requirement} but {pinned}"


def test_image_is_made_of_the_packages_and_what_pip_asks_for() -> None:
    """All else is left out: keys, caches and homes that lie in the checkout."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    taken = {line[1:] for line in lines if line.startswith("!")}
    assert taken == TOP_LEVEL | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in taken)
