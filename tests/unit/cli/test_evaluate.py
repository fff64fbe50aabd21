"""``evaluate``: what it asks the API, what it works out by itself, and what it says."""

import json
from pathlib import Path
from typing import Any

import pytest

from fleet.cli.evaluate import model_source
from tests.unit.cli.conftest import Holdfast
from tests.unit.cli.fake_api import FakeApi
from tests.unit.sizing.checkpoints import checkpoint_of, write

FLEET = {"hosts": [{"name": "a", "count": 2, "gpus": [{"type": "H100", "count": 8}]}]}
SMALL = {"hosts": [{"name": "a", "gpus": [{"type": "T4", "count": 1, "used_gib": 14}]}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(checkpoint_of("Qwen/Qwen3-0.6B"), tmp_path_factory.mktemp("qwen"))


def inventory(folder: Path, content: Any) -> str:
    path = folder / "fleet.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_a_model_of_this_machine_on_a_fleet_of_ones_own(holdfast: Holdfast, home: Path, model: Path) -> None:
    fleet = inventory(home, FLEET)
    said = holdfast("evaluate", "--local", "--model", str(model), "--inventory", fleet, "--max-model-len", "4096")
    assert said.code == 0
    assert "Qwen3ForCausalLM" in said.out
    assert "16 × NVIDIA H100 80GB HBM3" in said.out
    assert "1 GPU" in said.out
    assert "1 replica fits now" in said.out


def test_explained_it_says_what_the_memory_is_for_and_the_flags(holdfast: Holdfast, home: Path, model: Path) -> None:
    fleet = inventory(home, FLEET)
    said = holdfast("evaluate", "--local", "--model", str(model), "--inventory", fleet, "--explain")
    assert said.code == 0
    for part in ("weights", "kv_cache", "predicted, ±", "--max-model-len", "longest context"):
        assert part in said.out


def test_what_does_not_fit_ends_with_one_and_says_why(holdfast: Holdfast, home: Path, model: Path) -> None:
    said = holdfast("evaluate", "--local", "--model", str(model), "--inventory", inventory(home, SMALL))
    assert said.code == 1
    assert "no replica fits now: 1 host" in said.out
    assert "compatible  no" in said.out


def test_machines_to_rent_with_their_prices(holdfast: Holdfast, model: Path) -> None:
    said = holdfast("evaluate", "--local", "--model", str(model), "--against", "catalog")
    assert said.code == 0
    assert "cheapest for 1 replica" in said.out
    assert "us-east-1, 2026-07-20" in said.out
    assert "more; --json has all" in said.out


def test_json_is_all_that_is_printed(holdfast: Holdfast, model: Path) -> None:
    said = holdfast("evaluate", "--local", "--model", str(model), "--against", "catalog", "--json")
    assert said.code == 0
    assert said.json["compatible"] is True
    assert isinstance(said.json["classes"][0]["rentals"][0]["price_for_all"]["amount"], str)


def test_the_api_is_asked_with_everything_that_was_given(
    holdfast: Holdfast, api: FakeApi, home: Path, model: Path
) -> None:
    local = holdfast("evaluate", "--local", "--model", str(model), "--inventory", inventory(home, FLEET), "--json")
    api.evaluation = local.json
    (home / "spec.json").write_text('{"labels": {"a": "b"}, "spec": {"concurrency": 2, "engine": "vllm"}}')
    options = ["--model", "hf:Qwen/Qwen3-8B@main", "--replicas", "3", "--gpus", "2", "--kv-cache-dtype", "fp8"]
    options += ["--engine-arg=--seed", "--engine-arg=1", "--set", "placement.multi_host=true"]
    options += ["--file", str(home / "spec.json"), "--max-model-len", "2048"]
    said = holdfast("evaluate", *options)
    assert said.code == 0
    assert api.requests[-1] == (
        "POST",
        "/api/v1/evaluations",
        {
            "spec": {
                "concurrency": 2,
                "engine": "vllm",
                "model": {"source": "huggingface", "repo": "Qwen/Qwen3-8B", "revision": "main"},
                "max_model_len": 2048,
                "engine_args": ["--seed", "1"],
                "placement": {"gpus_per_replica": 2, "multi_host": True},
                "kv_cache": {"dtype": "fp8"},
            },
            "against": "fleet",
            "labels": {"a": "b"},
            "replicas": 3,
        },
    )
    holdfast("evaluate", "--model", "ms:a/b", "--inventory", inventory(home, FLEET))
    assert api.requests[-1][2]["against"] == {"inventory": FLEET}


def test_models_are_named_in_short() -> None:
    assert model_source("hf:a/b", local=False) == {"source": "huggingface", "repo": "a/b"}
    assert model_source("ms:a/b@v1#x.gguf", local=False) == {
        "source": "modelscope",
        "repo": "a/b",
        "revision": "v1",
        "file": "x.gguf",
    }
    assert model_source("m.gguf", local=False) == {"source": "local", "path": "m.gguf"}
    assert model_source("m.gguf", local=True) == {"source": "local", "path": str(Path("m.gguf").resolve())}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a model"),
        (["--local", "--model", "x"], "--local knows no fleet"),
        (["--model", "x", "--inventory", "no-such.json"], "cannot read no-such.json"),
        (["--model", "x", "--inventory", "bad.json"], "hosts.0.gpus.0"),
        (["--model", "x", "--inventory", "bad.json", "--against", "catalog"], "either --against catalog or"),
        (["--local", "--against", "catalog", "--model", "hf:nonsense"], "spec.model"),
        (["--against", "moon", "--model", "x"], "moon"),
    ],
)
def test_wrong_usage_ends_with_two_and_names_it(
    holdfast: Holdfast, tmp_path: Path, arguments: list[str], words: str
) -> None:
    bad = {"hosts": [{"name": "a", "gpus": [{"type": "H1000", "count": 1}]}]}
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    said = holdfast("evaluate", *arguments)
    assert said.code == 2
    assert words in said.err


def test_a_model_that_is_not_there_ends_with_one(holdfast: Holdfast, tmp_path: Path) -> None:
    said = holdfast("evaluate", "--local", "--against", "catalog", "--model", str(tmp_path / "no-such"))
    assert said.code == 1
    assert "no-such" in said.err
    assert "hint" in said.err


def test_what_the_api_refuses_is_told(holdfast: Holdfast, api: FakeApi) -> None:
    api.problem = (503, {"title": "Temporarily unavailable", "detail": "the hub is away", "hint": "try again"})
    said = holdfast("evaluate", "--model", "hf:a/b")
    assert said.code == 1
    assert "the hub is away" in said.err


@pytest.mark.parametrize(("hosts", "words"), [(1, "RAM of 1 host "), (2, "RAM of 2 hosts")])
def test_hosts_whose_ram_would_do_are_counted(
    holdfast: Holdfast, api: FakeApi, home: Path, model: Path, hosts: int, words: str
) -> None:
    fleet = inventory(home, {"hosts": [{"name": "a", "count": hosts, "gpus": [{"type": "H100", "count": 1}]}]})
    api.evaluation = holdfast("evaluate", "--local", "--model", str(model), "--inventory", fleet, "--json").json
    [view] = api.evaluation["classes"]
    view["gpu"] |= {"kind": "cpu", "name": "RAM"}
    said = holdfast("evaluate", "--model", "m")
    assert words in said.out
