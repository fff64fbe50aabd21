"""Changing a spec by JSON merge patch, with values that stay sealed."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.management.merge import merge_patch, seal_env
from fleet.access.sealing import MASK, is_sealed, master_sealer
from fleet.errors import InvalidInput
from fleet.specs import DeploymentSpec, ModelSource

MASTER = master_sealer("master")

# The table of RFC 7396, appendix A.
RFC_7396: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize(("target", "patch", "expected"), RFC_7396)
def test_examples_of_the_standard(target: Any, patch: Any, expected: Any) -> None:
    assert merge_patch(target, patch) == expected


@settings(deadline=None)
@given(json_values, json_values)
def test_patching_twice_is_patching_once_and_leaves_the_original(target: Any, patch: Any) -> None:
    before = repr(target)
    once = merge_patch(target, patch)
    assert merge_patch(once, patch) == once
    assert repr(target) == before


def spec(**env: str) -> DeploymentSpec:
    return DeploymentSpec(model=ModelSource(path="m.gguf"), env=env)


def sealed(known: dict[str, str], **env: str) -> dict[str, str]:
    return seal_env(MASTER, spec(**env), known).env


def test_value_is_sealed() -> None:
    env = sealed({}, A="value")
    assert is_sealed(env["A"])
    assert MASTER.open(env["A"]) == "value"


def test_mask_and_the_same_value_keep_the_seal() -> None:
    known = sealed({}, A="value", B="other")
    assert sealed(known, A=MASK, B="other") == known


def test_another_value_gets_a_new_seal_and_the_rest_keeps_its_own() -> None:
    known = sealed({}, A="value", B="other")
    changed = sealed(known, A="new", B=MASK)
    assert MASTER.open(changed["A"]) == "new"
    assert changed["B"] == known["B"]


def test_mask_for_a_name_without_a_value_is_refused() -> None:
    with pytest.raises(InvalidInput) as refused:
        sealed({}, NEW=MASK)
    assert refused.value.field == "spec.env.NEW"
    assert refused.value.hint


def test_name_that_is_left_out_is_gone() -> None:
    assert set(sealed(sealed({}, A="1", B="2"), A=MASK)) == {"A"}


def test_value_that_looks_sealed_is_sealed_like_any_other() -> None:
    looks = MASTER.seal("inner")
    env = sealed({}, A=looks)
    assert env["A"] != looks
    assert MASTER.open(env["A"]) == looks


def test_value_sealed_under_a_lost_master_key_can_be_replaced() -> None:
    lost = master_sealer("lost").seal("value")
    assert MASTER.open(sealed({"A": lost}, A="value")["A"]) == "value"
    assert sealed({"A": lost}, A=MASK) == {"A": lost}
