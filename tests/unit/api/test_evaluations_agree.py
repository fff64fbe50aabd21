"""An evaluation against the fleet says what placement would book, whatever engines have said of their memory before."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest
from sqlmodel import func, select
from temporalio.client import Client

from activities.placement import PlacementActivities
from activities.preemption import RoomMaker
from activities.projections import ProjectionActivities
from activities.waiting import WaitingInstances
from api.management.evaluating import Evaluator
from fleet.db.tables import AuditRow, ClaimRow, DidNotFitRow, InstanceRow, MeasuredSizingRow
from fleet.engines.derive import engine_spec
from fleet.engines.spec import EngineSpec
from fleet.host_client import FileFacts
from fleet.hub_facts import HubFacts
from fleet.instances import EngineExit, Instance
from fleet.model_files import ModelFiles
from fleet.placement.request import Placement, PlacementRequest
from fleet.recovery import after_failure
from fleet.rollouts import Template
from fleet.sizing.facts import Lora
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import Sizing
from fleet.specs import DeploymentSpec
from fleet.states import InstanceState
from fleet.timings import Timings
from tests.unit.api.test_evaluations import add_gpu_host, answer
from tests.unit.api.world import World
from tests.unit.sizing.checkpoints import facts_of

MIB, GIB = 1 << 20, 1 << 30
FACTS = facts_of("Qwen/Qwen3-8B")
SPEC: dict[str, Any] = {"model": {"path": "m"}, "engine": "vllm", "max_model_len": 4096, "concurrency": 4}


@pytest.fixture
async def asked(world: World) -> World:
    """A world with one card, whose host has the model."""
    add_gpu_host(world)
    world.files.facts["h1"] = FileFacts(path="/m", exists=True, readable=True, size_bytes=1, model=FACTS)
    world.app.state.evaluator = Evaluator(world.services, HubFacts.of_settings(world.settings), fleet_age_s=0)
    return world


def as_deployed(spec: dict[str, Any]) -> EngineSpec:
    wanted = DeploymentSpec.model_validate(spec)
    template = Template(revision=1, launch=1, spec=wanted, engine="vllm", engine_version="0.32.0")
    return engine_spec("m", template)


async def placed(world: World, instance_id: str, spec: dict[str, Any] = SPEC) -> Placement:
    nobody = cast(Client, None)
    waiting, room = (
        WaitingInstances(world.database, nobody),
        RoomMaker(world.database, nobody, drain=Timings().drain),
    )
    placing = PlacementActivities(world.database, cast(ModelFiles, world.files), world.master, waiting, room)
    request = PlacementRequest(instance_id=instance_id, deployment="m", fence=1, spec=as_deployed(spec))
    found = (await placing.place_instance(request)).placement
    assert found is not None
    return found


async def evaluated(world: World, spec: dict[str, Any] = SPEC) -> Sizing:
    said = await answer(world, spec=spec)
    assert said["compatible"]
    assert (said["engine"], said["engine_version"]) == ("vllm", "0.32.0")
    [view] = said["classes"][:1]
    return Sizing.model_validate(view["fits"][0]["asked"])


def instance(instance_id: str, placement: Placement, **changes: Any) -> Instance:
    made = Instance(instance_id=instance_id, deployment="m", slot=1, revision=1, launch=1, spec=as_deployed(SPEC))
    return made.with_(placement=placement, **{"fence": 1, "projection": 1, "state": InstanceState.READY, **changes})


async def record(world: World, told: Instance) -> None:
    await ProjectionActivities(world.database).record_instance(told)


async def test_what_an_engine_measured_is_told_and_booked_alike(asked: World) -> None:
    before = await evaluated(asked)
    first = await placed(asked, "m/1-a")
    assert (before.measured, first.sizing, first.memory_bytes) == (False, before, before.gpu_bytes)

    measured = Measured(weights_bytes=before.terms["weights"] + 300 * MIB, non_torch_bytes=700 * MIB)
    await record(asked, instance("m/1-a", first, measured=measured))
    after = await evaluated(asked)
    assert after.measured
    assert after.terms["weights"] == measured.weights_bytes
    assert after.gpu_bytes != before.gpu_bytes
    assert (await placed(asked, "m/2-b")).sizing == after


async def test_a_start_that_ran_out_of_memory_is_told_and_booked_alike(asked: World) -> None:
    before = await evaluated(asked)
    first = await placed(asked, "m/1-a")
    starts = instance("m/1-a", first, state=InstanceState.STARTING)
    ended = after_failure(starts, EngineExit(exit_code=1, failure_class="oom_load"), datetime.now(UTC))
    await record(asked, ended.with_(projection=2))
    after = await evaluated(asked)
    assert after.gpu_bytes > before.gpu_bytes
    assert after.terms["headroom"] > 0
    assert (await placed(asked, "m/2-b")).sizing == after


async def test_what_others_measured_changes_nothing(asked: World) -> None:
    before = await evaluated(asked)
    first = await placed(asked, "m/1-a")
    await record(asked, instance("m/1-a", first, measured=Measured(weights_bytes=20 * GIB)))
    eight_bit = {**SPEC, "kv_cache": {"dtype": "fp8"}}
    other = await evaluated(asked, eight_bit)
    assert not other.measured
    assert (await placed(asked, "m/2-b", eight_bit)).sizing == other
    on_paper = {"inventory": {"hosts": [{"name": "a", "gpus": [{"type": "H100", "count": 1}]}]}}
    offline = await answer(asked, spec=SPEC, against=on_paper)
    assert not offline["classes"][0]["fits"][0]["asked"]["measured"]
    assert before.terms["weights"] == offline["classes"][0]["fits"][0]["asked"]["terms"]["weights"]


async def test_adapters_and_draft_models_are_told_and_booked_alike(asked: World) -> None:
    mine = Lora(name="mine", rank=64, target_modules=("q_proj",), elements=1 << 28, bytes=1 << 29)
    facts = asked.files.facts["h1"]
    assert facts is not None
    asked.files.facts["h1"] = facts.model_copy(update={"lora": mine})
    bare = await evaluated(asked)
    for more in (
        {"lora": [{"name": "mine", "path": "mine"}]},
        {"speculative": {"method": "draft_model", "model": "d", "tokens": 3}},
    ):
        spec = {**SPEC, **more}
        told = await evaluated(asked, spec)
        assert told.gpu_bytes > bare.gpu_bytes + 500 * MIB
        assert (await placed(asked, f"m/1-{next(iter(more))}", spec)).sizing == told


async def test_bytes_that_a_person_named_are_told_and_booked_alike(asked: World) -> None:
    spec = {**SPEC, "resources": {"memory_bytes": 3 * GIB, "ram_bytes": 5 * GIB}}
    said = await answer(asked, spec=spec)
    booked = await placed(asked, "m/1-a", spec)
    assert (booked.memory_bytes, booked.ram_bytes) == (3 * GIB, 5 * GIB)
    assert said["max_replicas"]["now"] == min(81_559 * MIB // (3 * GIB), 64 // 5)


async def test_asking_leaves_no_trace(asked: World) -> None:
    await record(asked, instance("m/1-a", await placed(asked, "m/1-a"), measured=Measured(weights_bytes=16 * GIB)))
    kinds = (ClaimRow, InstanceRow, MeasuredSizingRow, DidNotFitRow, AuditRow)

    def rows() -> list[int]:
        return asked.database.read(lambda s: [s.exec(select(func.count()).select_from(k)).one() for k in kinds])

    before = rows()
    await evaluated(asked)
    assert rows() == before
