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
from fleet.placement.request import ModelCard
from fleet.sizing.sizing import Shape
from fleet.specs import DeploymentSpec, KvCacheSpec, LoraSpec, SpeculativeSpec
from tests.unit.engines.starts import gang_of, sizing_of, start_of

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


def sized(*args: str, start: dict[str, Any] | None = None, **changes: Any) -> Command:
    told = {"context": 2048, "sequences": 3, "batched_tokens": 1024, "shape": Shape(), "utilization": None, **changes}
    wanted = spec(*args)
    return ADAPTER.command(
        start_of(wanted, sizing_of(**told), **{"gpu_uuids": (), "card": ModelCard(), **(start or {})})
    )


def test_command_says_what_was_booked() -> None:
    assert list(sized().argv) == [
        *("/e/bin/engine", "--model", "/models/m", "--alias", "chat", "--host", "127.0.0.1", "--port", "9001"),
        *("--metrics", "--no-webui", "--offline", "--parallel", "3", "--ctx-size", "6144", "--threads", "4"),
        *("--n-gpu-layers", "0", "--cache-ram", "128", "--ubatch-size", "1024", "--log-verbosity", "4"),
    ]


def test_part_of_the_layers_goes_to_cards_and_is_divided_evenly() -> None:
    made = sized(start={"gpu_uuids": ("GPU-a", "GPU-b")}, gpu_layers=20, batched_tokens=4096)
    assert values(made, "--n-gpu-layers") == ["20"]
    assert values(made, "--tensor-split") == ["1,1"]
    assert values(made, "--ubatch-size") == values(made, "--batch-size") == ["4096"], "a step is part of a batch"
    assert values(sized(start={"gpu_uuids": ("GPU-a",)}), "--n-gpu-layers") == ["999"]
    assert "--tensor-split" not in sized(start={"gpu_uuids": ("GPU-a",)}).argv


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        (("-ub", "9"), "--ubatch-size"),
        (("-c", "9"), "--ctx-size"),
        (("-lv", "1"), "--log-verbosity"),
        (("-ts", "3,1"), "--tensor-split"),
        (("--split-mode", "row"), "--tensor-split"),
    ],
)
def test_persons_flags_win_over_what_was_booked(given: tuple[str, ...], gone: str) -> None:
    made = sized(*given, start={"gpu_uuids": ("GPU-a", "GPU-b")})
    assert gone not in made.argv
    assert made.argv[-len(given) :] == given


def test_other_builds_are_not_told_how_much_to_say() -> None:
    """Older ones print prompts at the level at which this one prints buffers."""
    wanted = spec().model_copy(update={"engine_version": "7654-abc"})
    assert "--log-verbosity" not in ADAPTER.command(start_of(wanted, sizing_of())).argv


def test_model_is_served_for_what_it_is_for() -> None:
    assert "--embedding" in sized(start={"card": ModelCard(task="embed")}).argv
    assert "--reranking" in sized(start={"card": ModelCard(task="rerank")}).argv
    assert ADAPTER.readiness(spec(), ModelCard(task="embed")).path == "/v1/embeddings"
    assert "--embedding" not in sized("--reranking", start={"card": ModelCard(task="embed")}).argv


def test_kv_cache_adapters_and_speculation() -> None:
    made = command(
        kv_cache=KvCacheSpec(dtype="q8_0"),
        lora=(LoraSpec(name="a", path="/a.gguf"), LoraSpec(name="b", path="/b.gguf")),
        speculative=SpeculativeSpec(method="draft_model", tokens=5, model="/d.gguf"),
    )
    assert values(made, "--cache-type-k") == values(made, "--cache-type-v") == ["q8_0"]
    assert values(made, "--flash-attn") == ["on"]
    assert values(made, "--lora") == ["/a.gguf,/b.gguf"]
    assert values(made, "--spec-type") == ["draft-simple"]
    assert values(made, "--spec-draft-model") == ["/d.gguf"]
    assert values(made, "--spec-draft-n-max") == ["5"]


def test_followers_lend_their_cards_to_the_leader() -> None:
    leader, follower = (sized(start=gang_of(rank)) for rank in (0, 1))
    assert values(leader, "--rpc") == ["10.0.0.2:9002"]
    assert values(leader, "--tensor-split") == ["1,1,1,1"]
    assert follower.argv == ("/e/bin/ggml-rpc-server", "-H", "10.0.0.2", "-p", "9001")
    assert ADAPTER.followers_accept


def test_what_a_person_asks_for_is_what_sizing_is_asked() -> None:
    load = ADAPTER.workload(spec("-c", "8192", "-np", "2", "-ngl", "12", "-ub", "256", "-ctk", "q4_0", "-fa", "off"))
    assert (load.context, load.concurrency, load.gpu_layers, load.batched_tokens) == (4096, 2, 12, 256)
    assert (load.kv_dtype, load.flash_attention) == ("q4_0", False)
    assert ADAPTER.workload(spec("-ngl", "0")).gpu_layers == 0
    assert ADAPTER.workload(spec("-ngl", "all")).gpu_layers is None
    assert ADAPTER.workload(spec(max_model_len=99, concurrency=5)).context == 99


def test_contradictions_are_told_where_they_stand() -> None:
    found = ADAPTER.conflicts(spec("--jinja", "--parallel=2", "-c", "99", max_model_len=100, concurrency=2))
    assert list(found) == [2]
    assert "200" in found[2]


BUFFERS = (Path(__file__).parents[2] / "data" / "engines" / "llama-server-0.1.2.txt").read_text()
"""Captured from llama-server 0.1.2 with ``--log-verbosity 4``."""
# Made of the same templates: no GPU was there to capture them from.
ON_CARDS = """load_tensors:   CPU_Mapped model buffer size =   281.81 MiB
load_tensors:        CUDA0 model buffer size =  2000.00 MiB
load_tensors:        CUDA1 model buffer size =  2403.50 MiB
llama_context:  CUDA_Host  output buffer size =     2.32 MiB
llama_kv_cache:      CUDA0 KV buffer size =   256.00 MiB
llama_kv_cache:      CUDA1 KV buffer size =   256.00 MiB
llama_kv_cache:      CUDA1 KV buffer size =    64.00 MiB
sched_reserve:      CUDA1 compute buffer size =   304.75 MiB
sched_reserve:  CUDA_Host compute buffer size =    20.00 MiB
"""
MIB = 1 << 20


def test_start_up_lines_are_read() -> None:
    measured = ADAPTER.measures(BUFFERS)
    assert (measured.weights_bytes, measured.kv_bytes) == (round(92.10 * MIB), 90 * MIB)
    assert (measured.compute_bytes, measured.kv_tokens) == (round(15.51 * MIB), 4096)
    assert measured.host_bytes is None, "all of it is in RAM"
    assert not ADAPTER.measures("nothing")


def test_start_up_lines_of_the_fullest_card_are_read_and_ram_beside() -> None:
    measured = ADAPTER.measures(ON_CARDS)
    assert (measured.weights_bytes, measured.kv_bytes) == (round(2403.5 * MIB), 320 * MIB)
    assert measured.compute_bytes == round(304.75 * MIB)
    assert measured.host_bytes == pytest.approx((281.81 + 2.32 + 20) * MIB, abs=4)


def test_talkative_healthy_log_is_no_cause_either() -> None:
    assert classified(BUFFERS, -9).failure_class == "killed"


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
