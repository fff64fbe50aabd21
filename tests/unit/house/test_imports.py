"""Who may import whom, as written in pyproject.toml, and that the rules see it when somebody breaks them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ["workflows", "activities", "api", "worker_host", "cloud_providers", "fleet", "deploy"]


def lint(folder: Path) -> "subprocess.CompletedProcess[str]":
    program = "from importlinter.cli import lint_imports_command as run; run()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_everybody_keeps_the_import_rules() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "statement", "rule"),
    [
        ("fleet/specs.py", "import workflows", "fleet knows none of the others"),
        ("fleet/deployments.py", "import fleet.db.claims", "decisions about the fleet are pure"),
        ("workflows/new.py", "import fleet.db.session", "workflows do no I/O"),
        ("workflows/new.py", "import fleet.new", "workflows do no I/O"),
        ("workflows/new.py", "import workflows.controller", "composition root"),
        ("activities/new.py", "import api", "activities know neither"),
        ("activities/engine.py", "import docker", "drag in neither"),
        ("worker_host/new.py", "import sqlmodel", "a host never sees the database"),
        ("worker_host/new.py", "import fleet.new", "a host never sees the database"),
        ("api/gateway/new.py", "import temporalio.client", "the gateway never touches Temporal"),
        ("api/new.py", "import worker_host", "the API knows neither"),
        ("cloud_providers/new.py", "import fleet.db.tables", "clouds know the types"),
    ],
)
def test_broken_rule_is_seen(copied: Path, module: str, statement: str, rule: str) -> None:
    (copied / "fleet" / "new.py").write_text('"""New."""\n\nimport fleet.db.session\n')
    with (copied / module).open("a") as file:
        file.write(f"\n{statement}\n")
    result = lint(copied)
    assert result.returncode == 1, result.stdout + result.stderr
    broken = [line for line in result.stdout.splitlines() if " BROKEN" in line]
    assert [line for line in broken if rule in line], result.stdout


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path
