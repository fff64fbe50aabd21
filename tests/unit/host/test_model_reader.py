"""What a host says about models, and that asking again costs nothing."""

import asyncio
import json
import threading
from pathlib import Path

import pytest

from fleet.host_client import FileFacts, HostAddress, HostClient
from fleet.sizing.facts import ModelFacts
from tests.doors import HostDoor
from tests.engine_fixtures import find_small_model
from tests.unit.host.test_server import client, host, models  # noqa: F401 - fixtures
from tests.unit.sizing.checkpoints import checkpoint_of, facts_of, write
from tests.unit.sizing.test_read_lora import adapter
from worker_host import model_reader
from worker_host.model_reader import ModelReader

SMALL = "Qwen/Qwen3-0.6B"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(checkpoint_of(SMALL), tmp_path)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Of the disk."""
    found: list[Path] = []
    read = model_reader.read_local

    def counted(path: Path) -> ModelFacts:
        found.append(path)
        return read(path)

    monkeypatch.setattr(model_reader, "read_local", counted)
    return found


def test_folder_with_a_model(folder: Path) -> None:
    facts = ModelReader().read(folder)
    assert facts == FileFacts(
        path=str(folder),
        exists=True,
        readable=True,
        is_folder=True,
        size_bytes=facts_of(SMALL).file_bytes,
        model=facts_of(SMALL),
    )


def test_gguf_file() -> None:
    path = find_small_model()
    facts = ModelReader().read(path)
    assert facts.model is not None
    assert (facts.is_gguf, facts.is_folder, facts.size_bytes) == (True, False, path.stat().st_size)
    assert (facts.model.architecture, facts.model_error) == ("llama", "")


def test_why_there_is_no_model(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    facts = ModelReader().read(folder)
    assert (facts.exists, facts.readable, facts.is_folder, facts.model) == (True, False, True, None)
    assert "no weights" in facts.model_error
    assert facts.model_hint


def test_file_that_is_no_model_can_be_read_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    facts = ModelReader().read(tmp_path / "notes.txt")
    assert (facts.readable, facts.size_bytes, facts.model_error) == (True, 5, "notes.txt is not a GGUF file")


def test_asking_again_reads_nothing(folder: Path, readings: list[Path]) -> None:
    reader = ModelReader()
    assert reader.read(folder) == reader.read(folder)
    (folder / "config.json").write_text("{")
    assert "proper JSON" in reader.read(folder).model_error
    assert "proper JSON" in reader.read(folder).model_error
    assert len(readings) == 2
    config = checkpoint_of(SMALL).config | {"max_position_embeddings": 77}
    (folder / "config.json").write_text(json.dumps(config))
    changed = reader.read(folder).model
    assert changed is not None
    assert changed.context == 77


def test_a_part_that_comes_later_is_noticed(tmp_path: Path, readings: list[Path]) -> None:
    part = tmp_path / "m-00001-of-00002.gguf"
    part.write_bytes(b"GGUF")
    reader = ModelReader()
    assert "1 of 2 parts are missing" in reader.read(part).model_error
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(b"GGUF")
    assert "missing" not in reader.read(part).model_error
    assert len(readings) == 2


def test_only_so_many_are_remembered(tmp_path: Path, readings: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_reader, "_MOST_REMEMBERED", 2)
    reader = ModelReader()
    for name in "abc":
        (tmp_path / name).touch()
    for name in "abacab":
        reader.read(tmp_path / name)
    assert [p.name for p in readings] == ["a", "b", "c", "b"]


async def test_those_who_ask_at_once_wait_for_one_reading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, readings = threading.Event(), []

    def slow(path: Path) -> ModelFacts:
        readings.append(path)
        held.wait(20)
        return facts_of(SMALL)

    monkeypatch.setattr(model_reader, "read_local", slow)
    reader = ModelReader()
    asking = [asyncio.create_task(reader.facts(folder)) for _ in range(20)]
    async with asyncio.timeout(10):
        while not readings:
            await asyncio.sleep(0.01)
    asking[0].cancel()  # who goes away takes nobody along
    held.set()
    done = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert [f.model for f in done[1:] if isinstance(f, FileFacts)] == [facts_of(SMALL)] * 19
    assert len(readings) == 1


async def test_facts_travel_whole(host: HostAddress, client: HostClient, door: HostDoor) -> None:  # noqa: F811
    folder = door.models / "qwen"
    folder.mkdir()
    write(checkpoint_of(SMALL), folder)
    facts = await client.file_facts(host, "qwen")
    assert (facts.path, facts.model) == (str(folder), facts_of(SMALL))


def test_adapter_is_told_from_a_model(tmp_path: Path) -> None:
    facts = ModelReader().read(adapter(tmp_path, rank=8, r=8))
    assert facts.model is None
    assert facts.model_error == ""
    assert facts.lora is not None
    assert (facts.lora.rank, facts.lora.base_model) == (8, "Qwen/Qwen3-8B")
    assert (facts.readable, facts.is_folder, facts.size_bytes) == (True, True, facts.lora.bytes)
