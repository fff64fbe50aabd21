"""What an answer used, of every engine's kind; and clients see nothing that they did not ask for."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.gateway.meter import Meter
from api.gateway.usage_request import inject, inject_stream_options, injections
from fleet.usage import Usage

EVENTS = [(b"content-type", b"text/event-stream")]
JSON = [(b"content-type", b"application/json")]
STREAM = {"stream": True}

OPENAI_TOKEN = (
    b'data: {"id":"c-1","choices":[{"index":0,"delta":{"content":"Hi \\"usage\\":{"},"finish_reason":null}]}\n\n'
)
OPENAI_NULL = OPENAI_TOKEN[:-3] + b',"usage":null}\n\n'
OPENAI_FINISH = b'data: {"id":"c-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\n'
OPENAI_TOTAL = (
    b'data: {"id":"c-1","choices":[],"usage":{"prompt_tokens":20,"completion_tokens":9,"total_tokens":29,'
    b'"prompt_tokens_details":{"cached_tokens":16,"audio_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":5}}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def vllm(text: str, written: int, *, said: bool = True, index: int = 0, finish: str = "null") -> bytes:
    usage = (
        f',"usage":{{"prompt_tokens":21,"total_tokens":{21 + written},"completion_tokens":{written}}}' if said else ""
    )
    choice = f'{{"index":{index},"delta":{{"content":"{text}"}},"logprobs":null,"finish_reason":{finish}}}'
    return f'data: {{"id":"c-2","model":"m","choices":[{choice}]{usage},"prompt_text":null}}\n\n'.encode()


def llama(text: str, written: int, *, said: bool = True, index: int = 0, finish: str = "null") -> bytes:
    timings = f',"timings":{{"cache_n":23,"prompt_n":12,"prompt_ms":68.9,"predicted_n":{written}}}' if said else ""
    delta = f'{{"content":"{text}"}}' if finish == "null" else "{}"
    choice = f'{{"finish_reason":{finish},"index":{index},"delta":{delta}}}'
    return f'data: {{"choices":[{choice}],"id":"c-3"{timings}}}\n\n'.encode()


def meter(operation: str, engine: str, document: dict[str, Any], **more: Any) -> Meter:
    return Meter(operation, document, injections(engine, operation, document), **more)


def passed(read: Meter, *data: bytes, headers: Any = EVENTS, status: int = 200) -> bytes:
    read.head(status, list(headers))
    return b"".join(map(read.feed, data)) + read.end()


# --- what is asked for ---


def test_what_an_engine_cannot_say_otherwise_is_asked_for() -> None:
    chat = "chat.completions"
    continuous = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    assert injections("openai", chat, STREAM) == {"stream_options": {"include_usage": True}}
    assert injections("vllm", chat, STREAM) == continuous
    assert injections("sglang", "completions", STREAM) == continuous
    assert injections("llama_cpp", chat, STREAM) == {"timings_per_token": True}
    assert injections("llama_cpp", "responses", STREAM) == {"timings_per_token": True}


def test_nothing_is_asked_for_that_comes_anyway() -> None:
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    assert injections("openai", "chat.completions", asked) is None
    assert injections("vllm", "chat.completions", asked) == {"stream_options": {"continuous_usage_stats": True}}
    assert injections("llama_cpp", "chat.completions", STREAM | {"timings_per_token": True}) is None
    for document in ({}, {"stream": False}, {"stream": None}, {"stream": "true"}):
        assert injections("vllm", "chat.completions", document) is None
    assert injections("vllm", "messages", STREAM) is None
    assert injections("vllm", "responses", STREAM) is None


def test_injecting_keeps_the_body_as_it_is() -> None:
    body = b' \n{ "model":"m","stream":true , "x":1e2}'
    injected = inject_stream_options(body, orjson.loads(body))
    assert injected == b' \n{"stream_options":{"include_usage":true}, "model":"m","stream":true , "x":1e2}'
    assert orjson.loads(injected) == {**orjson.loads(body), "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("given", [{}, {"include_usage": False}, {"include_usage": None, "other": 1}, None])
def test_injecting_beside_what_the_client_gave(given: Any) -> None:
    document = {"model": "m", "stream": True, "stream_options": given}
    injected = orjson.loads(inject_stream_options(orjson.dumps(document), document))
    assert injected == {**document, "stream_options": {**(given or {}), "include_usage": True}}


def test_a_request_that_asks_itself_is_not_touched() -> None:
    body = b'{"stream":true,"stream_options":{"include_usage":true}}'
    assert inject_stream_options(body, orjson.loads(body)) is body
    assert inject(b'{"n":1}', {"n": 1}, {"timings_per_token": True}) == b'{"timings_per_token":true,"n":1}'


# --- streams ---


def test_the_total_that_we_asked_for_is_read_and_taken_out() -> None:
    read = meter("chat.completions", "openai", STREAM)
    assert passed(read, OPENAI_NULL, OPENAI_FINISH, OPENAI_TOTAL, DONE) == OPENAI_NULL + OPENAI_FINISH + DONE
    assert read.usage() == Usage(prompt_tokens=20, cached_tokens=16, completion_tokens=9, reasoning_tokens=5)


def test_the_total_is_found_among_other_events_of_one_read() -> None:
    read = meter("chat.completions", "openai", STREAM)
    assert passed(read, OPENAI_TOKEN + OPENAI_TOTAL + DONE) == OPENAI_TOKEN + DONE
    assert read.usage().completion_tokens == 9


@pytest.mark.parametrize("engine", ["openai", "custom"])
def test_what_the_client_asked_for_stays(engine: str) -> None:
    document = {"stream": True, "stream_options": {"include_usage": True}}
    read = meter("chat.completions", engine, document)
    events = (OPENAI_NULL, OPENAI_TOTAL, DONE)
    assert passed(read, *events) == b"".join(events)
    assert read.usage().prompt_tokens == 20


def test_spaces_and_other_line_ends_are_understood() -> None:
    token = b'data: {"choices": [{"delta": {"content": "a"}}], "usage": null}\r\n\r\n'
    total = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}\r\n\r\n'
    read = meter("chat.completions", "openai", STREAM)
    assert passed(read, token + total + b"data: [DONE]\r\n\r\n") == token + b"data: [DONE]\r\n\r\n"
    assert read.usage() == Usage(prompt_tokens=3, completion_tokens=4)


def test_a_client_that_leaves_is_counted_by_events() -> None:
    read = meter("chat.completions", "openai", STREAM, prompt_tokens=18)
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
    thought = b'data: {"choices":[{"delta":{"reasoning_content":"Hm","content":null},"finish_reason":null}]}\n\n'
    tool = b'data: {"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{"}}]}}]}\n\n'
    passed(read, role, thought, thought + OPENAI_NULL, OPENAI_TOKEN, tool)
    assert read.usage(left_early=True) == Usage(prompt_tokens=18, completion_tokens=5, estimated=True)


def test_events_of_several_choices_are_all_counted() -> None:
    read = meter("completions", "openai", STREAM | {"n": 2}, prompt_tokens=2)
    event = b'data: {"choices":[{"index":0,"text":"a"},{"index":1,"text":"b"}]}\n\n'
    passed(read, event, event)
    assert read.usage(left_early=True).completion_tokens == 4


def test_vllm_says_with_every_event_what_was_used() -> None:
    read = meter("chat.completions", "vllm", STREAM, prompt_tokens=99)
    events = [vllm(text, n) for n, text in enumerate(("", "Hello", " there"))]
    unasked = b"".join(vllm(text, n, said=False) for n, text in enumerate(("", "Hello", " there")))
    assert passed(read, *events) == unasked
    assert read.usage(left_early=True) == Usage(prompt_tokens=21, completion_tokens=2)


def test_vllm_events_in_one_read_lose_only_what_was_not_asked_for() -> None:
    total = b'data: {"choices":[],"usage":{"prompt_tokens":21,"total_tokens":24,"completion_tokens":3}}\n\n'
    events = vllm("a", 1) + vllm("b", 3, finish='"length"') + total + DONE
    kept = vllm("a", 1, said=False) + vllm("b", 3, said=False, finish='"length"')
    read = meter("chat.completions", "vllm", STREAM)
    assert passed(read, events) == kept + DONE
    assert read.usage() == Usage(prompt_tokens=21, completion_tokens=3)
    read = meter("chat.completions", "vllm", STREAM | {"stream_options": {"include_usage": True}})
    assert passed(read, events) == kept + total + DONE
    asked = {"include_usage": True, "continuous_usage_stats": True}
    read = meter("chat.completions", "vllm", STREAM | {"stream_options": asked})
    assert passed(read, events) == events
    assert read.usage() == Usage(prompt_tokens=21, completion_tokens=3)


def test_vllm_choices_are_added_up() -> None:
    read = meter("chat.completions", "vllm", STREAM | {"n": 2})
    passed(read, vllm("a", 1), vllm("b", 1, index=1), vllm("c", 2) + vllm("d", 4, index=1))
    assert read.usage(left_early=True) == Usage(prompt_tokens=21, completion_tokens=6)


def test_an_engine_that_does_not_know_the_question_is_counted_by_events() -> None:
    read = meter("chat.completions", "sglang", STREAM, prompt_tokens=7)
    passed(read, OPENAI_TOKEN, OPENAI_TOKEN)
    assert read.usage(left_early=True) == Usage(prompt_tokens=7, completion_tokens=2, estimated=True)


def test_llama_cpp_says_with_every_event_what_was_used() -> None:
    role = b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}]}\n\n'
    read = meter("chat.completions", "llama_cpp", STREAM)
    asked = [role, llama("a", 1), llama("b", 3)]
    unasked = [role, llama("a", 1, said=False), llama("b", 3, said=False)]
    assert passed(read, *asked) == b"".join(unasked)
    assert read.usage(left_early=True) == Usage(prompt_tokens=35, cached_tokens=23, completion_tokens=3)


def test_llama_cpp_keeps_the_timings_that_it_ends_with() -> None:
    last = llama("", 3, finish='"stop"')
    read = meter("chat.completions", "llama_cpp", STREAM)
    assert passed(read, llama("a", 1) + llama("b", 3) + last + DONE) == (
        llama("a", 1, said=False) + llama("b", 3, said=False) + last + DONE
    )
    assert read.usage() == Usage(prompt_tokens=35, cached_tokens=23, completion_tokens=3)
    read = meter("chat.completions", "llama_cpp", STREAM | {"timings_per_token": True})
    assert passed(read, llama("a", 1) + last) == llama("a", 1) + last
    assert read.usage().completion_tokens == 3


def test_llama_cpp_choices_are_added_up() -> None:
    read = meter("chat.completions", "llama_cpp", STREAM | {"n": 2})
    passed(read, llama("a", 1), llama("b", 4, index=1), llama("", 2, finish='"stop"'))
    assert read.usage() == Usage(prompt_tokens=35, cached_tokens=23, completion_tokens=6)


def test_llama_cpp_that_has_not_begun_is_estimated() -> None:
    read = meter("chat.completions", "llama_cpp", STREAM, prompt_tokens=40)
    assert read.usage(left_early=True) == Usage(prompt_tokens=40, estimated=True)


ANTHROPIC = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","content":[],"usage":{"input_tokens":3,'
    b'"cache_creation_input_tokens":10,"cache_read_input_tokens":25,"cache_creation":{"ephemeral_5m_input_tokens":10},'
    b'"output_tokens":1}}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"text":"A"}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"text":" b"}}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    b'"usage":{"output_tokens":15}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)


@pytest.mark.parametrize("joined", [False, True])
def test_messages_say_the_prompt_first_and_the_rest_last(joined: bool) -> None:
    read = meter("messages", "anthropic", STREAM)
    assert passed(read, *([b"".join(ANTHROPIC)] if joined else ANTHROPIC)) == b"".join(ANTHROPIC)
    assert read.usage() == Usage(prompt_tokens=38, cached_tokens=25, completion_tokens=15)


def test_messages_that_break_off_are_counted_by_events() -> None:
    read = meter("messages", "anthropic", STREAM)
    passed(read, *ANTHROPIC[:3])
    expected = Usage(prompt_tokens=38, cached_tokens=25, completion_tokens=2, estimated=True)
    assert read.usage(left_early=True) == expected
    assert read.usage(left_early=True) == expected


def test_responses_say_it_with_their_last_event() -> None:
    created = (
        b'event: response.created\ndata: {"type":"response.created","response":{"tools":[{"parameters":'
        b'{"properties":{"usage":{"type":"string"}}}}],"usage":null}}\n\n'
    )
    delta = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"x"}\n\n'
    completed = (
        b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":{"input_tokens":32,'
        b'"input_tokens_details":{"cached_tokens":7},"output_tokens":12,"output_tokens_details":{"reasoning_tokens":8},'
        b'"total_tokens":44},"tools":[{"parameters":{"properties":{"usage":{"type":"string"}}}}]}}\n\n'
    )
    read = meter("responses", "vllm", STREAM, prompt_tokens=30)
    assert passed(read, created, delta, delta) == created + delta + delta
    assert read.usage(left_early=True) == Usage(prompt_tokens=30, completion_tokens=2, estimated=True)
    read.feed(completed)
    assert read.usage() == Usage(prompt_tokens=32, cached_tokens=7, completion_tokens=12, reasoning_tokens=8)


# --- bodies ---


def in_pieces(body: bytes, size: int) -> list[bytes]:
    return [body[i : i + size] for i in range(0, len(body), size)]


@pytest.mark.parametrize("size", [1, 7, 100, 5000, 1 << 20])
@pytest.mark.parametrize("first", [True, False])
def test_usage_is_found_at_either_end_of_a_large_body(first: bool, size: int) -> None:
    usage = b'"usage":{"prompt_tokens":70,"total_tokens":70}'
    data = b'"data":[' + b",".join(b"0.12345" for _ in range(2000 if size < 100 else 20_000)) + b"]"
    body = b"{" + (usage + b"," + data if first else data + b"," + usage) + b"}"
    read = meter("embeddings", "vllm", {})
    assert passed(read, *in_pieces(body, size), headers=JSON) == body
    assert read.usage() == Usage(prompt_tokens=70)


@pytest.mark.parametrize(
    ("operation", "body", "expected"),
    [
        ("rerank", b'{"usage":{"total_tokens":18},"results":[]}', Usage(prompt_tokens=18)),
        ("score", b'{"data":[],"usage":{"prompt_tokens":9,"total_tokens":9,"completion_tokens":0}}', Usage(9)),
        (
            "chat.completions",
            b'{"choices":[],"usage":{"completion_tokens":3,"prompt_tokens":27,"total_tokens":30,'
            b'"prompt_tokens_details":{"cached_tokens":26}},"timings":{"cache_n":26,"prompt_n":1,"predicted_n":3}}',
            Usage(prompt_tokens=27, cached_tokens=26, completion_tokens=3),
        ),
        (
            "chat.completions",  # one that counts reasoning apart
            b'{"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":115,'
            b'"completion_tokens_details":{"reasoning_tokens":100}}}',
            Usage(prompt_tokens=10, completion_tokens=105, reasoning_tokens=100),
        ),
        (
            "messages",
            b'{"content":[],"usage":{"cache_read_input_tokens":25,"input_tokens":1,"output_tokens":2}}',
            Usage(prompt_tokens=26, cached_tokens=25, completion_tokens=2),
        ),
        ("chat.completions", b'{"usage":{"prompt_tokens":-4,"completion_tokens":null}}', Usage(5, estimated=False)),
        ("embeddings", b'{"data":[]}', Usage(prompt_tokens=5, estimated=True)),
        ("chat.completions", b'{"choices":"' + b"x" * 100 + b'"}', Usage(5, 0, 28, estimated=True)),
        ("moderations", b'{"results":[]}', Usage(prompt_tokens=5, estimated=True)),
        ("images.generations", b'{"data":[{"b64_json":"aa"},{"b64_json":"bb"}]}', Usage(images=2)),
        (
            "images.edits",
            b'{"data":[{"url":"http://x","b64_json":null}],"usage":{"input_tokens":50,"output_tokens":60}}',
            Usage(prompt_tokens=50, completion_tokens=60, images=1),
        ),
        (
            "audio.transcriptions",
            b'{"text":"hi","usage":{"type":"duration","seconds":9}}',
            Usage(audio_seconds=9.0),
        ),
        ("audio.transcriptions", b'{"language":"en","duration":"8.47","text":"hi"}', Usage(audio_seconds=8.47)),
        ("audio.translations", b'{"task":"translate","duration": 8.5}', Usage(audio_seconds=8.5)),
        ("audio.transcriptions", b"plain text", Usage(audio_seconds=3.5)),
    ],
)
@pytest.mark.parametrize("size", [1, 11, 1 << 20])
def test_bodies_of_every_kind(operation: str, body: bytes, expected: Usage, size: int) -> None:
    read = meter(operation, "custom", {}, prompt_tokens=5, audio_seconds=3.5)
    assert passed(read, *in_pieces(body, size), headers=JSON) == body
    assert read.usage() == expected


def test_speech_says_how_long_it_is_if_it_is_a_wav_file() -> None:
    wav = b"RIFF\xff\xff\xff\xffWAVEfmt " + b"\x10\0\0\0\1\0\1\0" + (24_000).to_bytes(4, "little")
    wav += (48_000).to_bytes(4, "little") + b"\2\0\x10\0data\xff\xff\xff\xff"
    read = meter("audio.speech", "vox_box", {}, prompt_tokens=5)
    passed(read, *in_pieces(wav + bytes(72_000), 1000), headers=[(b"content-type", b"audio/wav")])
    assert read.usage() == Usage(audio_seconds=1.5)
    read = meter("audio.speech", "vox_box", {}, prompt_tokens=5)
    passed(read, b"ID3" + bytes(5000), headers=[(b"content-type", b"audio/mpeg")])
    assert read.usage() == Usage()


def test_an_error_uses_nothing() -> None:
    read = meter("chat.completions", "vllm", {}, prompt_tokens=5)
    body = b'{"error":{"message":"too long"}}'
    assert passed(read, body, headers=JSON, status=400) == body
    assert read.usage() == Usage()


def test_a_body_that_nobody_waited_for_is_estimated() -> None:
    read = meter("chat.completions", "vllm", {}, prompt_tokens=5)
    assert read.usage(left_early=True) == Usage(prompt_tokens=5, estimated=True)


# --- whatever comes ---


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(
                [
                    OPENAI_TOKEN,
                    OPENAI_NULL,
                    OPENAI_TOTAL[:90],
                    b'"usage":',
                    b'"usage":{',
                    b',"timings":{',
                    b'"index":',
                    DONE,
                ]
            ),
        ),
        max_size=8,
    ),
    engine=st.sampled_from(["openai", "vllm", "llama_cpp"]),
    operation=st.sampled_from(["chat.completions", "completions", "responses", "messages", "embeddings"]),
    n=st.sampled_from([1, 2]),
)
def test_nothing_that_comes_breaks_it(pieces: list[bytes], engine: str, operation: str, n: int) -> None:
    """Without anything injected it passes byte for byte."""
    read = Meter(operation, {"n": n, "stream": True})
    assert passed(read, *pieces) == b"".join(pieces)
    read.usage()
    stripping = meter(operation, engine, {"n": n, "stream": True})
    passed(stripping, *pieces)
    stripping.usage(left_early=True)
    body = Meter(operation, {})
    assert passed(body, *pieces, headers=JSON) == b"".join(pieces)
    body.usage()


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=80), written=st.integers(1, 50))
def test_no_text_is_mistaken_for_numbers(text: str, written: int) -> None:
    tricky = text + '"usage":{"completion_tokens":999},"timings":{"predicted_n":999}'
    content = orjson.dumps(tricky).decode()[1:-1]
    for engine, make in (("vllm", vllm), ("llama_cpp", llama)):
        read = meter("chat.completions", engine, STREAM)
        assert passed(read, make(content, written)) == make(content, written, said=False)
        assert read.usage(left_early=True).completion_tokens == written
