"""Would a model run, where, how often, at what price: answers that a person can act on."""

from typing import Any

import pytest

from fleet.catalog.machines import machines
from fleet.evaluation.answer import ClassView, Evaluation
from fleet.evaluation.case import Ground
from fleet.evaluation.evaluate import evaluate
from fleet.evaluation.inventory import DeclaredInventory, every_engine, hosts_of
from fleet.evaluation.question import Question
from fleet.placement.fleet import Fleet
from fleet.sizing.facts import ModelFacts
from tests.unit.sizing.checkpoints import facts_of

H100 = {"type": "H100", "count": 8}
L4 = {"type": "L4", "count": 4}


def fleet_of(*hosts: dict[str, Any]) -> Fleet:
    named = [{"name": f"h{n}", **host} for n, host in enumerate(hosts)]
    return Fleet.of(hosts_of(DeclaredInventory.model_validate({"hosts": named}), every_engine()))


def asked(repo: str, fleet: Fleet | None, *, files: frozenset[str] | None = None, **question: Any) -> Evaluation:
    spec = {"model": {"source": "huggingface", "repo": repo}, **question.pop("spec", {})}
    ground = Ground("inventory", fleet, files=files) if fleet else Ground("catalog", machines=machines())
    return evaluate(Question.model_validate({"spec": spec, **question}), facts_of(repo), ground)


def texts(said: Evaluation) -> str:
    return "\n".join(m.text for m in said.messages)


def on(said: Evaluation, name: str) -> ClassView:
    return next(view for view in said.classes if name in view.gpu.name)


