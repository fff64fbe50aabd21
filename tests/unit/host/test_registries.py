"""Names of images, and where they are asked for."""

import pytest

from worker_host.runtime.images import PullProgress
from worker_host.runtime.registries import Registries, tagged


@pytest.mark.parametrize(
    ("image", "name", "tag"),
    [
        ("engine", "engine", "latest"),
        ("team/engine:2", "team/engine", "2"),
        ("registry.example:5000/team/engine", "registry.example:5000/team/engine", "latest"),
        ("registry.example:5000/team/engine:2", "registry.example:5000/team/engine", "2"),
        ("registry.example/engine@sha256:ab", "registry.example/engine", "sha256:ab"),
        ("registry.example:5000/engine:2@sha256:ab", "registry.example:5000/engine", "sha256:ab"),
    ],
)
def test_name_and_tag_are_told_apart(image: str, name: str, tag: str) -> None:
    assert tagged(image) == (name, tag)


@pytest.mark.parametrize(
    ("image", "sources"),
    [
        ("engine:1", ["mirror.example/hub/library/engine:1", "engine:1"]),
        ("team/engine:1", ["mirror.example/hub/team/engine:1", "team/engine:1"]),
        ("docker.io/team/engine:1", ["mirror.example/hub/team/engine:1", "docker.io/team/engine:1"]),
        ("localhost/engine", ["localhost/engine"]),
        ("other.example/engine", ["other.example/engine"]),
        ("own.example:5000/a/b@sha256:c", ["10.0.0.1:5000/a/b@sha256:c", "own.example:5000/a/b@sha256:c"]),
    ],
)
def test_mirror_stands_for_its_registry(image: str, sources: list[str]) -> None:
    mirrors = {"docker.io": "mirror.example/hub/", "own.example:5000": "10.0.0.1:5000"}
    assert Registries(mirrors, None).sources(image) == sources


def event(layer: str, status: str, current: int = 0, total: int = 0) -> dict[str, object]:
    detail = {"current": current, "total": total} if total else {}
    return {"id": layer, "status": status, "progressDetail": detail}


def test_progress_is_the_sum_of_all_layers() -> None:
    progress = PullProgress("engine:1")
    seen = []
    for one in (
        {"status": "Pulling from engine", "id": "1"},
        event("a", "Pulling fs layer"),
        event("b", "Pulling fs layer"),
        event("c", "Already exists"),
        event("a", "Downloading", 25 << 20, 100 << 20),
        event("b", "Waiting"),
        event("b", "Downloading", 50 << 20, 100 << 20),
        event("a", "Download complete"),
        event("a", "Extracting", 1, 2),
        event("b", "Download complete"),
        event("a", "Pull complete"),
        event("b", "Pull complete"),
    ):
        progress.take(one)
        seen.append(progress.share)
    assert seen == [None] * 6 + [0.375, 0.75, 0.75, 1.0, 1.0, 1.0]
    assert str(progress) == "pulling engine:1: 3 of 3 layers, 200 of 200 MiB"
