"""The gateway as a process in front of a real llama.cpp, driven by the official client."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.unit.gateway.process import free_port, gateway_process, new_database
from tests.unit.gateway.world import KEY, World

pytestmark = pytest.mark.slow

QUESTION = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]


@pytest.fixture(scope="module")
def engine(llama_server_binary: Path, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a llama-server that serves the model ``m``."""
    port = free_port()
    log = tmp_path_factory.mktemp("engine") / "log"
    command = [
        *(str(llama_server_binary), "-m", str(small_model), "--alias", "m", "--no-webui", "--metrics"),
        *("--host", "127.0.0.1", "--port", str(port), "-t", "1", "-c", "4096", "-np", "2"),
    ]
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            _until(lambda: _healthy(url, process, log), within=60)
            yield url
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def world(engine: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(new_database(f"sqlite:///{tmp_path_factory.mktemp('gateway') / 'db'}"))
    world.add_key(KEY)
    world.serve("m", engine, capacity=2)
    return world


@pytest.fixture(scope="module")
def base(world: World) -> Iterator[str]:
    with gateway_process(str(world.database.url)) as (base, _):
        yield base


@pytest.fixture
def client(base: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["m"]
    assert client.models.retrieve("m").owned_by == "holdfast"


def test_a_question_is_answered(client: openai.OpenAI) -> None:
    answer = chat(client, model="m", messages=QUESTION, temperature=0, max_tokens=20)
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


def test_an_answer_streams_token_by_token(client: openai.OpenAI) -> None:
    stream = chat(
        client,
        model="m",
        messages=QUESTION,
        temperature=0,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert len(chunks) > 5
    assert chunks[-1].usage.completion_tokens > 0


def test_a_prompt_is_completed(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="m", prompt="One, two, three,", temperature=0, max_tokens=8)
    assert answer.choices[0].text


HI = [{"role": "user", "content": "hi"}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]
BAD: list[tuple[str, dict[str, object]]] = [
    ("chat/completions", {}),
    ("chat/completions", {"messages": "abc"}),
    ("chat/completions", {"messages": [], "max_tokens": 1}),
    ("chat/completions", {"messages": [1]}),
    ("chat/completions", {"messages": [{}], "max_tokens": 1}),
    ("chat/completions", {"messages": [{"role": "x", "content": "hi"}], "max_tokens": 1}),
    ("chat/completions", {"messages": IMAGE}),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "foo"}]}]}),
    ("chat/completions", {"messages": HI, "max_tokens": "x"}),
    ("chat/completions", {"messages": HI, "max_tokens": 1, "temperature": "hot"}),
    ("chat/completions", {"messages": HI, "max_tokens": 1, "n": 0}),
    ("chat/completions", {"messages": HI, "max_tokens": 1, "stop": 5}),
    ("chat/completions", {"messages": HI, "max_tokens": 1, "response_format": {"type": "foo"}}),
    ("chat/completions", {"messages": HI, "max_tokens": 1, "tools": "x"}),
    ("chat/completions", {"messages": HI, "max_tokens": 1, "tools": [{"type": "function"}]}),
    ("chat/completions", {"messages": HI, "max_tokens": 1, "logit_bias": "x"}),
    ("chat/completions", {"messages": HI, "max_tokens": 1, "grammar": "root ::= ("}),
    ("chat/completions", {"messages": HI, "max_tokens": 1, "stream": "yes"}),
    ("chat/completions", {"messages": HI, "max_tokens": 1, "stream": True, "tools": "x"}),
    ("chat/completions", {"messages": [{"role": "user", "content": "word " * 9000}], "max_tokens": 1}),
    ("completions", {}),
    ("completions", {"prompt": None}),
    ("completions", {"prompt": ["a", 1.5]}),
    ("completions", {"prompt": [99999999], "max_tokens": 1}),
    ("completions", {"prompt": {"a": 1}, "max_tokens": 1}),
    ("embeddings", {"input": "a"}),
]


@pytest.mark.parametrize(("path", "body"), BAD, ids=range(len(BAD)))
def test_nothing_that_a_client_asks_of_an_engine_gives_a_5xx(
    client: openai.OpenAI, path: str, body: dict[str, object]
) -> None:
    headers = {"authorization": f"Bearer {client.api_key}"}
    answer = httpx.post(f"{client.base_url}{path}", json={"model": "m", **body}, headers=headers, timeout=60)
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


def test_what_the_engine_cannot_do_it_says_itself(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        client.embeddings.create(model="m", input="hello")
    assert error.value.status_code == 400
    assert "--embedding" in error.value.message


def test_the_engines_own_refusals_pass_through(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        chat(client, model="m", messages="not a list")


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        chat(client, model="n", messages=QUESTION)
    assert error.value.code == "model_not_found"


def test_a_wrong_key_is_refused(base: str) -> None:
    stranger = openai.OpenAI(base_url=f"{base}/v1", api_key="hf-key-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_a_client_that_leaves_frees_the_engine(client: openai.OpenAI, engine: str) -> None:
    stream = client.completions.create(model="m", prompt="Once upon a time", max_tokens=2000, stream=True)
    next(iter(stream))
    assert _processing(engine) == 1
    stream.close()
    _until(lambda: _processing(engine) == 0, within=2)


def test_a_model_without_replicas_is_unavailable(client: openai.OpenAI, world: World) -> None:
    world.add_deployment("coming", phase="deploying")
    _until(lambda: "coming" in [model.id for model in client.models.list()], within=2)
    with pytest.raises(openai.InternalServerError) as error:
        chat(client, model="coming", messages=QUESTION)
    assert error.value.status_code == 503
    assert "deploying" in error.value.message
    assert error.value.response.headers["retry-after"] == "5"


def chat(client: openai.OpenAI, **options: Any) -> Any:
    create: Any = client.chat.completions.create  # its overloads know no request that is wrong on purpose
    return create(**options)


def _healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, log.read_text(errors="replace")
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def _processing(engine: str) -> float:
    lines = httpx.get(f"{engine}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("llamacpp:requests_processing "))


def _until(condition: Callable[[], bool], *, within: float) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
