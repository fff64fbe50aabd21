"""Headers that no engine would load, by accident or on purpose, give an error for people and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.sizing.facts import ModelFile
from fleet.sizing.files import LocalFiles, ReadError, ReadProblem
from fleet.sizing.safetensors import Tensor, parse_header, read_tensors

ONE = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}


def parsed(table: Any, size: int | None = None) -> list[Tensor]:
    header = table if isinstance(table, bytes) else json.dumps(table).encode()
    return list(parse_header(header, ModelFile(name="m", size=8 + len(header) + 100 if size is None else size)))


def test_tensors_with_their_bytes() -> None:
    found = parsed(
        {"__metadata__": {"a": "b"}, "x": ONE, "y": {"dtype": "F4", "shape": [3, 2], "data_offsets": [12, 15]}}
    )
    assert found == [Tensor("x", "F16", (2, 3), 12), Tensor("y", "F4", (3, 2), 3)]
    assert found[1].elements == 6


def test_scalar_and_empty_tensor() -> None:
    table = {
        "s": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "e": {"dtype": "I8", "shape": [0], "data_offsets": [4, 4]},
    }
    assert [(t.name, t.elements) for t in parsed(table)] == [("s", 1), ("e", 0)]


BAD: dict[str, Any] = {
    "not JSON": b"{",
    "a list": b"[]",
    "not UTF-8": b'{"\xff": 1}',
    "nested": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "twice": b'{"a": 1, "a": 2}',
    "NaN": b'{"a": NaN}',
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "no entry": {"x": 1},
    "no offsets": {"x": {"dtype": "F16", "shape": [2]}},
    "three offsets": {"x": ONE | {"data_offsets": [0, 1, 2]}},
    "a flag": {"x": ONE | {"data_offsets": [False, 12]}},
    "negative": {"x": ONE | {"data_offsets": [-12, 0]}},
    "backwards": {"x": ONE | {"data_offsets": [12, 0]}},
    "another size": {"x": ONE | {"data_offsets": [0, 13]}},
    "beyond the end": {"x": ONE | {"shape": [2, 300], "data_offsets": [0, 1200]}},
    "no type": {"x": {"shape": [1], "data_offsets": [0, 2]}},
    "a list for a type": {"x": ONE | {"dtype": ["F16"]}},
    "unknown type": {"x": ONE | {"dtype": "F17"}},
    "no shape": {"x": {"dtype": "F16", "data_offsets": [0, 2]}},
    "huge": {"x": ONE | {"shape": [2**40, 2**40]}},
    "many dimensions": {"x": ONE | {"shape": [1] * 1000}},
    "overlap": {"x": ONE, "y": ONE | {"data_offsets": [6, 18]}},
}


@pytest.mark.parametrize("case", BAD)
def test_bad_header_is_refused(case: str) -> None:
    with pytest.raises(ReadError) as refused:
        parsed(BAD[case])
    assert refused.value.kind is ReadProblem.MALFORMED
    assert refused.value.message.startswith("m ")
    assert len(refused.value.message) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F16", "BF16", "U8", "F4"]) | JSON,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 60), min_size=2, max_size=2) | JSON,
    },
)


@given(st.dictionaries(st.text(max_size=8), ENTRY | JSON, max_size=4), st.integers(0, 200))
def test_whatever_the_header_says_it_is_read_or_refused(table: dict[str, Any], size: int) -> None:
    try:
        found = parsed(table, size)
    except ReadError:
        return
    assert sum(t.bytes for t in found) <= max(0, size)


@given(st.binary(max_size=200))
def test_whatever_the_file_holds_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "m.safetensors").write_bytes(data)
    with pytest.raises(ReadError) as refused:
        read_tensors(LocalFiles(folder), LocalFiles(folder).list())
    assert refused.value.hint


def write(folder: Path, name: str, table: dict[str, Any], data: int) -> None:
    header = json.dumps(table).encode()
    (folder / name).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * data)


def test_header_longer_than_the_first_look(tmp_path: Path) -> None:
    table = {f"t{i:05}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(5000)}
    write(tmp_path, "m.safetensors", table, 5000)
    assert len(read_tensors(LocalFiles(tmp_path), LocalFiles(tmp_path).list())) == 5000


def test_one_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path, name, {"x": ONE}, 12)
    with pytest.raises(ReadError, match="b holds 'x', which another file of the model holds too"):
        read_tensors(LocalFiles(tmp_path), LocalFiles(tmp_path).list())


def test_file_that_was_cut_says_how_much_is_missing(tmp_path: Path) -> None:
    write(tmp_path, "m.safetensors", {"x": ONE}, 7)
    with pytest.raises(ReadError, match="is 5 bytes shorter than its tensors") as refused:
        read_tensors(LocalFiles(tmp_path), LocalFiles(tmp_path).list())
    assert "fetch it again" in refused.value.hint


def test_huge_header_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "m.safetensors").open("wb") as file:
        file.write((90 << 20).to_bytes(8, "little"))
        file.truncate(100 << 20)
    with pytest.raises(ReadError) as refused:
        read_tensors(LocalFiles(tmp_path), LocalFiles(tmp_path).list())
    assert refused.value.kind is ReadProblem.TOO_LARGE
