"""From nothing to an answer, on real parts: Temporal, controller, API, host, engine, model."""

from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from openai import NotFoundError, OpenAI

from tests.stack import Stack, eventually
from tests.stack_fixtures import asker

pytestmark = pytest.mark.slow

QUESTION = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def any_stack(request: pytest.FixtureRequest, new_stack: Callable[..., Stack]) -> Stack:
    url = request.getfixturevalue("module_postgres_database") if request.param == "postgresql" else ""
    stack = new_stack(database_url=url)
    stack.add_host("a")
    return stack


def test_a_model_is_deployed_asked_scaled_and_deleted(any_stack: Stack, small_model: Path) -> None:
    stack = any_stack
    created = stack.deploy("smol", str(small_model))
    assert created["status"]["phase"] in ("pending", "deploying")
    stack.until_ready("smol")
    client = OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0)

    assert [m.id for m in client.models.list()] == ["smol"]
    whole = client.chat.completions.create(model="smol", messages=QUESTION, temperature=0)  # type: ignore[arg-type]
    assert "Paris" in (whole.choices[0].message.content or "")
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 0

    stream = client.chat.completions.create(
        model="smol",
        messages=QUESTION,  # type: ignore[arg-type]
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "Paris" in text
    assert len(chunks) > 3
    assert chunks[-1].usage is not None

    completion = client.completions.create(model="smol", prompt="One, two, three,", max_tokens=8, temperature=0)
    assert completion.choices[0].text

    first = stack.instances("smol")[0]
    stack.ok(stack.http.patch("/deployments/smol", json={"spec": {"replicas": 2}}))
    stack.until_ready("smol", 2)
    pids = stack.engine_pids()
    assert len(pids) == 2
    assert first["pid"] in pids, "scaling up must not touch what runs"

    stack.ok(stack.http.patch("/deployments/smol", json={"spec": {"replicas": 1}}))
    stack.until_ready("smol", 1)
    assert len(stack.engine_pids()) == 1
    assert asker(stack)("smol")

    stack.ok(stack.http.delete("/deployments/smol"))
    stack.until_gone("smol")
    assert stack.engine_pids() == {}
    assert stack.instances() == []
    assert stack.host("a")["ram_used_bytes"] == 0
    eventually(lambda: not list(client.models.list()), within=2, what="the gateway forgets the model")
    with pytest.raises(NotFoundError):
        asker(stack)("smol")


def test_the_same_name_can_be_used_again(stack: Stack, small_model: Path, ask: Callable[[str], str]) -> None:
    for _ in range(2):
        stack.deploy("again", str(small_model))
        stack.until_ready("again")
        assert "Paris" in ask("again")
        stack.ok(stack.http.delete("/deployments/again"))
        stack.until_gone("again")


def test_a_restart_replaces_one_replica_at_a_time(stack: Stack, small_model: Path, ask: Callable[[str], str]) -> None:
    stack.deploy("again", str(small_model), replicas=2)
    stack.until_ready("again", 2)
    before = set(stack.engine_pids())
    stack.ok(stack.http.post("/deployments/again/restart"))
    least = 2

    def replaced() -> bool:
        nonlocal least
        least = min(least, stack.deployment("again")["status"]["ready_replicas"])
        return not before & set(stack.engine_pids())

    eventually(replaced, within=30, what="both engines are replaced")
    assert least >= 1
    stack.until_ready("again", 2)
    assert "Paris" in ask("again")


def test_an_engine_is_told_what_was_booked_and_what_it_says_of_it_is_kept(stack: Stack, small_model: Path) -> None:
    stack.deploy("mine", str(small_model), max_model_len=1024, concurrency=3)
    stack.until_ready("mine")
    [instance] = stack.instances("mine")
    sizing, measured = instance["sizing"], instance["measured"]
    assert (sizing["context"], sizing["sequences"], sizing["measured"]) == (1024, 3, False)
    assert stack.host("a")["ram_used_bytes"] == sizing["ram_bytes"] == instance["memory_bytes"]
    [pid] = stack.engine_pids()
    told = psutil.Process(pid).cmdline()
    for flag, value in (("--parallel", 3), ("--ctx-size", 3 * 1024), ("--ubatch-size", sizing["batched_tokens"])):
        assert told[told.index(flag) + 1] == str(value)
    for term, said in (("weights", "weights_bytes"), ("kv_cache", "kv_bytes"), ("compute", "compute_bytes")):
        assert abs(sizing["terms"][term] - measured[said]) <= 0.05 * measured[said], term

    stack.ok(stack.http.patch("/deployments/mine", json={"spec": {"replicas": 2}}))
    stack.until_ready("mine", 2)
    second = next(i for i in stack.instances("mine") if i["id"] != instance["id"])
    assert second["sizing"]["measured"], "the next one is booked by what the first one said"
    assert second["sizing"]["terms"]["compute"] == measured["compute_bytes"]


def test_a_stopped_deployment_serves_again_after_start(
    stack: Stack, small_model: Path, ask: Callable[[str], str]
) -> None:
    stack.deploy("pause", str(small_model))
    stack.until_ready("pause")
    stack.ok(stack.http.post("/deployments/pause/stop"))
    eventually(lambda: stack.deployment("pause")["status"]["phase"] == "stopped", within=30)
    assert stack.engine_pids() == {}
    stopped = httpx.post(
        f"{stack.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {stack.key}"},
        json={"model": "pause", "messages": QUESTION},
    )
    assert stopped.status_code == 503
    assert "retry-after" in stopped.headers

    stack.ok(stack.http.post("/deployments/pause/start"))
    stack.until_ready("pause")
    assert "Paris" in ask("pause")


