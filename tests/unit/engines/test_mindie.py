"""MindIE over several hosts: files and variables."""

import pytest

from fleet.engines.adapter import Unstartable
from fleet.engines.mindie import Npu, plan
from fleet.sizing.sizing import Shape
from tests.unit.engines.starts import gang_of, sizing_of, spec_of, start_of

CARDS = (
    (Npu(0, "10.1.0.1"), Npu(1, "10.1.0.2")),
    (Npu(4, "10.1.0.3"), Npu(5, "10.1.0.4")),
)
SIZING = sizing_of(shape=Shape(tensor_parallel=4, hosts=2), utilization=0.75)


def test_every_host_gets_the_same_ranks_and_its_own_address() -> None:
    first, second = (plan(start_of(spec_of(), SIZING, **gang_of(rank)), CARDS, "/r.json") for rank in (0, 1))
    assert first.rank_table == second.rank_table
    assert first.rank_table is not None
    servers = first.rank_table["server_list"]
    assert [s["server_id"] for s in servers] == ["10.0.0.1", "10.0.0.2"]
    assert [d["rank_id"] for s in servers for d in s["device"]] == ["0", "1", "2", "3"]
    assert [d["device_ip"] for s in servers for d in s["device"]] == ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"]
    assert second.env == {
        "NPU_MEMORY_FRACTION": "0.75",
        "RANK_TABLE_FILE": "/r.json",
        "MIES_CONTAINER_IP": "10.0.0.2",
    }
    backend = second.config["BackendConfig"]
    assert backend["npuDeviceIds"] == [[4, 5]]
    assert (backend["multiNodesInferEnabled"], backend["multiNodesInferPort"]) == (True, 9101)


def test_it_is_told_what_was_booked() -> None:
    alone = plan(start_of(spec_of(), SIZING), CARDS[:1], "")
    assert alone.rank_table is None
    assert "RANK_TABLE_FILE" not in alone.env
    deploy, schedule = (alone.config["BackendConfig"][part] for part in ("ModelDeployConfig", "ScheduleConfig"))
    assert deploy["maxSeqLen"] == 32768
    assert (schedule["maxBatchSize"], schedule["maxPrefillTokens"]) == (128, 32768)
    model = deploy["ModelConfig"][0]
    assert (model["modelName"], model["modelWeightPath"], model["tp"], model["worldSize"]) == (
        "chat",
        "/models/m",
        4,
        2,
    )


@pytest.mark.parametrize("cards", [(), CARDS, ((),)])
def test_without_the_cards_of_every_host_there_is_no_plan(cards: tuple[tuple[Npu, ...], ...]) -> None:
    with pytest.raises(Unstartable, match="RoCE"):
        plan(start_of(spec_of(), SIZING), cards, "")


def test_without_a_sizing_there_is_no_plan() -> None:
    with pytest.raises(Unstartable, match="sizing"):
        plan(start_of(spec_of()), CARDS[:1], "")
