"""What no file that is kept may name: where packages came from, and where somebody happened to work."""

import fnmatch
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# In pieces, so that this file does not contain them.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("anaconda", "org"),
        ("deb", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
    )
]
WORKPLACES = ["/" + "/".join(parts) for parts in (("work", ""), ("root", ""), ("tmp", "bash_jobs"), ("opt", "pypi"))]
FORBIDDEN = re.compile(
    "|".join([*(re.escape(name) for name in REGISTRIES), *(rf"(?<![\w./}}>-]){re.escape(p)}" for p in WORKPLACES)])
)


def kept_files(root: Path) -> Iterator[Path]:
    """Everything that .gitignore does not leave out."""
    ignored = [line.strip("/") for line in (root / ".gitignore").read_text().split() if line[0] != "#"]
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f != ".git" and not _matches(f, ignored)]
        yield from (Path(folder) / f for f in files if not _matches(f, ignored))


def findings(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}: {match[0]}"
        for path in kept_files(root)
        for match in FORBIDDEN.finditer(path.read_bytes().decode(errors="replace"))
    ]


def test_no_file_names_a_registry_or_a_workplace() -> None:
    assert findings(ROOT) == []


def test_the_walk_reaches_all_parts_of_the_repository() -> None:
    found = {path.relative_to(ROOT).parts[0] for path in kept_files(ROOT)}
    assert {"fleet", "tests", "docs", ".ci", "pyproject.toml", "constraints.txt"} <= found
    assert not {".git", ".venv"} & found


@pytest.mark.parametrize("text", [f"see https://{REGISTRIES[0]}/x", f'open("{WORKPLACES[0]}main")'])
def test_what_is_forbidden_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / ".gitignore").write_text("build/\n")
    (tmp_path / "build").mkdir()
    for file in ("a.md", "build/b.md"):
        (tmp_path / file).write_text(text)
    assert [finding.split(":")[0] for finding in findings(tmp_path)] == ["a.md"]


def test_paths_that_only_end_alike_are_fine(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("")
    (tmp_path / "a.md").write_text("docs/work/plan, ${HOME}/root/, https://example.org/work/")
    assert findings(tmp_path) == []


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
