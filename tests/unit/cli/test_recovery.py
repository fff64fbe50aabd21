"""``retry`` and ``gpus``: what a person does when engines fail."""

import pytest

from tests.unit.cli.conftest import Holdfast
from tests.unit.cli.fake_api import FakeApi, Json, instance


def gpu(**changes: object) -> Json:
    return {
        "uuid": "GPU-1",
        "host_id": "host-1",
        "index": 0,
        "name": "H200",
        "kind": "nvidia",
        "memory_bytes": 141 << 30,
        "allocatable_bytes": 140 << 30,
        "used_bytes": 1 << 30,
        "healthy": True,
        "reason": "",
        "cordoned": False,
        "cordon_reason": "",
        "faults": [],
        **changes,
    }


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("smollm2/1-3f2a9c01", "/api/v1/instances/smollm2/1-3f2a9c01/approve-retry"),
        ("smollm2", "/api/v1/deployments/smollm2/approve-retry"),
    ],
)
def test_retry_means_an_instance_or_all_failed_ones_of_a_deployment(
    holdfast: Holdfast, api: FakeApi, name: str, path: str
) -> None:
    api.instances = [instance()]
    seen = holdfast("retry", name)
    assert (seen.code, seen.out) == (0, "smollm2/1-3f2a9c01 is tried again\n")
    assert api.requests == [("POST", path, None)]
    assert holdfast("retry", name, "--json").json == {"instances": ["smollm2/1-3f2a9c01"]}


def test_retry_of_what_has_not_failed_says_so(holdfast: Holdfast, api: FakeApi) -> None:
    api.problem = 409, {"title": "Conflict", "detail": "smollm2/1-a is ready, not failed", "hint": "wait"}
    seen = holdfast("retry", "smollm2/1-a")
    assert (seen.code, "not failed" in seen.err, "wait" in seen.err) == (1, True, True)


def test_gpus_are_listed_with_their_faults_and_why_they_take_nothing(holdfast: Holdfast, api: FakeApi) -> None:
    fault = {"instance_id": "m/1-a", "fence": 1, "reason": "Xid 79", "at": "2026-11-20T10:00:00Z"}
    api.gpus = [
        gpu(),
        gpu(uuid="GPU-2", cordoned=True, cordon_reason="Xid 79", faults=[fault, fault]),
        gpu(uuid="GPU-3", healthy=False, reason="too hot"),
    ]
    seen = holdfast("gpus")
    states = [line.split()[3] for line in seen.out.splitlines()]
    assert states == ["STATE", "ready", "cordoned", "failed"]
    assert "1.0 GiB of 140.0 GiB" in seen.out
    assert seen.out.splitlines()[2].split()[-3:] == ["2", "Xid", "79"]
    assert "too hot" in seen.out
    assert holdfast("gpus", "--json").json == api.gpus


def test_fleet_without_gpus_says_so(holdfast: Holdfast) -> None:
    assert holdfast("gpus").out == "no GPUs\n"


def test_gpu_is_cordoned_with_a_reason_and_uncordoned(holdfast: Holdfast, api: FakeApi) -> None:
    api.gpus = [gpu()]
    assert holdfast("gpus", "--cordon", "GPU-1", "--reason", "to be replaced").out == "GPU-1 is cordoned\n"
    assert holdfast("gpus", "--uncordon", "GPU-1").out == "GPU-1 takes new replicas again\n"
    assert holdfast("gpus", "--uncordon", "GPU-1", "--json").json == gpu()
    assert api.requests == [
        ("POST", "/api/v1/gpus/GPU-1/cordon", {"reason": "to be replaced"}),
        *[("POST", "/api/v1/gpus/GPU-1/uncordon", None)] * 2,
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cordon", "GPU-1"),
        ("--reason", "x"),
        ("--uncordon", "GPU-1", "--reason", "x"),
        ("--cordon", "GPU-1", "--reason", "x", "--uncordon", "GPU-1"),
    ],
)
def test_half_a_wish_is_wrong_usage(holdfast: Holdfast, api: FakeApi, arguments: tuple[str, ...]) -> None:
    assert holdfast("gpus", *arguments).code == 2
    assert api.requests == []
