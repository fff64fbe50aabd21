"""The lines of a batch's input are checked one by one, and cut into windows from which they can be read again."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.batch_lines import Check, answer_line, code_of, custom_ids_of, error_line, requests_of
from fleet.batches import MOST_ERRORS, MOST_LINE_BYTES, MOST_LINES, WINDOW_BYTES, WINDOW_LINES

CHAT = "/v1/chat/completions"


def line(n: int, **changes: Any) -> dict[str, Any]:
    return {"custom_id": f"c{n}", "method": "POST", "url": CHAT, "body": {"model": "m", "n": n}} | changes


def check(*lines: object, raw: bytes = b"") -> Check:
    found = Check(CHAT)
    data = raw or b"".join(orjson.dumps(item) + b"\n" for item in lines)
    for part in data.splitlines(keepends=True):
        found.line(part)
    found.end()
    return found


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"custom_id": None}, "invalid_custom_id", "custom_id"),
        ({"custom_id": ""}, "invalid_custom_id", "custom_id"),
        ({"custom_id": "x" * 513}, "invalid_custom_id", "custom_id"),
        ({"custom_id": "c0"}, "duplicate_custom_id", "custom_id"),
        ({"method": "GET"}, "invalid_method", "method"),
        ({"url": "/v1/embeddings"}, "invalid_url", "url"),
        ({"body": []}, "missing_required_parameter", "body"),
        ({"body": {}}, "missing_required_parameter", "body.model"),
        ({"body": {"model": 3}}, "missing_required_parameter", "body.model"),
        ({"body": {"model": "m", "stream": True}}, "invalid_request", "body.stream"),
    ],
)
def test_mistakes_are_told_with_line_and_field(changes: dict[str, Any], code: str, param: str) -> None:
    found = check(line(0), line(1, **changes), line(2))
    assert [(m.code, m.line, m.param) for m in found.mistakes] == [(code, 2, param)]
    assert found.total == 3


@pytest.mark.parametrize("text", [b"{", b"[]", b'"x"', b"\xff", b"{} {}"])
def test_what_is_no_json_object_is_told(text: bytes) -> None:
    found = check(raw=text + b"\n")
    assert [(m.code, m.line) for m in found.mistakes] == [("invalid_json_line", 1)]


def test_an_empty_file_is_a_mistake() -> None:
    for raw in (b"", b"\n \r\n"):
        assert [m.code for m in check(raw=raw).mistakes] == ["empty_file"]


def test_a_line_may_be_a_mebibyte_long() -> None:
    long = line(0, body={"model": "m", "x": "y" * MOST_LINE_BYTES})
    assert [m.code for m in check(long).mistakes] == ["line_too_long"]


def test_too_many_lines_are_told_once() -> None:
    found = Check(CHAT)
    n = 0
    while not found.too_wrong:
        found.line(b'{"custom_id":"%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}\n' % n)
        n += 1
    found.end()
    assert (n, [m.code for m in found.mistakes]) == (MOST_LINES + 1, ["too_many_tasks"])


def test_after_many_mistakes_nothing_more_is_read() -> None:
    found = Check(CHAT)
    for _ in range(MOST_ERRORS):
        assert not found.too_wrong
        found.line(b"{\n")
    assert found.too_wrong


def test_the_model_is_known_when_there_is_just_one() -> None:
    assert check(line(0), line(1)).models == {"m"}
    assert len(check(line(0), line(1, body={"model": "n"}), line(2, body={"model": "o"})).models) == 2


@given(st.lists(st.sampled_from(["line", "blank", "crlf", "long"]), max_size=600), st.booleans())
def test_windows_hold_every_line_once_and_within_bounds(kinds: list[str], ends: bool) -> None:
    data, ids = b"", []
    for n, kind in enumerate(kinds):
        if kind == "blank":
            data += b" \n"
            continue
        body = {"model": "m", "x": "y" * (100_000 if kind == "long" and n % 40 == 0 else 1)}
        data += orjson.dumps(line(n, body=body)) + (b"\r\n" if kind == "crlf" else b"\n")
        ids.append((n + 1, f"c{n}"))
    found = check(raw=data if ends else data.rstrip(b"\n"))
    assert [m.code for m in found.mistakes] == ([] if ids else ["empty_file"])
    read = []
    for window in found.windows:
        assert window.lines <= WINDOW_LINES
        assert window.length <= WINDOW_BYTES or window.lines == 1
        part = data[window.offset : window.offset + window.length]
        requests = requests_of(part, window.first_line, set())
        assert [(r.line, r.custom_id) for r in requests] == custom_ids_of(part, window.first_line, set())
        read += [(r.line, r.custom_id) for r in requests]
    assert read == ids


def test_answered_lines_are_passed_over() -> None:
    data = b"".join(orjson.dumps(line(n)) + b"\n" for n in range(3))
    [left] = requests_of(data, 11, {11, 13})
    assert (left.line, left.custom_id, left.model, json.loads(left.body)) == (12, "c1", "m", {"model": "m", "n": 1})
    assert custom_ids_of(data, 11, {11, 13}) == [(12, "c1")]


@pytest.mark.parametrize(
    ("body", "said"),
    [(b'{"a": 1.0}', {"a": 1.0}), (b'{\n "a": "\xc3\xa9"\r\n}', {"a": "é"}), (b"<html>\n", "<html>\n"), (b"", "")],
)
def test_an_answer_is_one_line_whatever_it_is(body: bytes, said: object) -> None:
    text = answer_line("b", 1, "c", status=200, request_id="r", body=body)
    assert b"\n" not in text
    assert json.loads(text)["response"] == {"status_code": 200, "request_id": "r", "body": said}


def test_a_line_has_the_same_id_however_often_it_is_written() -> None:
    texts = [error_line("b", 1, "c", "x", "y"), answer_line("b", 1, "c", status=200, request_id="", body=b"{}")]
    assert len({json.loads(t)["id"] for t in texts}) == 1
    assert json.loads(texts[0])["error"] == {"code": "x", "message": "y"}
    assert json.loads(error_line("b", 2, "c", "x", "y"))["id"] != json.loads(texts[0])["id"]


def test_of_an_error_only_its_code_is_shown_to_operators() -> None:
    assert code_of(b'{"error": {"code": "c", "type": "t", "message": "secret"}}') == "c"
    assert code_of(b'{"error": {"code": null, "type": "t"}}') == "t"
    assert [code_of(b) for b in (b"", b"[]", b'{"error": "x"}', b'{"error": null}')] == ["", "", "", ""]
