import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.relay.ownership import ForeignToken, TaskTokens

TOKENS = st.binary(min_size=1, max_size=400)
HOSTS = st.text(min_size=1, max_size=60)


@given(TOKENS, HOSTS)
def test_its_host_gets_the_token_back_also_from_another_relay(token: bytes, host: str) -> None:
    assert TaskTokens("master").open(TaskTokens("master").seal(token, host), host) == token


@given(TOKENS, HOSTS, HOSTS)
def test_no_other_host_can_use_it(token: bytes, host: str, other: str) -> None:
    sealed = TaskTokens("master").seal(token, host)
    if other != host:
        with pytest.raises(ForeignToken):
            TaskTokens("master").open(sealed, other)


@given(st.binary(max_size=200), HOSTS)
def test_raw_tokens_and_noise_are_foreign(noise: bytes, host: str) -> None:
    with pytest.raises(ForeignToken):
        TaskTokens("master").open(noise, host)


@given(TOKENS, HOSTS, st.data())
def test_a_changed_token_is_foreign(token: bytes, host: str, data: st.DataObject) -> None:
    sealed = bytearray(TaskTokens("master").seal(token, host))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ForeignToken):
        TaskTokens("master").open(bytes(sealed), host)


def test_another_master_key_opens_nothing() -> None:
    with pytest.raises(ForeignToken):
        TaskTokens("another").open(TaskTokens("master").seal(b"t", "h"), "h")


def test_the_token_does_not_show() -> None:
    assert b"workflow-of-somebody" not in TaskTokens("master").seal(b"workflow-of-somebody", "h")
