from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from api.gateway.events import EventStream

END = st.sampled_from([b"\n\n", b"\r\n\r\n"])
TEXT = st.binary(max_size=20).map(lambda b: b"data: " + b.replace(b"\n", b"").replace(b"\r", b""))
EVENTS = END.flatmap(lambda end: st.lists(TEXT.map(lambda t: t + end), min_size=1, max_size=8))


def cut(data: bytes, at: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(a % (len(data) + 1) for a in at)})
    return [data[a:b] for a, b in pairwise(marks)]


@given(EVENTS, st.lists(st.integers(0, 500), max_size=12), st.binary(max_size=5))
def test_bytes_come_out_as_they_went_in_wherever_they_are_cut(events: list[bytes], at: list[int], tail: bytes) -> None:
    data = b"".join(events) + tail
    stream = EventStream()
    out = [stream.feed(piece) for piece in cut(data, at)]
    assert b"".join(out) + stream.rest() == data


@given(EVENTS, st.lists(st.integers(0, 500), max_size=12))
def test_only_whole_events_are_let_through(events: list[bytes], at: list[int]) -> None:
    ends = {len(b"".join(events[:n])) for n in range(len(events) + 1)}
    stream = EventStream()
    passed = 0
    for piece in cut(b"".join(events), at):
        passed += len(stream.feed(piece))
        assert passed in ends


def test_a_whole_event_is_not_delayed() -> None:
    assert EventStream().feed(b"data: 1\n\n") == b"data: 1\n\n"
    assert EventStream().feed(b"data: 1\n\ndata: 2") == b"data: 1\n\n"


def test_an_endless_event_is_passed_on_in_pieces() -> None:
    stream = EventStream()
    passed = sum(len(stream.feed(b"x" * 65536)) for _ in range(100))
    assert passed > 90 * 65536
