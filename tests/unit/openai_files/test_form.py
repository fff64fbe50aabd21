"""A form is the same however the network cuts it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.gateway.refusals import Refusal
from api.openai_files.form import FileForm

DATA = bytes(range(256)) + b"\r\n--b\r\n--bx--\r\n-" * 3
BODY = (
    b'--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--edge\r\ncontent-disposition: form-data; name="file"; filename="in put.jsonl"\r\n'
    b"content-type: application/octet-stream\r\n\r\n" + DATA + b"\r\n"
    b'--edge\r\nContent-Disposition: form-data; name="expires_after[seconds]"\r\n\r\n3600\r\n--edge--\r\n'
)


@given(st.lists(st.integers(0, len(BODY)), max_size=40))
def test_pieces_of_any_size_make_the_same_form(cuts: list[int]) -> None:
    form, got = FileForm(b"multipart/form-data; boundary=edge"), b""
    edges = [0, *sorted(cuts), len(BODY)]
    for start, end in pairwise(edges):
        form.feed(BODY[start:end])
        got += bytes(form.file)
        form.file.clear()
    form.end()
    assert got == DATA
    assert form.filename == "in put.jsonl"
    assert form.fields == {"purpose": "batch", "expires_after[seconds]": "3600"}


@given(st.integers(0, len(BODY) - 5))
def test_a_form_that_ends_too_soon_is_noticed(end: int) -> None:
    form = FileForm(b"multipart/form-data; boundary=edge")
    form.feed(BODY[:end])
    with pytest.raises(Refusal):
        form.end()


@given(st.binary(max_size=300))
def test_nonsense_is_refused_and_never_an_error_of_ours(data: bytes) -> None:
    form = FileForm(b"multipart/form-data; boundary=edge")

    def read() -> None:
        form.feed(data)
        form.end()

    with pytest.raises(Refusal):
        read()


def part(name: str, data: bytes = b"x", more: str = "") -> bytes:
    return f'--edge\r\ncontent-disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data + b"\r\n"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (part("file", more='; filename="a"') * 2, "one file at a time"),
        (part("purpose", b"y" * 5000), "longer than 4096"),
        (b"".join(part(f"f{n}") for n in range(33)), "more than 32 fields"),
        (b"--edge\r\n" + b"x: " + b"y" * 5000 + b"\r\n\r\n", "damaged"),
    ],
)
def test_what_is_held_in_memory_is_bounded(body: bytes, why: str) -> None:
    form = FileForm(b"multipart/form-data; boundary=edge")
    with pytest.raises(Refusal, match=why):
        form.feed(body)
