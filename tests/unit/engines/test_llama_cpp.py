"""llama.cpp: its command line, its signs of life, and what it says when it fails."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.engines.adapter import Command, Start
from fleet.engines.catalog import ADAPTERS, resolve
from fleet.engines.failures import classify, known_classes
from fleet.engines.llama_cpp import LlamaCpp
from fleet.engines.spec import EngineSpec
from fleet.instances import EngineExit, Remedy
from fleet.specs import DeploymentSpec

ADAPTER = LlamaCpp()


def spec(*args: str, **changes: object) -> EngineSpec:
    made = EngineSpec(engine="llama_cpp", engine_version="0.1.2", model_path="m.gguf", served_name="chat", args=args)
    return made.model_copy(update=changes)


def command(*args: str, gpus: tuple[str, ...] = (), cpus: int = 8, **changes: object) -> Command:
    start = Start(Path("/e/llama-server"), spec(*args, **changes), "/models/m.gguf", gpus, "127.0.0.1", 9001, cpus)
    return ADAPTER.command(start)


def values(made: Command, flag: str) -> list[str]:
    """What follows each mention of ``flag``."""
    return [value for name, value in pairwise(made.argv) if name == flag]


def test_command_line_serves_the_model_under_the_deployments_name() -> None:
    made = command()
    assert made.argv[0] == "/e/llama-server"
    for flag, value in {
        "--model": "/models/m.gguf",
        "--alias": "chat",
        "--host": "127.0.0.1",
        "--port": "9001",
    }.items():
        assert values(made, flag) == [value]
    assert {"--metrics", "--offline"} <= set(made.argv)


@pytest.mark.parametrize(
    ("changes", "slots", "context"),
    [
        ({}, "4", "16384"),
        ({"max_model_len": 2048}, "4", "8192"),
        ({"concurrency": 3}, "3", "12288"),
        ({"max_model_len": 1000, "concurrency": 1}, "1", "1000"),
    ],
)
def test_each_of_the_slots_gets_the_whole_context(changes: dict[str, Any], slots: str, context: str) -> None:
    made = command(**changes)
    assert values(made, "--parallel") == [slots]
    assert values(made, "--ctx-size") == [context]


@pytest.mark.parametrize(("cpus", "threads"), [(1, "1"), (2, "1"), (8, "4"), (256, "16")])
def test_half_the_cores_are_left_to_others(cpus: int, threads: str) -> None:
    assert values(command(cpus=cpus), "--threads") == [threads]
    assert values(command(cpus=cpus, cpu_threads=7), "--threads") == ["7"]


def test_without_a_gpu_no_layer_goes_to_one() -> None:
    made = command()
    assert values(made, "--n-gpu-layers") == ["0"]
    assert made.env == {}


def test_engine_sees_its_own_gpus_only() -> None:
    made = command(gpus=("GPU-a", "GPU-b"))
    assert values(made, "--n-gpu-layers") == ["999"]
    assert made.env == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        (("--ctx-size", "512"), "--ctx-size"),
        (("-c", "512"), "--ctx-size"),
        (("--ctx-size=512",), "--ctx-size"),
        (("-np", "9"), "--parallel"),
        (("--parallel=9",), "--parallel"),
        (("-t", "3"), "--threads"),
        (("--threads=3",), "--threads"),
        (("-ngl", "10"), "--n-gpu-layers"),
        (("--gpu-layers", "10"), "--n-gpu-layers"),
        (("--gpu-layers=10",), "--n-gpu-layers"),
        (("-cram", "0"), "--cache-ram"),
    ],
)
def test_what_a_person_sets_is_not_set_again(given: tuple[str, ...], flag: str) -> None:
    made = command(*given)
    name, _, value = given[0].partition("=")
    assert values(made, name) == [value or given[1]]
    if name != flag:
        assert flag not in made.argv
    derived = {"--parallel", "--ctx-size", "--threads", "--n-gpu-layers", "--cache-ram"} - {flag}
    assert derived <= set(made.argv), "the others stay"


def test_arguments_come_last_and_in_order() -> None:
    args = ("--jinja", "--chat-template-kwargs", '{"a": "b=c"}', "--temp", "0.5")
    assert command(*args).argv[-5:] == args


def test_value_is_separated_from_its_flag_once() -> None:
    assert command('--chat-template-kwargs={"a":"b=c"}').argv[-2:] == ("--chat-template-kwargs", '{"a":"b=c"}')
    assert command("--lora", "x=y").argv[-2:] == ("--lora", "x=y")


@pytest.mark.parametrize(
    "arg",
    [
        *("-m", "--model", "-a", "--alias", "--host", "--port", "--api-key", "--api-key-file", "--no-metrics"),
        *("--api-prefix", "--ssl-key-file", "--ssl-cert-file", "--port=1", "--model=/etc/passwd", "--api-key=x"),
    ],
)
def test_what_holdfast_sets_itself_is_refused_with_the_remedy(arg: str) -> None:
    refused = ADAPTER.refuse(["--jinja", arg, "x"])
    assert list(refused) == [1]
    assert len(refused[1]) > 20


def test_ordinary_arguments_are_not_refused() -> None:
    assert ADAPTER.refuse(["--jinja", "-c", "512", "--ports", "--modelled=x", "-mm", "p.gguf"]) == {}


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="="), min_size=1, max_size=20), max_size=10))
def test_any_arguments_go_to_the_engine_as_they_are_after_ours(args: list[str]) -> None:
    made = command(*args)
    assert made.argv[len(made.argv) - len(args) :] == tuple(args)
    assert "--port" in made.argv[: len(made.argv) - len(args)]


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ((), "/v1/completions"),
        (("--embedding",), "/v1/embeddings"),
        (("--embeddings",), "/v1/embeddings"),
        (("--rerank",), "/v1/rerank"),
        (("--reranking",), "/v1/rerank"),
        (("--reranking", "--embedding"), "/v1/rerank"),
    ],
)
def test_readiness_is_asked_for_in_the_engines_own_kind(args: tuple[str, ...], path: str) -> None:
    probe = ADAPTER.readiness(spec(*args))
    assert probe.path == path
    assert probe.body["model"] == "chat"
    assert probe.body.get("max_tokens", 1) == 1


METRICS = """# HELP llamacpp:predicted_tokens_seconds Average generation throughput in tokens/s.
# TYPE llamacpp:predicted_tokens_seconds gauge
llamacpp:predicted_tokens_seconds 0
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
# HELP llamacpp:requests_deferred Number of requests deferred.
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 3
# HELP llamacpp:n_busy_slots_per_decode Average number of busy slots per llama_decode() call
# TYPE llamacpp:n_busy_slots_per_decode gauge
llamacpp:n_busy_slots_per_decode 1.5
"""


def test_running_and_waiting_requests_keep_it_busy() -> None:
    assert ADAPTER.busy(METRICS) == 5
    assert ADAPTER.busy(METRICS.replace("processing 2", "processing 0").replace("deferred 3", "deferred 0")) == 0
    assert ADAPTER.busy('llamacpp:requests_processing{model="m"} 1e+00\n') == 1


@pytest.mark.parametrize("text", ["", "llamacpp:n_decode_total 7", "<html>", "llamacpp:requests_processing NaN"])
def test_metrics_that_do_not_say_are_none(text: str) -> None:
    assert ADAPTER.busy(text) is None


@settings(deadline=None)
@given(st.text(), st.text("0123456789.e+-\n"))
def test_metrics_may_be_anything(text: str, number: str) -> None:
    for metrics in (text, f"llamacpp:requests_processing {text}", f"llamacpp:requests_processing {number}"):
        busy = ADAPTER.busy(metrics)
        assert busy is None or busy >= 0


def test_progress_is_what_moves_while_a_request_runs() -> None:
    assert ADAPTER.progress("llamacpp:tokens_predicted_total 0\nllamacpp:n_decode_total 16\n") == (16, True)
    assert ADAPTER.progress("llamacpp:n_decode_total 999999\n") == (999_999, True)


@pytest.mark.parametrize("text", ["", METRICS, "llamacpp:tokens_predicted_total 5", "llamacpp:n_decode_total NaN"])
def test_progress_that_the_metrics_do_not_say_is_unknown(text: str) -> None:
    assert ADAPTER.progress(text) is None


def test_counter_that_is_printed_rounded_says_so() -> None:
    """It stands still for many decodes, and standing still would be taken for a hang."""
    assert ADAPTER.progress("llamacpp:n_decode_total 1e+06\n") == (1_000_000, False)
    assert ADAPTER.progress("llamacpp:n_decode_total 1.23457e+06\n") == (1_234_570, False)


# Captured from llama-server as packaged in version 0.1.2.
LOADED = """0.00.012.431 I cmn  common_param: common_params_print_info: verbosity = 3 (adjust with the `-lv N` CLI arg)
0.00.012.564 I srv          init: The UI is disabled
0.00.012.565 I srv          init: Use --ui/--no-ui (or deprecated --webui/--no-webui) to enable/disable
0.00.012.673 W srv  llama_server: CORS is set to allow all origins ('*') and no API key is set
0.00.015.278 I srv    load_model: loading model '/models/SmolLM2-135M-Instruct.Q4_1.gguf'
0.01.038.523 I srv    load_model: initializing, n_slots = 2, n_ctx_slot = 2048, kv_unified = 'false'
0.01.054.097 I srv  llama_server: model loaded
0.01.054.154 I srv  llama_server: listening on http://127.0.0.1:18931
"""


def classified(log: str, exit_code: int | None = 1) -> EngineExit:
    return classify(exit_code, log, served=False, extra=ADAPTER.failure_patterns)


def test_nothing_that_a_healthy_engine_prints_is_a_cause() -> None:
    found = classified(LOADED, -9)
    assert (found.failure_class, found.remedy) == ("killed", Remedy.HERE)


@pytest.mark.parametrize(
    ("line", "expected", "remedy"),
    [
        ("error: invalid argument: --bogus", "bad_flag", Remedy.NEVER),
        ('error while handling argument "-c": stoi', "bad_flag", Remedy.NEVER),
        (
            "E gguf_init_from_file: failed to open GGUF file '/x.gguf' (No such file or directory)",
            "not_found",
            Remedy.NEVER,
        ),
        (
            "E gguf_init_from_reader: invalid magic characters: 'root', expected 'GGUF'",
            "corrupt_file",
            Remedy.ELSEWHERE,
        ),
        ("0.00.021.825 E gguf_init_from_reader: failed to read header", "corrupt_file", Remedy.ELSEWHERE),
        ("error loading model: unknown model architecture: 'qwen99'", "unsupported_arch", Remedy.NEVER),
        ("E srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 80", "port", Remedy.HERE),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", "oom_load", Remedy.ELSEWHERE),
    ],
)
def test_what_it_says_when_it_fails_is_understood(line: str, expected: str, remedy: Remedy) -> None:
    consequences = "E llama_model_load_from_file_impl: failed to load model\nE cmn common_init_: failed to load model\n"
    found = classified(f"{LOADED}0.01.1 {line}\n{consequences}")
    assert (found.failure_class, found.remedy) == (expected, remedy)
    assert found.hint


def test_every_class_that_an_adapter_names_exists() -> None:
    for adapter in ADAPTERS.values():
        assert {name for name, _ in adapter.failure_patterns} <= set(known_classes())


def test_every_engine_that_can_be_asked_for_has_an_adapter() -> None:
    engines = DeploymentSpec.model_json_schema()["properties"]["engine"]["enum"]
    for engine in engines:
        adapter = resolve(engine)
        assert adapter.name in ADAPTERS
        install = adapter.install(adapter.default_version)
        assert (install is None) == (engine == "custom"), "a custom engine names its own program"
        assert install is None or install.requirement.endswith(f"=={adapter.default_version}")
