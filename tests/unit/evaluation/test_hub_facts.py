"""Facts of models on hubs: read once, shared by all who ask, and never for longer than somebody would wait."""

import asyncio

import pytest

from fleet.hub_facts import HubFacts
from fleet.sizing.files import ReadError, ReadProblem
from fleet.specs import ModelSource
from tests.unit.evaluation.hub import COMMIT, FakeHub
from tests.unit.sizing.checkpoints import facts_of

REPO = "Qwen/Qwen3-0.6B"


@pytest.fixture(scope="module")
def shelf() -> FakeHub:
    return FakeHub(REPO)


@pytest.fixture
def hub(shelf: FakeHub) -> FakeHub:
    shelf.requests, shelf.hold = [], None
    return shelf


def model(revision: str | None = None, repo: str = REPO) -> ModelSource:
    return ModelSource(source="huggingface", repo=repo, revision=revision)


async def test_a_model_is_read_once(hub: FakeHub) -> None:
    facts = hub.facts()
    first = await facts.of(model())
    assert first.fingerprint == facts_of(REPO).fingerprint
    asked = len(hub.requests)
    assert asked
    assert await facts.of(model()) is first
    assert len(hub.requests) == asked


async def test_all_that_ask_at_once_share_one_reading(hub: FakeHub) -> None:
    alone = hub.facts()
    await alone.of(model())
    once = len(hub.requests)
    together = hub.facts()
    found = await asyncio.gather(*(together.of(model()) for _ in range(20)))
    assert len({id(f) for f in found}) == 1
    assert len(hub.requests) == 2 * once


async def test_equal_models_at_other_revisions_are_kept_once(hub: FakeHub) -> None:
    facts = hub.facts()
    assert await facts.of(model()) is await facts.of(model(COMMIT))


async def test_whoever_leaves_takes_the_answer_from_nobody(hub: FakeHub) -> None:
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    hub.hold = wait
    facts = hub.facts()
    leaver, stayer = (asyncio.create_task(facts.of(model())) for _ in range(2))
    while not hub.requests:
        await asyncio.sleep(0)
    leaver.cancel()
    gate.set()
    assert (await stayer).fingerprint
    assert leaver.cancelled() or leaver.cancelling()


async def test_a_hub_that_does_not_answer_is_given_up_in_time(hub: FakeHub) -> None:
    async def for_ever() -> None:
        await asyncio.Event().wait()

    hub.hold = for_ever
    with pytest.raises(ReadError) as caught:
        await hub.facts(deadline_s=0.2).of(model())
    assert caught.value.kind is ReadProblem.UNAVAILABLE
    assert caught.value.hint


async def test_a_failure_is_not_remembered(hub: FakeHub) -> None:
    facts = hub.facts()
    for _ in range(2):
        with pytest.raises(ReadError) as caught:
            await facts.of(model(repo="no/body"))
        assert caught.value.kind is ReadProblem.MISSING
    assert len(hub.requests) == 2


async def test_settings_alone_say_where_hubs_are(hub: FakeHub) -> None:
    facts: HubFacts = hub.facts()
    await facts.of(model("main"))
    assert {url.split("/")[2] for url in hub.requests} == {"hub.test"}