def test_a_model_that_fits_says_where_and_how_often() -> None:
    said = asked("Qwen/Qwen3-8B", fleet_of({"gpus": [H100]}, {"gpus": [L4]}), replicas=2, spec={"max_model_len": 8192})
    assert said.compatible
    assert (said.engine, said.replicas) == ("vllm", 2)
    view = on(said, "H100")
    best = view.fits[0].asked
    assert best is not None
    assert (view.gpus, view.hosts, view.most_gpus_per_host) == (8, 1, 8)
    assert best.context == 8192
    assert 15 << 30 < best.gpu_bytes < 81 << 30
    assert abs(sum(best.terms.values()) - best.gpu_bytes) < 2 << 20
    assert view.fits[0].replicas_now == 8 * (view.gpu.memory_bytes // best.gpu_bytes)
    assert view.replicas_now == max(f.replicas_now for f in view.fits)
    assert said.max_replicas.now == sum(v.replicas_now for v in said.classes)
    assert said.messages[0].level == "ok"
    assert "2 replicas fit now" in said.messages[0].text
    assert said.filters == []


def test_flags_are_those_that_the_engine_would_be_told() -> None:
    said = asked("Qwen/Qwen3-8B", fleet_of({"gpus": [H100]}), spec={"max_model_len": 8192})
    best = on(said, "H100").fits[0].asked
    assert best is not None
    pairs = dict(zip(best.flags, best.flags[1:], strict=False))
    assert pairs["--max-model-len"] == "8192"
    assert "--gpu-memory-utilization" in pairs or "--kv-cache-memory-bytes" in pairs
    assert not {"--port", "--host", "--served-model-name"} & set(best.flags)


def test_too_few_replicas_say_how_many_fit_and_how_many_would_in_an_empty_fleet() -> None:
    fleet = fleet_of({"gpus": [{**H100, "count": 4, "used_gib": 70}, {**H100, "count": 1}]})
    said = asked("Qwen/Qwen3-32B", fleet, replicas=3, spec={"max_model_len": 4096, "concurrency": 1})
    assert not said.compatible
    assert said.max_replicas.now == 1
    assert said.max_replicas.if_empty == 5
    assert "1 of 3 replicas fit now" in texts(said)
    assert "5 replicas would fit if nothing else ran there" in texts(said)
    assert [(f.filter, f.hosts, f.gpus) for f in said.filters] == [("memory", 1, 5)]


def test_a_model_that_is_too_large_names_what_is_missing_and_the_smallest_change() -> None:
    said = asked("Qwen/Qwen3-32B", fleet_of({"gpus": [{**L4, "count": 1}]}))
    assert not said.compatible
    assert "no replica fits now: 1 host" in texts(said)
    fit = on(said, "L4").fits[0]
    assert fit.asked is None
    assert fit.limit
    assert fit.remedy
    assert fit.limit in texts(said)
    assert fit.remedy in texts(said)


@pytest.mark.parametrize(
    ("fleet", "spec", "name", "meaning"),
    [
        ([{"gpus": [H100]}], {"placement": {"host_selector": {"zone": "b"}}}, "labels", "without the labels"),
        ([{"gpus": [H100]}], {"placement": {"gpu_types": ["A100"]}}, "gpu_types", "placement.gpu_types"),
        ([{"gpus": [H100]}], {"placement": {"vendors": ["amd"]}}, "vendors", "placement.vendors"),
        ([{"gpus": [H100]}], {"placement": {"gpu_ids": ["no-such"]}}, "gpu_ids", "placement.gpu_ids"),
        ([{"gpus": [{**H100, "used_gib": 79}]}], {}, "memory", "without enough free GPU memory"),
        ([{"gpus": [H100], "ram_gib": 1}], {}, "ram", "without enough free RAM"),
        ([{"gpus": [H100]}, {"gpus": []}], {"placement": {"host_selector": {"a": "b"}}}, "labels", "2 hosts"),
    ],
)
def test_every_refusal_names_the_filter_and_the_counts(
    fleet: list[dict[str, Any]], spec: dict[str, Any], name: str, meaning: str
) -> None:
    said = asked("Qwen/Qwen3-8B", fleet_of(*fleet), spec={"engine": "vllm", **spec})
    assert not said.compatible
    assert said.max_replicas.now == 0
    counts = {f.filter: f.hosts for f in said.filters}
    assert counts.get(name), said.filters
    assert sum(counts.values()) == len(fleet)
    assert meaning in texts(said)
    assert f"{counts[name]} host" in texts(said)


def test_hosts_without_the_model_do_not_count() -> None:
    fleet = fleet_of({"gpus": [H100]}, {"gpus": [H100]})
    said = asked("Qwen/Qwen3-8B", fleet, files=frozenset({"h1"}), spec={"max_model_len": 4096, "concurrency": 1})
    everywhere = asked("Qwen/Qwen3-8B", fleet, spec={"max_model_len": 4096, "concurrency": 1})
    assert 2 * (said.max_replicas.now or 0) == everywhere.max_replicas.now
    assert not asked("Qwen/Qwen3-8B", fleet, files=frozenset()).compatible


def test_no_engine_says_why_each_cannot() -> None:
    fleet = fleet_of({"gpus": [H100], "engines": [{"engine": "llama_cpp"}]})
    said = asked("Qwen/Qwen3-8B", fleet)
    assert not said.compatible
    assert said.engine == ""
    reasons = {v.engine: v.reasons for v in said.engines}
    assert {"vllm", "sglang", "llama_cpp"} <= set(reasons)
    assert all(reasons.values())
    assert "no engine can run it" in said.messages[0].text
    assert "no host offers vllm" in said.messages[0].text


def test_arguments_that_contradict_the_spec_are_told() -> None:
    args = ["--max-model-len", "2048"]
    said = asked("Qwen/Qwen3-8B", fleet_of({"gpus": [H100]}), spec={"engine_args": args, "max_model_len": 8192})
    assert said.compatible
    assert any("spec.engine_args.0" in text and "--max-model-len" in text for text in said.conflicts)
    assert said.conflicts[0] in texts(said)
    asked_for = on(said, "H100").fits[0].asked
    assert asked_for is not None
    assert asked_for.context == 2048


def test_arguments_that_cannot_be_given_make_it_incompatible() -> None:
    said = asked("Qwen/Qwen3-8B", fleet_of({"gpus": [H100]}), spec={"engine_args": ["--port", "1"]})
    assert not said.compatible
    assert "'--port' cannot be given" in texts(said)


def test_a_number_of_bytes_goes_before_any_prediction() -> None:
    fleet = fleet_of({"gpus": [H100]})
    said = asked("Qwen/Qwen3-8B", fleet, spec={"resources": {"memory_bytes": 40 << 30}})
    assert said.max_replicas.now == 8  # one on each card of 79.6 GiB


def test_replicas_over_several_hosts_are_counted_where_they_are_allowed() -> None:
    hosts = [{"gpus": [H100]} for _ in range(4)]
    alone = asked("meta-llama/Llama-3.1-405B", fleet_of(*hosts))
    assert not alone.compatible
    said = asked("meta-llama/Llama-3.1-405B", fleet_of(*hosts), spec={"placement": {"multi_host": True}})
    assert said.compatible
    fit = next(f for f in on(said, "H100").fits if f.asked)
    assert fit.hosts >= 2
    members_on_each_host = 8 // (fit.gpus // fit.hosts)
    assert said.max_replicas.now == 4 * members_on_each_host // fit.hosts


def test_an_empty_fleet_says_so() -> None:
    ground = Ground("fleet", Fleet.of(()))
    question = Question.model_validate({"spec": {"model": {"source": "huggingface", "repo": "Qwen/Qwen3-8B"}}})
    said = evaluate(question, facts_of("Qwen/Qwen3-8B"), ground)
    assert not said.compatible
    assert "no host is ready" in texts(said)


def test_the_catalog_names_the_cheapest_machine_with_day_and_region() -> None:
    said = asked("Qwen/Qwen3-8B", None, spec={"max_model_len": 8192, "concurrency": 4})
    assert said.compatible
    assert said.max_replicas.now is None
    prices = [
        float(v.rentals[0].price_for_all.amount) for v in said.classes if v.rentals and v.rentals[0].price_for_all
    ]
    assert prices == sorted(prices)
    first = said.classes[0].rentals[0]
    assert first.price_for_all is not None
    assert first.price_for_all.amount in said.messages[0].text
    assert first.price_for_all.date in said.messages[0].text
    assert first.instance_type in said.messages[0].text


def test_the_catalog_leaves_out_machines_that_are_too_small() -> None:
    said = asked("Qwen/Qwen3-32B", None, spec={"engine": "vllm", "max_model_len": 32768})
    for view in said.classes:
        for rental in view.rentals:
            assert rental.replicas_per_machine >= 1
    assert on(said, "Tesla T4").rentals == [] or on(said, "Tesla T4").fits[0].gpus > 1
    assert all(v.fits[0].limit for v in said.classes if v.fits and not v.rentals and not v.fits[0].asked)


def test_nothing_of_the_fleet_changes() -> None:
    fleet = fleet_of({"gpus": [H100]}, {"gpus": [L4]})
    before = [fleet.view(name) for name in ("h0", "h1")]
    asked("Qwen/Qwen3-8B", fleet, replicas=900)
    asked("Qwen/Qwen3-32B", fleet, replicas=9)
    assert [fleet.view(name) for name in ("h0", "h1")] == before


@pytest.mark.parametrize("repo", ["BAAI/bge-m3", "openai/whisper-large-v3", "Qwen/Qwen2.5-VL-7B-Instruct"])
def test_models_of_other_kinds_are_evaluated_too(repo: str) -> None:
    said = asked(repo, fleet_of({"gpus": [H100]}))
    assert said.compatible, texts(said)
    assert said.model.parameters > 0


def test_a_model_whose_tensors_are_unknown_is_sized_by_its_files() -> None:
    facts: ModelFacts = facts_of("Qwen/Qwen3-8B").model_copy(update={"weights": (), "format": "pytorch"})
    question = Question.model_validate({"spec": {"model": {"source": "huggingface", "repo": "a/b"}}})
    said = evaluate(question, facts, Ground("inventory", fleet_of({"gpus": [H100]})))
    assert said.compatible, texts(said)
    assert said.model.parameters == 0
