"""Folders as they lie on disks: several formats, left-overs, missing parts."""

import json
import os
from pathlib import Path

import pytest

from fleet.sizing.facts import Format, Role, Task
from fleet.sizing.files import ReadError, ReadProblem
from fleet.sizing.read import read_local
from tests.unit.sizing.checkpoints import checkpoint_of, facts_of, write, write_safetensors
from tests.unit.sizing.decoders import Checkpoint, Weight

SMALL = "Qwen/Qwen3-0.6B"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(checkpoint_of(SMALL), tmp_path)


def refused(path: Path) -> ReadError:
    with pytest.raises(ReadError) as error:
        read_local(path)
    return error.value


def test_tied_head_that_is_stored_again_is_not_counted(tmp_path: Path) -> None:
    small = checkpoint_of(SMALL)
    again = Weight("lm_head.weight", (151936, 1024))
    facts = read_local(write(Checkpoint(small.config, (*small.weights, again)), tmp_path))
    assert facts.weights == facts_of(SMALL).weights
    assert facts.file_bytes - facts_of(SMALL).file_bytes > 2 * 151936 * 1024


def test_buffers_are_not_counted(tmp_path: Path) -> None:
    small = checkpoint_of(SMALL)
    buffers = (
        Weight("model.layers.0.self_attn.rotary_emb.inv_freq", (64,), "F32"),
        Weight("embeddings.position_ids", (1, 512), "I32"),
    )
    assert (
        read_local(write(Checkpoint(small.config, (*small.weights, *buffers)), tmp_path)).weights
        == facts_of(SMALL).weights
    )


def test_untied_where_nothing_is_said_and_a_head_is_there(tmp_path: Path) -> None:
    small = checkpoint_of(SMALL)
    config = {k: v for k, v in small.config.items() if k != "tie_word_embeddings"}
    head = Weight("lm_head.weight", (151936, 1024))
    facts = read_local(write(Checkpoint(config, (*small.weights, head)), tmp_path))
    assert (facts.tied_head, facts.bytes_of(Role.HEAD)) == (False, 2 * 151936 * 1024)


def test_safetensors_win_over_bin(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\0" * 1000)
    facts = read_local(folder)
    assert (facts.format, facts.weights) == (Format.SAFETENSORS, facts_of(SMALL).weights)
    assert [f.name for f in facts.files] == ["model.safetensors"]


def test_left_over_shards_that_no_index_names_are_passed_over(tmp_path: Path) -> None:
    folder = write(checkpoint_of("Qwen/Qwen3-30B-A3B"), tmp_path)
    for name in ("consolidated.safetensors", "old.safetensors", "adapter_model.safetensors"):
        write_safetensors(folder / name, (Weight(name, (4,)),))
    assert read_local(folder) == facts_of("Qwen/Qwen3-30B-A3B")
    (folder / "model.safetensors.index.json").unlink()
    assert "old.safetensors" in {f.name for f in read_local(folder).files}


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write(checkpoint_of("Qwen/Qwen3-30B-A3B"), tmp_path)
    shard = next(folder.glob("model-00002-*"))
    shard.unlink()
    error = refused(folder)
    assert (error.kind, shard.name in error.message, "fetch" in error.hint) == (ReadProblem.MISSING, True, True)


def test_pickled_weights_are_known_by_their_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(checkpoint_of(SMALL).config))
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"\0" * 100)
    (tmp_path / "pytorch_model-00002-of-00002.bin").write_bytes(b"\0" * 50)
    (tmp_path / "training_args.bin").write_bytes(b"\0" * 7)
    facts = read_local(tmp_path)
    assert (facts.format, facts.weights, facts.file_bytes, facts.largest_file_bytes) == (Format.PYTORCH, (), 150, 100)
    assert facts.weight_bytes == 150
    assert len(facts.fingerprint) == 32


def test_sentence_transformers_embed(folder: Path) -> None:
    (folder / "modules.json").write_text("[]")
    assert read_local(folder).task is Task.EMBED


def test_chat_template(folder: Path) -> None:
    assert not read_local(folder).chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert read_local(folder).chat_template
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert read_local(folder).chat_template


def test_largest_image_is_that_of_the_preprocessor(tmp_path: Path) -> None:
    folder = write(checkpoint_of("Qwen/Qwen2.5-VL-7B-Instruct"), tmp_path)
    (folder / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 3136, "max_pixels": 12845056}))
    vision = read_local(folder).vision
    assert vision is not None
    assert vision.largest_image == 3584


def test_fingerprint_changes_with_config_and_tensors(folder: Path) -> None:
    before = read_local(folder).fingerprint
    os.utime(folder / "config.json", (0, 0))
    assert read_local(folder).fingerprint == before
    config = checkpoint_of(SMALL).config | {"max_position_embeddings": 1024}
    (folder / "config.json").write_text(json.dumps(config))
    assert read_local(folder).fingerprint != before


def test_links_into_a_cache_are_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    snapshot = tmp_path_factory.mktemp("snapshot")
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert read_local(snapshot) == facts_of(SMALL)


def test_weights_that_are_pointers_of_git_lfs(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert refused(folder).kind is ReadProblem.MALFORMED


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(checkpoint_of(SMALL).config))
    error = refused(tmp_path)
    assert (error.kind, "no weights" in error.message) == (ReadProblem.MISSING, True)


def test_no_model(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("hello")
    error = refused(tmp_path)
    assert (error.kind, "holds no model" in error.message) == (ReadProblem.UNSUPPORTED, True)
    assert refused(tmp_path / "nope").kind is ReadProblem.MISSING
    assert refused(tmp_path / "README.md").kind is ReadProblem.UNSUPPORTED


def test_one_file_of_a_folder_is_no_model(folder: Path) -> None:
    error = refused(folder / "model.safetensors")
    assert (error.kind, "name the folder" in error.hint) == (ReadProblem.UNSUPPORTED, True)


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    os.mkfifo(tmp_path / "m.gguf")
    assert refused(tmp_path).kind is ReadProblem.UNSUPPORTED
    assert refused(tmp_path / "m.gguf").kind is ReadProblem.UNREADABLE


def test_what_may_not_be_read_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    error = refused(folder)
    assert (error.kind, "Permission denied" in error.message) == (ReadProblem.UNREADABLE, True)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"num_hidden_layers": {}}', b"\xff\xfe", b"[" * 50_000])
def test_broken_config(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert refused(folder).kind in (ReadProblem.MALFORMED, ReadProblem.UNSUPPORTED)


def test_huge_config_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(1 << 30)
    assert refused(folder).kind is ReadProblem.TOO_LARGE
