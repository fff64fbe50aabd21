"""POST /api/v1/evaluations: where its answer comes from, and what is said of bad questions."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import select

from api.management.evaluating import Evaluator
from fleet.db.tables import AuditRow, GpuRow
from fleet.host_client import FileFacts
from fleet.inventory import AcceleratorKind, EngineBuild, Gpu
from tests.unit.api.test_fuzz import JSON, bodies, check, mutated, scalars
from tests.unit.api.world import World, inventory
from tests.unit.evaluation.hub import FakeHub
from tests.unit.sizing.checkpoints import facts_of

PATH = "/api/v1/evaluations"
REPO = "Qwen/Qwen3-0.6B"
GIB = 1 << 30
CARD = 81_559 << 20
HUB_SPEC: dict[str, Any] = {"model": {"source": "huggingface", "repo": REPO}, "max_model_len": 4096, "concurrency": 4}
MINE = {"inventory": {"hosts": [{"name": "a", "count": 2, "gpus": [{"type": "H100", "count": 8}]}]}}


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    made = FakeHub(REPO)
    yield made
    made.close()


@pytest.fixture
async def asked(world: World, hub: FakeHub) -> AsyncIterator[World]:
    """A world whose hub is at hand."""
    hub.requests, hub.hold = [], None
    world.app.state.evaluator = Evaluator(world.services, hub.facts(deadline_s=0.5), fleet_age_s=0)
    yield world
    await world.app.state.evaluator.aclose()


def add_gpu_host(world: World, name: str = "h1", used: int = 0) -> None:
    card = Gpu(
        uuid=f"GPU-{name}",
        kind=AcceleratorKind.NVIDIA,
        name="NVIDIA H100 80GB HBM3",
        memory_bytes=CARD,
        index=0,
        compute_capability="9.0",
    )
    build = EngineBuild(engine="vllm", version="0.32.0", accelerators=(AcceleratorKind.NVIDIA,))
    said = inventory(hostname=name, gpus=(card,)).model_copy(update={"engines": (build,)})
    world.add_host(
        name,
        credential=f"hf-host-{name}",
        inventory=said.model_dump(mode="json"),
        ram_allocatable=64 * GIB,
        fingerprint=said.fingerprint(),
    )
    world.add(
        GpuRow(
            uuid=card.uuid,
            host_id=name,
            index=0,
            kind="nvidia",
            name=card.name,
            memory_bytes=CARD,
            allocatable=CARD,
            used=used,
            details=card.model_dump(mode="json"),
        )
    )


async def post(world: World, body: Any) -> httpx.Response:
    async with world.client() as client:
        return await client.post(PATH, json=body)


async def answer(world: World, **body: Any) -> dict[str, Any]:
    said = await post(world, {"spec": HUB_SPEC, **body})
    assert said.status_code == 200, said.text
    found: dict[str, Any] = said.json()
    return found


def texts(said: dict[str, Any]) -> str:
    return "\n".join(m["text"] for m in said["messages"])


async def test_a_model_of_a_hub_is_evaluated_on_the_fleet_as_it_is_now(asked: World) -> None:
    add_gpu_host(asked)
    first = await answer(asked)
    assert first["compatible"]
    assert first["against"] == "fleet"
    assert first["engine"] == "vllm"
    assert first["model"]["architecture"] == "Qwen3ForCausalLM"
    before = first["max_replicas"]["now"]
    add_gpu_host(asked, "h2", used=CARD - 2 * GIB)
    second = await answer(asked)
    assert second["max_replicas"]["now"] == before
    assert second["max_replicas"]["if_empty"] == 2 * before


async def test_the_second_question_asks_the_hub_nothing(asked: World, hub: FakeHub) -> None:
    await answer(asked, against="catalog")
    count = len(hub.requests)
    assert count
    await answer(asked, against=MINE)
    assert len(hub.requests) == count


async def test_a_fleet_that_the_request_describes(asked: World) -> None:
    said = await answer(asked, against=MINE, replicas=3)
    assert said["against"] == "inventory"
    assert said["compatible"]
    assert said["classes"][0]["gpus"] == 16


async def test_the_catalog_has_prices_as_decimal_text_with_day_and_region(asked: World) -> None:
    said = await answer(asked, against="catalog")
    price = said["classes"][0]["rentals"][0]["price_per_hour"]
    assert isinstance(price["amount"], str)
    assert {"currency", "region", "date"} <= set(price)


async def test_a_local_model_is_what_its_hosts_say_it_is(asked: World) -> None:
    add_gpu_host(asked, "h1")
    add_gpu_host(asked, "h2")
    has = FileFacts(path="/m", exists=True, readable=True, size_bytes=1, is_folder=True, model=facts_of(REPO))
    asked.files.facts = {"h1": has, "h2": FileFacts(path="/m", exists=False)}
    local = {**HUB_SPEC, "model": {"path": "m"}}
    said = await answer(asked, spec=local)
    assert said["compatible"]
    everywhere = await answer(asked)
    assert 2 * said["max_replicas"]["now"] == everywhere["max_replicas"]["now"]


async def test_hosts_that_disagree_about_a_model_are_told(asked: World) -> None:
    for name in ("h1", "h2", "h3"):
        add_gpu_host(asked, name)
    has = FileFacts(path="/m", exists=True, readable=True, model=facts_of(REPO))
    assert has.model is not None
    other = has.model_copy(update={"model": has.model.model_copy(update={"fingerprint": "f" * 32})})
    asked.files.facts = {"h1": has, "h2": other, "h3": has}
    said = await answer(asked, spec={**HUB_SPEC, "model": {"path": "m"}})
    assert "1 of 3 hosts" in texts(said)


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (FileFacts(path="/m", exists=False), 422, "no host has the model 'm' (asked: h1-name)"),
        (FileFacts(path="/m", exists=True, model_error="it is a picture", model_hint="name a model"), 422, "a picture"),
        (None, 503, "1 of 1 hosts did not answer"),
    ],
)
async def test_a_local_model_that_cannot_be_read(
    asked: World, facts: FileFacts | None, status: int, words: str
) -> None:
    add_gpu_host(asked)
    asked.files.facts = {"h1": facts}
    said = await post(asked, {"spec": {"model": {"path": "m"}}})
    assert said.status_code == status
    assert words in said.json()["detail"]
    assert said.json()["hint"]


async def test_without_hosts_a_local_model_cannot_be_read(asked: World) -> None:
    said = await post(asked, {"spec": {"model": {"path": "m"}}})
    assert said.status_code == 422
    assert said.json()["field"] == "spec.model.path"


async def test_a_model_that_is_on_no_hub_names_the_field(asked: World) -> None:
    said = await post(asked, {"spec": {"model": {"source": "huggingface", "repo": "no/body"}}})
    assert said.status_code == 422
    assert said.json()["field"] == "spec.model.repo"
    assert said.json()["hint"]


async def test_a_hub_that_does_not_answer_is_given_up_with_a_hint(asked: World, hub: FakeHub) -> None:
    async def for_ever() -> None:
        await asyncio.Event().wait()

    hub.hold = for_ever
    said = await post(asked, {"spec": HUB_SPEC})
    assert said.status_code == 503
    assert said.json()["hint"]
    assert said.headers["retry-after"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"against": "moon"}, "against"),
        ({"against": {"inventory": {"hosts": []}}}, "hosts"),
        ({"against": {"inventory": {"hosts": [{"name": "a", "gpus": [{"type": "H1000", "count": 1}]}]}}}, "gpus.0"),
        ({"replicas": 0}, "replicas"),
        ({"endpoint": "http://10.0.0.1"}, "endpoint"),
        ({"spec": {"model": {"source": "huggingface", "repo": "http://10.0.0.1/x"}}}, "spec.model.repo"),
        ({"spec": {"model": {"source": "huggingface", "repo": "a/b", "endpoint": "x"}}}, "spec.model.endpoint"),
    ],
)
async def test_what_is_wrong_is_named(asked: World, hub: FakeHub, change: dict[str, Any], field: str) -> None:
    said = await post(asked, {"spec": HUB_SPEC, **change})
    assert said.status_code == 422
    assert field in said.json()["field"]
    assert hub.requests == []


async def test_questions_leave_no_trace(asked: World) -> None:
    add_gpu_host(asked)
    await answer(asked)
    await asked.services.audit.flush()
    assert asked.database.read(lambda s: s.exec(select(AuditRow)).all()) == []


async def test_the_documentation_has_the_schema_of_an_inventory(asked: World) -> None:
    async with asked.client() as client:
        schema = (await client.get("/openapi.json")).json()
    operation = schema["paths"][PATH]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/Question")
    assert {"DeclaredInventory", "DeclaredHosts", "DeclaredGpus", "Evaluation"} <= set(schema["components"]["schemas"])


VALID: list[dict[str, Any]] = [
    {"spec": {**HUB_SPEC, "engine_args": ["--seed", "1"], "placement": {"multi_host": True}}, "replicas": 2},
    {"spec": {**HUB_SPEC, "engine": "vllm", "kv_cache": {"dtype": "fp8"}}, "against": "catalog", "labels": {"a": "b"}},
    {
        "spec": {**HUB_SPEC, "speculative": {"method": "ngram"}, "lora": [{"name": "a", "path": "/a"}]},
        "against": {
            "inventory": {
                "hosts": [
                    {
                        "name": "a",
                        "count": 2,
                        "ram_gib": 64,
                        "labels": {"zone": "a"},
                        "gpus": [{"type": "L4", "count": 2, "used_gib": 3, "nvlink": True, "memory_gib": 24}],
                        "engines": [{"engine": "vllm", "version": "1"}],
                    }
                ]
            }
        },
    },
    {"spec": {**HUB_SPEC, "engine": "custom", "custom": {"command": ["x", "{{port}}"]}}, "against": MINE},
]


@settings(
    deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(body=st.sampled_from(VALID), part=scalars | bodies, chance=st.randoms(use_true_random=False))
async def test_almost_right_questions_get_clear_answers(
    asked: World, body: dict[str, Any], part: Any, chance: random.Random
) -> None:
    text = json.dumps(mutated(body, part, chance)).encode(errors="surrogatepass")
    async with asked.client() as client:
        said = await client.post(PATH, content=text, headers=JSON)
    check(said)


ARGS = st.sampled_from(
    [
        *("--max-model-len", "--tensor-parallel-size", "-tp", "--gpu-memory-utilization", "--max-num-seqs", "--port"),
        *("--kv-cache-dtype", "--ctx-size", "-c", "-ngl", "--mem-fraction-static", "--speculative-config", "0", "-1"),
        *("8", "1e9", "auto", "32k", "999999999999999999999", "nan", "{", "[]", "--", "-", "=", "--x=1", "0.5", "fp8"),
        *("--max-model-len=0", "--ctx-size=-5", "--kv-offloading-size", "--lora-modules", "--pipeline-parallel-size"),
    ]
)


@settings(
    deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    args=st.lists(ARGS, max_size=6),
    engine=st.sampled_from(["auto", "vllm", "sglang", "llama_cpp"]),
    context=st.none() | st.sampled_from([16, 4096, 100_000_000]),
    concurrency=st.none() | st.sampled_from([1, 1024]),
    gpus=st.none() | st.sampled_from([0, 1, 3, 16, 1024]),
    against=st.sampled_from(["fleet", "catalog", MINE]),
)
async def test_any_arguments_and_extremes_get_an_answer(
    asked: World,
    args: list[str],
    engine: str,
    context: int | None,
    concurrency: int | None,
    gpus: int | None,
    against: Any,
) -> None:
    spec = {**HUB_SPEC, "engine": engine, "engine_args": args, "max_model_len": context, "concurrency": concurrency}
    body = {"spec": {**spec, "placement": {"gpus_per_replica": gpus}}, "against": against}
    said = await post(asked, body)
    assert said.status_code == 200, said.text
