"""What engines measured, remembered for the next that are like them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fleet.db import sizings
from fleet.db.session import Database
from fleet.inventory import AcceleratorKind, EngineRef
from fleet.sizing.known import NOTHING_KNOWN, Known, SizingKey, class_text
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import GpuClass

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
KEY = SizingKey(
    fingerprint="f" * 32,
    engine="vllm",
    engine_version="0.11.0",
    gpu_class="nvidia/NVIDIA H100 80GB HBM3/85520809984/9.0",
    batched_tokens=8192,
    sequences=256,
)


def engine(fence: int) -> EngineRef:
    return EngineRef(instance_id="m/1-a", fence=fence)


def measure(database: Database, key: SizingKey = KEY, gib: int = 15, fence: int = 1, minutes: int = 0) -> None:
    at, measured = NOON + timedelta(minutes=minutes), Measured(weights_bytes=gib << 30)
    database.write(lambda s: sizings.note_measured(s, key, measured, engine(fence), at))


def fail(database: Database, booked: int, fence: int, minutes: int = 0) -> None:
    at = NOON + timedelta(minutes=minutes)
    database.write(lambda s: sizings.note_did_not_fit(s, KEY, booked, engine(fence), at))


def known(database: Database, key: SizingKey = KEY) -> Known:
    found = database.read(lambda s: sizings.known(s, key.fingerprint))
    return found.get((key.engine, key.engine_version), NOTHING_KNOWN)


def test_nothing_is_known_of_a_model_that_never_ran(database: Database) -> None:
    assert known(database) == NOTHING_KNOWN


def test_what_was_measured_is_given_back_whole(database: Database) -> None:
    measure(database)
    [found] = known(database).measured
    assert (found.key, found.at, found.instance_id) == (KEY, NOON, "m/1-a")
    assert found.measured == Measured(weights_bytes=15 << 30)


def test_a_later_measurement_takes_the_place_of_the_one_before(database: Database) -> None:
    measure(database)
    measure(database, gib=16, fence=2, minutes=1)
    [found] = known(database).measured
    assert (found.measured.weights_bytes, found.at) == (16 << 30, NOON + timedelta(minutes=1))


def test_telling_it_twice_changes_nothing(database: Database) -> None:
    measure(database)
    measure(database, gib=99, minutes=1)
    fail(database, 10, fence=1)
    fail(database, 99, fence=1, minutes=1)
    found = known(database)
    assert [m.measured.weights_bytes for m in found.measured] == [15 << 30]
    assert [(d.booked_bytes, d.at) for d in found.did_not_fit] == [(10, NOON)]


def test_an_engine_that_says_nothing_is_not_remembered(database: Database) -> None:
    database.write(lambda s: sizings.note_measured(s, KEY, Measured(), engine(1), NOON))
    assert known(database).measured == ()


@pytest.mark.parametrize(
    "change",
    [
        {"gpu_class": "nvidia/L4/1/8.9"},
        {"tensor_parallel": 2},
        {"pipeline_parallel": 2},
        {"batched_tokens": 2048},
        {"sequences": 1},
        {"kv_dtype": "fp8"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_engines_told_differently_are_remembered_apart_latest_first(database: Database, change: dict[str, Any]) -> None:
    other = KEY.model_copy(update=change)
    measure(database)
    measure(database, other, gib=20, minutes=1)
    assert [m.key for m in known(database).measured] == [other, KEY]


@pytest.mark.parametrize("change", [{"fingerprint": "0" * 32}, {"engine": "sglang"}, {"engine_version": "0.12.0"}])
def test_other_models_and_engines_are_not_mixed_up(database: Database, change: dict[str, Any]) -> None:
    measure(database, KEY.model_copy(update=change))
    assert known(database) == NOTHING_KNOWN


def test_the_most_that_was_not_enough_is_kept(database: Database) -> None:
    for fence, booked in enumerate((10, 30, 20)):
        fail(database, booked, fence, minutes=fence)
    [found] = known(database).did_not_fit
    assert (found.booked_bytes, found.at) == (30, NOON + timedelta(minutes=2))


def test_of_too_many_the_oldest_are_forgotten(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizings, "REMEMBERED", 3)
    for n in range(5):
        measure(database, KEY.model_copy(update={"sequences": n}), minutes=n)
    assert [m.key.sequences for m in known(database).measured] == [4, 3, 2]


def test_cards_of_one_class_have_one_text() -> None:
    card = GpuClass(kind=AcceleratorKind.NVIDIA, name="L4", memory_bytes=24 << 30, compute_capability="8.9")
    assert class_text(card) == "nvidia/L4/25769803776/8.9"
    shared = card.model_copy(update={"unified": True})
    assert class_text(shared) != class_text(card)
