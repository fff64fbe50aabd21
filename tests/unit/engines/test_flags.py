"""A person's arguments, in whatever spelling an engine takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.engines.flags import Derived, Dialect, contradictions, derived_args, repeated

ARGPARSE = Dialect({"-tp": "--tensor-parallel-size"}, underscores=True, abbreviations=True)
OURS = {"--host": "no", "--served-model-name": "no", "-x": "no"}


@pytest.mark.parametrize(
    "args",
    [
        ["--max-model-len", "4096"],
        ["--max-model-len=4096"],
        ["--max_model_len", "4096"],
        ["--max_model_len=4096"],
        ["--max-model-len", "1", "--max-model-len", "4096"],
        ["--max-model-len", "4K"],
    ],
)
def test_value_is_found_in_any_spelling(args: list[str]) -> None:
    assert ARGPARSE.read(args).integer("--max-model-len") == 4096


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4k", 4000),
        ("4K", 4096),
        ("1.5k", 1500),
        ("2M", 2 << 20),
        ("-1", None),
        ("auto", None),
        ("0", None),
        ("", None),
    ],
)
def test_numbers_are_read_as_engines_read_them(text: str, number: int | None) -> None:
    assert ARGPARSE.read(["--n", text]).integer("--n") == number


def test_negative_number_is_a_value_and_no_flag() -> None:
    assert ARGPARSE.read(["--max-model-len", "-1", "--x", "-.5"]).text("--max-model-len") == "-1"


def test_synonym_and_part_of_a_config_are_the_flag_itself() -> None:
    read = ARGPARSE.read(["-tp", "4", "--speculative-config.method", "mtp"])
    assert read.integer("--tensor-parallel-size") == 4
    assert read.has("--speculative-config")


@pytest.mark.parametrize(
    ("args", "on"),
    [
        ([], False),
        (["--enforce-eager"], True),
        (["--no-enforce-eager"], False),
        (["--enforce-eager", "--no-enforce-eager"], False),
        (["--no-enforce-eager", "--enforce-eager"], True),
    ],
)
def test_last_of_a_switch_counts(args: list[str], on: bool) -> None:
    assert ARGPARSE.read(args).switch("--enforce-eager") is on


@pytest.mark.parametrize(
    ("text", "share"), [("0.9", 0.9), ("1", 1.0), ("0", None), ("1.5", None), ("x", None), ("nan", None)]
)
def test_shares_are_between_nothing_and_all(text: str, share: float | None) -> None:
    assert ARGPARSE.read(["--u", text]).share("--u") == share


@pytest.mark.parametrize("arg", ["--host", "--host=0.0.0.0", "--hos", "--served_model_name", "--served-model=x", "-x"])
def test_what_is_ours_is_refused_in_any_spelling(arg: str) -> None:
    assert ARGPARSE.refused(["--a", arg], OURS) == {1: "no"}


def test_others_are_not_refused() -> None:
    assert ARGPARSE.refused(["--hosts", "--h", "--a", "host", "--served-model-names"], OURS) == {}


def test_derived_flag_gives_way_to_the_persons() -> None:
    derived = [Derived("--a", "1"), Derived("--b"), Derived("--c", "3", unless=("--d",))]
    assert derived_args(derived, ARGPARSE.read([])) == ["--a", "1", "--b", "--c", "3"]
    assert derived_args(derived, ARGPARSE.read(["--a=9", "--d"])) == ["--b"]


def test_contradiction_names_the_field_and_agreement_is_none() -> None:
    wanted: dict[str, tuple[str, object]] = {"--max-model-len": ("spec.max_model_len", 4096)}
    assert contradictions(ARGPARSE.read(["--x", "--max-model-len", "4K"]), wanted) == {}
    found = contradictions(ARGPARSE.read(["--x", "--max-model-len", "8192"]), wanted)
    assert list(found) == [1]
    assert "8192" in found[1]
    assert "spec.max_model_len 4096" in found[1]


def test_flag_that_is_given_twice_is_told_where_only_the_last_counts() -> None:
    args = ["--a", "1", "--b", "--a", "2", "--m", "1", "--m", "2", "--b"]
    assert list(repeated(ARGPARSE.read(args), frozenset({"--m"}))) == [0]


@given(st.lists(st.text(max_size=12), max_size=8))
def test_every_argument_belongs_to_one_flag(args: list[str]) -> None:
    read = ARGPARSE.read(args)
    assert [f.index for f in read.flags] == sorted({f.index for f in read.flags})
    parts = sum(1 + len(f.values) - ("=" in args[f.index] if f.name else 1) for f in read.flags)
    assert parts == len(args)
