"""A fleet that somebody describes: what is taken, and what is said of what is not."""

from typing import Any

import pytest
from pydantic import ValidationError

from fleet.evaluation.inventory import DeclaredInventory, hosts_of
from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.placement.view import HostView

GIB = 1 << 30
OFFERED = (
    EngineBuild(engine="vllm", version="1", accelerators=(AcceleratorKind.NVIDIA,)),
    EngineBuild(engine="llama_cpp", version="2"),
)


def views(*hosts: dict[str, Any]) -> tuple[HostView, ...]:
    return hosts_of(DeclaredInventory.model_validate({"hosts": list(hosts)}), OFFERED)


def refusal(host: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        DeclaredInventory.model_validate({"hosts": [host]})
    first = caught.value.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def test_a_known_type_needs_only_its_name_and_a_number() -> None:
    one, two = views({"name": "a", "count": 2, "gpus": [{"type": "h100", "count": 8}]})
    assert (one.name, two.name) == ("a-1", "a-2")
    assert len(one.gpus) == 8
    card = one.gpus[0]
    assert card.gpu_class.name == "NVIDIA H100 80GB HBM3"
    assert (card.total_bytes, card.free_bytes, card.compute_capability) == (81_559 << 20, 81_559 << 20, "9.0")
    assert {distance for _, distance in card.links} == {5}
    assert len({g.uuid for v in (one, two) for g in v.gpus}) == 16


def test_what_runs_there_already_is_not_free() -> None:
    (host,) = views({"name": "a", "gpus": [{"type": "L4", "count": 1, "used_gib": 10}]})
    assert host.gpus[0].free_bytes == (23_034 << 20) - 10 * GIB


def test_cards_without_nvlink_are_as_far_as_numa_nodes() -> None:
    (host,) = views({"name": "a", "gpus": [{"type": "H100", "count": 2, "nvlink": False}, {"type": "L4", "count": 1}]})
    assert [len(g.links) for g in host.gpus] == [1, 1, 0]
    assert host.gpus[0].links[0][1] == 40


def test_an_unknown_type_is_taken_when_it_is_described() -> None:
    described = {"type": "X1", "count": 1, "memory_gib": 64, "vendor": "nvidia", "compute_capability": "9.0"}
    (host,) = views({"name": "a", "gpus": [described]})
    assert host.gpus[0].gpu_class.name == "X1"
    assert host.gpus[0].total_bytes == 64 * GIB


def test_an_unknown_type_without_more_is_refused_with_what_may_be_meant() -> None:
    said = refusal({"name": "a", "gpus": [{"type": "H1000", "count": 1}]})
    assert said.startswith("hosts.0.gpus.0")
    assert "'H1000' is not known" in said
    assert "H100" in said
    assert "add memory_gib, vendor, compute_capability" in said


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ({"gpus": []}, "hosts.0.name: Field required"),
        ({"name": "a", "gpu": []}, "hosts.0.gpu: Extra inputs"),
        ({"name": "a", "gpus": [{"type": "H100"}]}, "hosts.0.gpus.0.count: Field required"),
        ({"name": "a", "gpus": [{"type": "H100", "count": 0}]}, "hosts.0.gpus.0.count"),
        ({"name": "a", "gpus": [{"type": "H100", "count": 1, "used_gib": 81}]}, "more than the card has (79.6 GiB)"),
        ({"name": "a", "gpus": [{"type": "H100", "count": 1, "memory_gib": float("inf")}]}, "hosts.0.gpus.0.memory"),
        ({"name": "a", "ram_gib": -1}, "hosts.0.ram_gib"),
        ({"name": "a", "count": 5000}, "hosts.0.count"),
        ({"name": "a", "gpus": [{"type": " ", "count": 1}]}, "name the type of the cards"),
        ({"name": "a", "count": 2000, "gpus": [{"type": "H100", "count": 16}]}, "more than 16000 cards"),
    ],
)
def test_what_is_wrong_is_named(host: dict[str, Any], said: str) -> None:
    assert said in refusal(host)


def test_two_hosts_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="two hosts are called 'a-1'"):
        views({"name": "a-1"}, {"name": "a", "count": 2})


def test_hosts_have_the_engines_that_they_name_else_all() -> None:
    all_, some, none = views(
        {"name": "a"},
        {"name": "b", "engines": [{"engine": "vllm", "version": "9"}]},
        {"name": "c", "engines": []},
    )
    assert all_.engines == OFFERED
    assert [(e.engine, e.version) for e in some.engines] == [("vllm", "9")]
    assert none.engines == ()


def test_a_fleet_of_a_thousand_hosts_is_taken() -> None:
    assert len(views({"name": "a", "count": 1000, "gpus": [{"type": "H100", "count": 8}]})) == 1000
