"""From what one engine said at its start to what the next one like it is booked."""

from datetime import UTC, datetime
from typing import Any

import pytest

from activities.projections import ProjectionActivities
from activities.sizing import Sizer
from fleet.db import sizings
from fleet.db.session import Database
from fleet.engines.spec import EngineSpec
from fleet.instances import EngineExit, Instance, Starved
from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Needs
from fleet.placement.request import ModelCard, Placement
from fleet.placement.view import HostView
from fleet.recovery import after_failure
from fleet.sizing.facts import Lora
from fleet.sizing.known import Known
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import Sizing
from fleet.specs import LoraSpec
from fleet.states import InstanceState
from tests.unit.sizing.checkpoints import facts_of

MIB = 1 << 20
FACTS = facts_of("Qwen/Qwen3-0.6B")
SPEC = EngineSpec(
    engine="vllm", engine_version="0.32.0", model_path="m", served_name="m", max_model_len=4096, concurrency=2
)
HOST = HostView(
    host_id="h1",
    name="h1",
    generation=1,
    labels={},
    ram_free_bytes=64 << 30,
    ram_total_bytes=64 << 30,
    gpus=(),
    engines=(EngineBuild(engine="vllm", version="0.32.0"),),
    replicas_of_deployment=0,
    model=None,
)


async def booked(database: Database) -> Sizing:
    needs: Needs = await Sizer(database).needs(SPEC, FACTS, FACTS.file_bytes, Fleet.of([HOST]))
    sizing = needs.cpu[0].sizing
    assert sizing is not None
    return sizing


def instance(sizing: Sizing | None, **changes: Any) -> Instance:
    card = ModelCard(fingerprint=FACTS.fingerprint)
    placement = Placement(host_id="h1", memory_bytes=1, sizing=sizing, card=card)
    made = Instance(instance_id="m/1-a", deployment="m", slot=1, revision=1, launch=1, spec=SPEC, placement=placement)
    return made.with_(**{"fence": 1, "projection": 1, "state": InstanceState.READY, **changes})


async def record(database: Database, told: Instance) -> None:
    await ProjectionActivities(database).record_instance(told)


async def test_what_an_engine_measured_is_booked_for_the_next_of_its_kind(database: Database) -> None:
    before = await booked(database)
    assert not before.measured
    measured = Measured(weights_bytes=before.terms["weights"] + 100 * MIB)
    await record(database, instance(before, measured=measured))
    after = await booked(database)
    assert after.measured
    assert after.terms["weights"] == measured.weights_bytes
    assert AcceleratorKind.CPU.value in database.read(_known)["vllm", "0.32.0"].measured[0].key.gpu_class


async def test_an_engine_that_ran_out_of_memory_at_its_start_is_given_more(database: Database) -> None:
    before = await booked(database)
    starts = instance(before, state=InstanceState.STARTING)
    ended = after_failure(starts, EngineExit(exit_code=1, failure_class="oom_load"), datetime.now(UTC))
    assert ended.starved == Starved(fence=1, card=ModelCard(fingerprint=FACTS.fingerprint), sizing=before)
    await record(database, ended.with_(projection=2))
    after = await booked(database)
    assert after.ram_bytes > before.ram_bytes
    assert after.terms["headroom"] > 0

    await record(database, instance(after, measured=Measured(weights_bytes=1 << 30), fence=2, projection=3))
    again = await booked(database)
    assert "headroom" not in again.terms, "it has started since"


@pytest.mark.parametrize(
    "exit_",
    [
        EngineExit(exit_code=1, failure_class="bad_flag"),
        EngineExit(exit_code=1, failure_class="oom_load", served=True),
    ],
)
async def test_other_ends_say_nothing_about_room(exit_: EngineExit, database: Database) -> None:
    ended = after_failure(instance(await booked(database)), exit_, datetime.now(UTC))
    assert ended.starved is None


async def test_bytes_that_a_person_named_say_nothing(database: Database) -> None:
    await record(database, instance(None, measured=Measured(weights_bytes=1)))
    assert not database.read(_known)


async def test_adapters_are_booked_by_what_their_files_say(database: Database) -> None:
    spec = SPEC.model_copy(update={"lora": (LoraSpec(name="mine", path="mine"),)})
    mine = Lora(name="mine", rank=64, target_modules=("q_proj",), elements=1 << 24, bytes=1 << 25)
    fleet = Fleet.of([HOST])
    without = await Sizer(database).needs(SPEC, FACTS, FACTS.file_bytes, fleet)
    told = await Sizer(database).needs(spec, FACTS, FACTS.file_bytes, fleet, loras=(mine,))
    sizing = told.cpu[0].sizing
    assert sizing is not None
    assert sizing.terms["lora"] >= 1 << 25
    assert sizing.ram_bytes >= without.cpu[0].ram_bytes + (1 << 25)


def _known(session: Any) -> dict[tuple[str, str], Known]:
    return sizings.known(session, FACTS.fingerprint)
