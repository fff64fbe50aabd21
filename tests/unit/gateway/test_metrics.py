"""What the gateway counts, alone and as one of several processes."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.gateway.metrics import Metrics
from fleet.usage import Usage

USAGE = Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=3, reasoning_tokens=2, audio_seconds=1.5, images=2)


@dataclass
class Engine:
    instance_id: str
    in_flight: int


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """As Prometheus reads it."""
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            if sample.name == f"holdfast_gateway_{name}" and sample.labels == labels:
                return sample.value
    return None


OF_KEY = {"model": "chat", "target": "d", "tenant": "key-1"}


def test_a_request_is_counted_by_all_that_it_belongs_to() -> None:
    metrics = Metrics(())
    metrics.finished("chat", 200, 0.3)
    metrics.first_token("chat", 0.07)
    metrics.settled("chat", "d", "key-1", 200, USAGE, queued=0.2, first_token=0.06)
    assert value(metrics, "requests_total", model="chat", code="200") == 1
    assert value(metrics, "target_requests_total", **OF_KEY, code="200") == 1
    kinds = ("prompt", "cached", "completion", "reasoning")
    assert [value(metrics, "tokens_total", **OF_KEY, kind=kind) for kind in kinds] == [10, 4, 3, 2]
    assert value(metrics, "audio_seconds_total", **OF_KEY) == 1.5
    assert value(metrics, "images_total", **OF_KEY) == 2
    assert value(metrics, "queue_seconds_sum", model="chat") == 0.2
    assert value(metrics, "target_time_to_first_token_seconds_count", model="chat", target="d") == 1
    assert value(metrics, "request_duration_seconds_sum", model="chat") == 0.3
    assert value(metrics, "aborts_total", model="chat") is None


def test_what_went_another_way_is_counted() -> None:
    metrics = Metrics(())
    metrics.settled("chat", "d", "key-1", 499, Usage())
    metrics.aborted("chat")
    metrics.retried("chat")
    metrics.fell_back("chat", "other")
    assert value(metrics, "aborts_total", model="chat") == 2
    assert value(metrics, "retries_total", model="chat") == 1
    assert value(metrics, "fallbacks_total", model="chat", to="other") == 1


def test_buckets_are_cumulative_and_bounds_belong_to_them() -> None:
    metrics = Metrics(())
    gaps = metrics.gaps("chat", "d")
    for seconds in (0.001, 0.0011, 0.03, 99.0):
        gaps.observe(seconds)
    name, labels = "inter_token_latency_seconds_bucket", {"model": "chat", "target": "d"}
    found = [value(metrics, name, **labels, le=le) for le in ("0.001", "0.0025", "0.03", "5.0", "+Inf")]
    assert found == [1, 2, 3, 3, 4]
    assert metrics.gaps("chat", "d") is gaps


def test_what_is_gone_is_forgotten_and_nothing_else() -> None:
    metrics = Metrics(())
    for model, tenant in (("chat", "key-1"), ("embed", "key-2")):
        metrics.finished(model, 200, 0.1)
        metrics.settled(model, "d", tenant, 200, USAGE, first_token=0.1)
        metrics.gaps(model, "d").observe(0.1)
        metrics.fell_back(model, "x")
    metrics.forget("chat")
    assert b"chat" not in metrics.render()
    assert b"embed" in metrics.render()
    metrics.forget_tenant("key-2")
    assert b"key-2" not in metrics.render()
    assert value(metrics, "requests_total", model="embed", code="200") == 1


def test_what_is_going_on_is_read_when_asked_for() -> None:
    engines, loads = [Engine("i-1", 2), Engine("i-2", 0), Engine("i-1", 1)], [("chat", 3, 7)]
    metrics = Metrics(engines, loads=lambda: loads)
    assert value(metrics, "in_flight", endpoint="i-1") == 3
    assert value(metrics, "in_flight", endpoint="i-2") == 0
    assert value(metrics, "model_in_flight", model="chat") == 3
    assert value(metrics, "waiting", model="chat") == 7
    loads.clear()
    assert value(metrics, "waiting", model="chat") is None


def test_every_process_answers_for_all(folder: Path) -> None:
    one = Metrics([Engine("i-1", 2)], loads=lambda: [("chat", 2, 1)])
    two = Metrics([Engine("i-1", 3)], loads=lambda: [("chat", 3, 0)])
    for metrics in (one, two, two):
        metrics.finished("chat", 200, 0.5)
        metrics.settled("chat", "d", "key-1", 200, USAGE)
    one.flush()
    two.flush()
    for metrics in (one, two):
        assert value(metrics, "requests_total", model="chat", code="200") == 3
        assert value(metrics, "tokens_total", **OF_KEY, kind="prompt") == 30
        assert value(metrics, "request_duration_seconds_bucket", model="chat", le="0.5") == 3
        assert value(metrics, "in_flight", endpoint="i-1") == 5
        assert value(metrics, "waiting", model="chat") == 1


def test_what_a_process_counted_outlives_it(folder: Path) -> None:
    ended = Metrics([Engine("i-1", 2)])
    ended.finished("chat", 200, 0.5)
    ended.stop()
    after = Metrics([Engine("i-1", 1)])
    assert value(after, "requests_total", model="chat", code="200") == 1
    assert value(after, "in_flight", endpoint="i-1") == 1


def test_what_was_going_on_in_a_killed_process_ends_with_it(folder: Path) -> None:
    code = (
        "from api.gateway.metrics import Metrics; from tests.unit.gateway.test_metrics import Engine;"
        "m = Metrics([Engine('i-1', 5)]); m.finished('chat', 200, 1.0); m.flush()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    metrics = Metrics(())
    assert value(metrics, "in_flight", endpoint="i-1") == 5  # nothing tells it from one that has nothing to say
    [left] = folder.iterdir()
    os.utime(left, (0, 0))
    assert value(metrics, "in_flight", endpoint="i-1") is None
    assert value(metrics, "requests_total", model="chat", code="200") == 1


def test_what_others_counted_for_a_model_that_is_gone_is_not_shown(folder: Path) -> None:
    one, two = Metrics(()), Metrics(())
    two.finished("chat", 200, 0.5)
    two.flush()
    one.forget("chat")
    assert value(one, "requests_total", model="chat", code="200") is None
    one.know("chat")
    assert value(one, "requests_total", model="chat", code="200") == 1


def test_a_file_that_is_no_snapshot_harms_nobody(folder: Path) -> None:
    (folder / "holdfast-1-x.json").write_bytes(b"{")
    metrics = Metrics(())
    metrics.finished("chat", 200, 0.5)
    assert value(metrics, "requests_total", model="chat", code="200") == 1
    assert Metrics(()).render()


def test_a_folder_that_is_gone_stops_nobody(folder: Path) -> None:
    metrics = Metrics(())
    folder.rmdir()
    metrics.finished("chat", 200, 0.5)
    metrics.flush()
    assert value(metrics, "requests_total", model="chat", code="200") == 1
