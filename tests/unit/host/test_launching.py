"""What an engine is told of its host."""

import socket
from datetime import timedelta
from pathlib import Path

import pytest

from fleet.engines.adapter import Start
from fleet.engines.failures import classify
from fleet.engines.llama_cpp import LlamaCpp
from fleet.engines.spec import EngineSpec
from fleet.engines.vllm import Vllm
from fleet.instances import EngineLaunch
from fleet.inventory import AcceleratorKind, Gpu
from fleet.placement.request import Member, ModelCard, Placement
from fleet.sizing.sizing import Sizing
from fleet.specs import LoraSpec, SpeculativeSpec
from worker_host.launching import extra_files, program_of, start_of
from worker_host.runtime.protocol import LOOPBACK, CannotStart

SIZING = Sizing(gpu_bytes=5, ram_bytes=6, context=7, sequences=8, batched_tokens=9, kv_bytes=10, concurrency=1)
SPEC = EngineSpec(engine="vllm", engine_version="", model_path="m", served_name="chat")
CARDS = tuple(
    Gpu(uuid=f"GPU-{n}", kind=AcceleratorKind.NVIDIA, name="X", memory_bytes=100 - n, index=n) for n in range(2)
)


def launch_of(rank: int = 0, spec: EngineSpec = SPEC, **changes: object) -> EngineLaunch:
    placement = Placement(
        host_id="h0",
        gpu_uuids=("GPU-0", "GPU-1"),
        memory_bytes=50,
        model_path="/models/m",
        sizing=SIZING,
        card=ModelCard(model_type="qwen3"),
    ).model_copy(update=changes)
    return EngineLaunch(
        instance_id="chat/0-a",
        deployment="chat",
        fence=1,
        spec=spec,
        placement=placement,
        drain=timedelta(seconds=1),
        rank=rank,
    )


def start(launch: EngineLaunch, models: Path = Path("/models")) -> Start:
    return start_of(launch, binary=Path("/e/vllm"), address=LOOPBACK, gpus=CARDS, cpu_count=4, models=models)


def test_engine_is_told_what_was_placed() -> None:
    made = start(launch_of())
    assert (made.sizing, made.card.model_type) == (SIZING, "qwen3")
    assert (made.booked_bytes, made.card_bytes) == (50, 99)
    assert (made.gpu_uuids, made.accelerator) == (("GPU-0", "GPU-1"), AcceleratorKind.NVIDIA)
    assert made.interface == "", "alone it talks to nobody"
    assert 0 < made.port < 65536


def test_claimed_port_is_the_engines() -> None:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    made = start(launch_of(ports=(port, port + 1)))
    assert (made.port, made.ports) == (port, (port, port + 1))


def test_claimed_port_that_somebody_else_has_is_given_up_where_nobody_was_told_of_it() -> None:
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        taken = other.getsockname()[1]
        made = start(launch_of(ports=(taken,)))
        assert 0 < made.port != taken
        follower = Member(host_id="h1", address=LOOPBACK, ports=(taken,))
        with pytest.raises(CannotStart, match="already in use") as failed:
            start(launch_of(1, followers=(follower,), address="10.0.0.1", ports=(1, 2)))
    assert classify(None, str(failed.value), served=False).failure_class == "port"


def test_follower_is_told_its_own_part() -> None:
    follower = Member(
        host_id="h1", gpu_uuids=("GPU-9",), address=LOOPBACK, model_path="/other/m", env_for_host={}, ports=()
    )
    made = start(launch_of(1, followers=(follower,), address="10.0.0.1", ports=(1, 2)))
    assert (made.rank, made.gpu_uuids, made.model_path) == (1, ("GPU-9",), "/other/m")
    assert [m.host_id for m in made.members] == ["h0", "h1"]
    assert made.interface == "lo", "the one that holds its address"
    assert made.is_gang


def test_files_beside_the_model_are_found_among_the_hosts_models(tmp_path: Path) -> None:
    draft = SpeculativeSpec(method="draft_model", model="drafts/d")
    spec = SPEC.model_copy(
        update={"lora": (LoraSpec(name="a", path="a"), LoraSpec(name="b", path="/b")), "speculative": draft}
    )
    assert extra_files(spec, tmp_path) == (tmp_path / "a", Path("/b"), tmp_path / "drafts/d")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text('{"r": 12, "peft_type": "LORA", "target_modules": ["q_proj"]}')
    made = start(launch_of(spec=spec), tmp_path)
    assert made.spec.lora[0].path == str(tmp_path / "a")
    assert made.lora_ranks[1] == 0, "nothing is known of what is not there"
    assert extra_files(SPEC, tmp_path) == ()


def test_followers_of_llama_cpp_run_another_program_beside_it(tmp_path: Path) -> None:
    binary = tmp_path / "llama-server"
    assert program_of(LlamaCpp(), binary, 0) == binary
    assert program_of(Vllm(), binary, 1) == binary
    with pytest.raises(CannotStart, match="ggml-rpc-server or rpc-server"):
        program_of(LlamaCpp(), binary, 1)
    (tmp_path / "rpc-server").touch()
    assert program_of(LlamaCpp(), binary, 1) == tmp_path / "rpc-server"
