"""Hashes of what prompts begin with."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fleet.policy.prefix import ENDS, LONGEST, hashes, share

roles = st.sampled_from(["system", "user", "assistant"])
messages = st.lists(st.fixed_dictionaries({"role": roles, "content": st.text(max_size=400)}), min_size=1, max_size=8)


@given(messages, messages)
def test_a_conversation_that_goes_on_has_all_that_it_had(before: list[Any], more: list[Any]) -> None:
    first = hashes({"messages": before}, "chat.completions")
    longer = hashes({"messages": before + more}, "chat.completions")
    if len(first) > 1:  # one alone may be of a prompt without a whole block
        assert longer[: len(first)] == first


@given(st.recursive(st.none() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["role", "content", "text", "type", "name", "function"]), inner), max_leaves=30))  # fmt: skip
def test_nothing_that_a_client_may_send_is_too_odd(value: Any) -> None:
    for field in ("messages", "prompt", "input", "system", "tools"):
        assert all(isinstance(block, int) for block in hashes({field: value}, "x"))


def test_tenants_differ_from_the_first_block_on() -> None:
    def first(system: str) -> int:
        return hashes(
            {"messages": [{"role": "system", "content": system}, {"role": "user", "content": "x" * 999}]}, "c"
        )[0]

    assert first("You work for Ann. " * 50) != first("You work for Bob. " * 50)


def test_the_order_and_the_borders_of_messages_count() -> None:
    one = {"messages": [{"role": "user", "content": "a" * 100}, {"role": "user", "content": "b" * 100}]}
    other = {"messages": [{"role": "user", "content": "a" * 100 + "b" * 100}]}
    assert hashes(one, "c") != hashes(other, "c")


def test_parts_of_texts_are_read_and_pictures_are_not() -> None:
    parts = [{"type": "text", "text": "a" * 900}, {"type": "image_url", "image_url": {"url": "data:" + "x" * 99}}]
    read = hashes({"messages": [{"role": "user", "content": parts}]}, "c")
    assert read == hashes({"messages": [{"role": "user", "content": "a" * 900}]}, "c")


def test_prompts_inputs_and_token_ids_are_read() -> None:
    assert len(hashes({"prompt": "a" * 600}, "completions")) == 3
    assert len(hashes({"input": "a" * 600, "instructions": "b"}, "responses")) == 3
    assert hashes({"prompt": list(range(900))}, "completions")[0] == hashes({"prompt": list(range(800))}, "c")[0]
    assert hashes({"prompt": "hi"}, "completions") != hashes({"prompt": "ho"}, "completions")


def test_only_the_beginning_is_looked_at() -> None:
    assert hashes({"prompt": "a" * LONGEST}, "c") == hashes({"prompt": "a" * (LONGEST + 9999)}, "c")
    assert len(hashes({"prompt": "a" * LONGEST}, "c")) == len(ENDS)
    assert len(hashes({"prompt": "é" * LONGEST}, "c")) == len(ENDS)


def test_other_tools_are_another_beginning() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    assert hashes({"prompt": "a" * 600, "tools": tools}, "c")[0] != hashes({"prompt": "a" * 600}, "c")[0]


def test_operations_that_leave_nothing_in_an_engine_have_none() -> None:
    assert hashes({"input": "a" * 600}, "embeddings") == ()
    assert hashes({"input": "a" * 600}, "/v1/audio/speech") == ()
    assert hashes({"model": "m"}, "chat.completions") == ()


def test_they_are_the_same_in_every_process() -> None:
    assert hashes({"prompt": "a" * 300}, "c") == KNOWN


def test_share_is_by_length() -> None:
    assert share(0, 5) == 0
    assert share(3, 6) == 0.25
    assert share(6, 6) == 1


KNOWN = (140741534496396, 281477937706585)
