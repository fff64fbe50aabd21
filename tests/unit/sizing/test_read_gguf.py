"""GGUF headers: read as llama.cpp's own reader reads them, and refused where it would fail."""

import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.sizing.facts import Format, LayerKind, ModelFacts, ModelFile, Role, Task
from fleet.sizing.files import LocalFiles, ReadError, ReadProblem
from fleet.sizing.gguf_header import GgufHeader, read_header
from fleet.sizing.read import read_local
from tests.engine_fixtures import find_small_model

HIDDEN, HEADS, KV, FFN, VOCAB = 256, 8, 2, 512, 300


def write(
    path: Path, arch: str = "llama", blocks: int = 2, change: Callable[[Any], None] | None = None, **split: int
) -> Path:
    """A small model, as converters write them."""
    writer = gguf.GGUFWriter(path, arch, **split)
    writer.add_block_count(blocks)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_context_length(4096)
    writer.add_token_list([f"token {i}" for i in range(VOCAB)])
    writer.add_token_types([1] * VOCAB)
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", np.zeros((VOCAB, HIDDEN), np.float16))
    writer.add_tensor("output_norm.weight", np.zeros(HIDDEN, np.float32))
    for block in range(blocks):
        quantised(writer, f"blk.{block}.attn_q.weight", HIDDEN, HIDDEN)
        quantised(writer, f"blk.{block}.attn_k.weight", HIDDEN // HEADS * KV, HIDDEN)
        quantised(writer, f"blk.{block}.ffn_up.weight", FFN, HIDDEN)
        writer.add_tensor(f"blk.{block}.attn_norm.weight", np.zeros(HIDDEN, np.float32))
    if change is not None:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantised(writer: Any, name: str, rows: int, columns: int) -> None:
    kind = gguf.GGMLQuantizationType.Q4_K
    block, size = gguf.GGML_QUANT_SIZES[kind]
    writer.add_tensor(name, np.zeros((rows, columns // block * size), np.uint8), raw_dtype=kind)


def header_of(path: Path) -> GgufHeader:
    return read_header(LocalFiles(path.parent), ModelFile(name=path.name, size=path.stat().st_size))


def layers_of(facts: ModelFacts) -> dict[LayerKind, tuple[int, int, int]]:
    return {g.kind: (g.count, g.kv_heads, g.window) for g in facts.layers}


def assert_same_as_their_reader(path: Path) -> None:
    theirs, ours = gguf.GGUFReader(path), header_of(path)
    assert {t.name: (t.dtype, t.shape, t.bytes) for t in ours.tensors} == {
        t.name: (t.tensor_type.name, tuple(int(d) for d in t.shape), int(t.n_bytes)) for t in theirs.tensors
    }
    assert all(t.elements == int(other.n_elements) for t, other in zip(ours.tensors, theirs.tensors, strict=True))
    for name, field in theirs.fields.items():
        if name.startswith("GGUF."):
            continue
        if field.types[0] is gguf.GGUFValueType.ARRAY:
            assert ours.lengths[name] == len(field.data), name
            continue
        value = field.contents()
        assert ours.values[name] == (value[:4096] if isinstance(value, str) else value), name


def test_real_file_is_read_as_their_reader_reads_it() -> None:
    assert_same_as_their_reader(find_small_model())


def test_written_file_is_read_as_their_reader_reads_it(tmp_path: Path) -> None:
    assert_same_as_their_reader(write(tmp_path / "m.gguf"))


def test_real_file() -> None:
    path = find_small_model()
    facts = read_local(path)
    assert (facts.format, facts.architecture, facts.task, facts.context) == (Format.GGUF, "llama", Task.GENERATE, 8192)
    assert (facts.hidden, facts.layers_total, facts.heads, facts.vocab, facts.ffn) == (576, 30, 9, 49152, 1536)
    assert layers_of(facts) == {LayerKind.FULL: (30, 3, 0)}
    assert (facts.layers[0].key_dim, facts.tied_head, facts.chat_template) == (64, True, True)
    assert sum(w.elements for w in facts.weights) == 134_515_008
    assert sum(facts.layer_bytes) + facts.bytes_of(Role.EMBEDDING) + 576 * 4 == facts.weight_bytes
    assert facts.file_bytes == path.stat().st_size > facts.weight_bytes
    assert read_local(path) == facts


def test_facts_of_a_written_file(tmp_path: Path) -> None:
    facts = read_local(write(tmp_path / "m.gguf"))
    per_block = (HIDDEN * HIDDEN + HIDDEN // HEADS * KV * HIDDEN + FFN * HIDDEN) * 144 // 256 + HIDDEN * 4
    assert facts.layer_bytes == (per_block, per_block)
    assert Counter({(w.role, w.dtype): w.elements for w in facts.weights}) == {
        (Role.EMBEDDING, "F16"): VOCAB * HIDDEN,
        (Role.ATTENTION, "Q4_K"): 2 * HIDDEN * HIDDEN,
        (Role.KV_PROJECTION, "Q4_K"): 2 * HIDDEN // HEADS * KV * HIDDEN,
        (Role.MLP, "Q4_K"): 2 * FFN * HIDDEN,
        (Role.REPLICATED, "F32"): 3 * HIDDEN,
    }
    assert facts.quantization is not None
    assert (facts.quantization.method, facts.quantization.bits, facts.vocab) == ("gguf", 4.5, VOCAB)


def test_folder_with_one_model_is_that_model(tmp_path: Path) -> None:
    facts = read_local(write(tmp_path / "m.gguf"))
    (tmp_path / "mmproj-f16.gguf").write_bytes(b"GGUF")
    (tmp_path / "config.json").write_text("{}")
    assert read_local(tmp_path) == facts
    write(tmp_path / "other.gguf")
    with pytest.raises(ReadError, match=r"holds 2 models: m\.gguf, other\.gguf"):
        read_local(tmp_path)


def test_any_name_will_do(tmp_path: Path) -> None:
    assert read_local(write(tmp_path / "model")).layers_total == 2


# -- parts --------------------------------------------------------------------------------------------------------


def test_model_in_parts(tmp_path: Path) -> None:
    whole = read_local(write(tmp_path / "whole.gguf", blocks=4))
    write(tmp_path / "m.gguf", blocks=4, split_max_tensors=6)
    parts = sorted(tmp_path.glob("m-*"))
    assert len(parts) == 3
    facts = read_local(parts[0])
    assert (facts.weights, facts.layer_bytes, facts.layers) == (whole.weights, whole.layer_bytes, whole.layers)
    assert (facts.file_bytes, len(facts.files)) == (sum(p.stat().st_size for p in parts), 3)
    with pytest.raises(ReadError, match="not the first part") as refused:
        read_local(parts[1])
    assert parts[0].name in refused.value.hint
    (tmp_path / "whole.gguf").unlink()
    assert read_local(tmp_path) == facts
    parts[2].unlink()
    with pytest.raises(ReadError, match="1 of 3 parts are missing"):
        read_local(parts[0])


def test_part_under_another_name_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", blocks=4, split_max_tensors=6)
    renamed = next(tmp_path.glob("m-00001-*")).rename(tmp_path / "all.gguf")
    with pytest.raises(ReadError, match="one of 3 parts"):
        read_local(renamed)


# -- families -----------------------------------------------------------------------------------------------------


def changed(tmp_path: Path, arch: str, blocks: int = 4, **keys: Any) -> ModelFacts:
    def change(writer: Any) -> None:
        for name, value in keys.items():
            key = f"{arch}.{name.replace('__', '.')}"
            writer.kv_data[0].pop(key, None)
            if isinstance(value, list):
                writer.add_array(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            else:
                writer.add_uint32(key, value)

    return read_local(write(tmp_path / "m.gguf", arch, blocks, change))


@pytest.mark.parametrize(("arch", "full"), [("gemma2", 6), ("gemma3", 2), ("gpt-oss", 6), ("llama4", 3), ("phi3", 12)])
def test_windows_that_llama_cpp_knows(tmp_path: Path, arch: str, full: int) -> None:
    facts = changed(tmp_path, arch, 12, attention__sliding_window=512)
    expected = {LayerKind.FULL: (full, KV, 0), LayerKind.SLIDING: (12 - full, KV, 512)}
    assert layers_of(facts) == {kind: group for kind, group in expected.items() if group[0]}


def test_windows_that_the_file_lists(tmp_path: Path) -> None:
    pattern = [True, True, True, False]
    facts = changed(tmp_path, "gemma4", attention__sliding_window=1024, attention__sliding_window_pattern=pattern)
    assert layers_of(facts) == {LayerKind.FULL: (1, KV, 0), LayerKind.SLIDING: (3, KV, 1024)}


def test_kv_heads_of_each_layer(tmp_path: Path) -> None:
    facts = changed(tmp_path, "deci", attention__head_count_kv=[8, 0, 4, 4])
    assert [(g.kind, g.count, g.kv_heads) for g in facts.layers] == [(LayerKind.FULL, 2, 4), (LayerKind.FULL, 1, 8)]


def test_hybrid_with_states(tmp_path: Path) -> None:
    keys = {"conv_kernel": 4, "inner_size": 512, "state_size": 128, "time_step_rank": 4, "group_count": 2}
    facts = changed(tmp_path, "qwen3next", **{f"ssm__{k}": v for k, v in keys.items()})
    assert layers_of(facts) == {LayerKind.FULL: (1, KV, 0), LayerKind.STATE: (3, 0, 0)}
    state = next(g.state for g in facts.layers if g.state is not None)
    assert (state.conv_channels, state.heads, state.key_dim, state.value_dim) == (512 + 2 * 2 * 128, 4, 128, 128)


def test_nemotron_h_has_layers_of_three_kinds(tmp_path: Path) -> None:
    facts = changed(
        tmp_path,
        "nemotron_h",
        attention__head_count_kv=[0, 0, 2, 0],
        feed_forward_length=[0, 512, 0, 0],
        ssm__inner_size=512,
        ssm__state_size=64,
    )
    assert layers_of(facts) == {LayerKind.FULL: (1, 2, 0), LayerKind.STATE: (2, 0, 0)}


def test_mla_and_experts(tmp_path: Path) -> None:
    facts = changed(
        tmp_path,
        "deepseek2",
        attention__kv_lora_rank=512,
        attention__q_lora_rank=1536,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
        attention__value_length_mla=128,
        rope__dimension_count=64,
        expert_count=256,
        expert_used_count=8,
        expert_feed_forward_length=2048,
        expert_shared_count=1,
        leading_dense_block_count=1,
    )
    (group,) = facts.layers
    assert (group.kind, group.count, group.key_dim, group.value_dim) == (LayerKind.MLA, 4, 576, 0)
    assert facts.mla is not None
    assert (facts.mla.nope_dim, facts.mla.rope_dim, facts.mla.value_dim) == (128, 64, 128)
    assert facts.moe is not None
    assert (facts.moe.experts, facts.moe.per_token, facts.moe.shared_ffn, facts.ffn) == (256, 8, 2048, FFN)


def test_layers_that_predict_ahead(tmp_path: Path) -> None:
    facts = changed(tmp_path, "glm4moe", nextn_predict_layers=1)
    assert (facts.layers_total, facts.mtp_layers, len(facts.layer_bytes)) == (3, 1, 4)
    assert facts.bytes_of(Role.MTP) == facts.layer_bytes[3]


@pytest.mark.parametrize(("pooling", "task"), [(1, Task.EMBED), (4, Task.RERANK)])
def test_encoders(tmp_path: Path, pooling: int, task: Task) -> None:
    facts = changed(tmp_path, "bert", pooling_type=pooling)
    assert (facts.task, [g.kind for g in facts.layers]) == (task, [LayerKind.ENCODER])


def test_soft_cap(tmp_path: Path) -> None:
    assert changed(tmp_path, "gemma2", final_logit_softcapping=30.0).soft_cap


# -- what is no model ---------------------------------------------------------------------------------------------


def refused(path: Path) -> ReadError:
    with pytest.raises(ReadError) as error:
        read_local(path)
    assert error.value.message
    return error.value


@pytest.mark.parametrize("content", [b"", b"GG", b"safetensors", b"\0" * 100])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    error = refused(tmp_path / "m.gguf")
    assert (error.kind, error.message) == (ReadProblem.UNSUPPORTED, "m.gguf is not a GGUF file")


def test_versions_that_are_not_known(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    data = path.read_bytes()
    for version, word in ((1, "version 1"), (9, "version 9"), (3 << 24, "big-endian")):
        path.write_bytes(data[:4] + struct.pack("<I", version) + data[8:])
        assert word in refused(path).message


@pytest.mark.parametrize(("kind", "word"), [("adapter", "LoRA"), ("mmproj", "projector")])
def test_what_goes_with_a_model_is_none(tmp_path: Path, kind: str, word: str) -> None:
    path = write(tmp_path / "m.gguf", change=lambda writer: writer.add_type(kind))
    assert word in refused(path).message


def test_download_that_broke_off(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    data = path.read_bytes()
    path.write_bytes(data[:-5000])
    error = refused(path)
    assert (error.kind, "shorter than its tensors" in error.message) == (ReadProblem.MALFORMED, True)
    for length in range(8, 6000, 191):
        path.write_bytes(data[:length])
        assert refused(path).kind is ReadProblem.MALFORMED


@pytest.mark.parametrize(("tensors", "keys"), [(2**63, 1), (1, 2**63), (2**20, 0), (0, 2**17), (2**19, 2**16)])
def test_counts_of_a_liar_cost_nothing(tmp_path: Path, tensors: int, keys: int) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + b"\0" * 64)
    assert refused(path).kind is ReadProblem.MALFORMED


@pytest.mark.parametrize(
    "value",
    [
        struct.pack("<IQ", 8, 2**62),  # a text
        struct.pack("<IIQ", 9, 8, 2**62),  # a list of texts
        struct.pack("<IIQ", 9, 4, 2**62),  # of numbers
        struct.pack("<IIQ", 9, 9, 1),  # of lists
        struct.pack("<I", 99),
        struct.pack("<II", 9, 99),
    ],
)
def test_values_of_a_liar_cost_nothing(tmp_path: Path, value: bytes) -> None:
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + value)
        file.truncate(1 << 34)
    assert refused(path).kind in (ReadProblem.MALFORMED, ReadProblem.TOO_LARGE)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("valid") / "m.gguf")


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 255)), min_size=1, max_size=8))
def test_whatever_is_wrong_in_it_it_is_read_or_refused(valid: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(valid.read_bytes())
    for at, byte in changes:
        data[at] = byte
    path = valid.with_name("fuzzed.gguf")
    path.write_bytes(data)
    try:
        facts = read_local(path)
    except ReadError:
        return
    assert facts.weight_bytes <= facts.file_bytes