def test_a_changed_spec_replaces_the_engine(stack: Stack, small_model: Path) -> None:
    stack.deploy("revise", str(small_model))
    stack.until_ready("revise")
    old = stack.instances("revise")[0]
    stack.ok(stack.http.patch("/deployments/revise", json={"spec": {"max_model_len": 256}}))

    def replaced() -> bool:
        found = stack.instances("revise")
        return len(found) == 1 and found[0]["revision"] == 2 and found[0]["state"] == "ready"

    eventually(replaced, within=30, what="one instance of revision 2")
    assert old["pid"] not in stack.engine_pids()


def test_metrics_of_an_engine_are_read_through_the_api(stack: Stack, small_model: Path) -> None:
    stack.deploy("count", str(small_model))
    stack.until_ready("count")
    instance = stack.instances("count")[0]["id"]
    asker(stack)("count")
    answer = stack.http.get(f"/instances/{instance}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "llamacpp:tokens_predicted_total" in answer.text
    own = httpx.get(f"{stack.url}/metrics", headers={"authorization": f"Bearer {stack.key}"}).text
    assert 'holdfast_deployments{state="ready"} 1.0' in own
    assert "holdfast_gateway" in own


def test_logs_are_read_and_followed_through_the_api(stack: Stack, small_model: Path) -> None:
    stack.deploy("talk", str(small_model))
    stack.until_ready("talk")
    instance = stack.instances("talk")[0]["id"]
    text = stack.http.get(f"/instances/{instance}/logs", params={"tail": 500}).text
    assert "llama" in text
    with stack.http.stream("GET", f"/instances/{instance}/logs", params={"tail": 1, "follow": True}) as followed:
        assert followed.status_code == 200
        asker(stack)("talk")
        seen = ""
        for chunk in followed.iter_text():
            seen += chunk
            if seen.count("\n") > 3:
                break
    assert stack.http.get(f"/instances/{instance}/logs", params={"attempt": 7}).status_code == 404


def test_an_unplaceable_deployment_says_why_and_starts_when_there_is_room(stack: Stack, small_model: Path) -> None:
    free = stack.host("a")["ram_allocatable_bytes"]
    stack.deploy("big", str(small_model), resources={"memory_bytes": free - (256 << 20), "cpu_threads": 1})
    stack.until_ready("big")
    stack.deploy("waits", str(small_model))

    def explained() -> bool:
        status = stack.deployment("waits")["status"]
        return status["phase"] == "pending" and "GiB of RAM" in status["message"]

    eventually(explained, within=15, what="the reason in the status")
    stack.ok(stack.http.delete("/deployments/big"))
    stack.until_ready("waits", within=30)
    stack.delete_everything()
    assert stack.host("a")["ram_used_bytes"] == 0


def test_an_engine_that_cannot_start_fails_with_class_and_hint(stack: Stack, small_model: Path) -> None:
    stack.deploy("wrong", str(small_model), engine_args=["--no-such-flag"])
    failed = eventually(
        lambda: (s := stack.deployment("wrong")["status"])["phase"] == "failed" and s, within=30, what="failed"
    )
    assert "bad_flag" in failed["message"]
    assert failed["hint"]
    stack.ok(stack.http.patch("/deployments/wrong", json={"spec": {"engine_args": []}}))
    stack.until_ready("wrong")


def test_embeddings_are_served(stack: Stack, small_model: Path) -> None:
    stack.deploy("embed", str(small_model), engine_args=["--embedding", "--pooling", "mean"])
    stack.until_ready("embed")
    client = OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0)
    answer = client.embeddings.create(model="embed", input=["a kitten", "a stock market"], encoding_format="float")
    assert len(answer.data) == 2
    assert len(answer.data[0].embedding) > 100


def test_an_idempotency_key_makes_a_repeated_create_harmless(stack: Stack, small_model: Path) -> None:
    body = {"name": "once", "spec": {"model": {"path": str(small_model)}, "replicas": 0}}
    first = stack.http.post("/deployments", json=body, headers={"idempotency-key": "k1"})
    again = stack.http.post("/deployments", json=body, headers={"idempotency-key": "k1"})
    other = stack.http.post("/deployments", json=body, headers={"idempotency-key": "k2"})
    assert (first.status_code, again.status_code, other.status_code) == (201, 201, 409)
    assert again.json()["created_at"] == first.json()["created_at"]


def test_a_change_of_what_somebody_else_changed_is_refused(stack: Stack, small_model: Path) -> None:
    stack.deploy("etag", str(small_model), replicas=0)
    read = stack.http.get("/deployments/etag")
    stack.ok(stack.http.patch("/deployments/etag", json={"labels": {"team": "x"}}))
    late = stack.http.patch(
        "/deployments/etag", json={"labels": {"team": "y"}}, headers={"if-match": read.headers["etag"]}
    )
    assert late.status_code == 412
    assert stack.deployment("etag")["labels"] == {"team": "x"}
