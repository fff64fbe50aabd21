"""From exit code and log to a cause, a hint and what can help."""

import json
import time
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.engines.failures import classify, known_classes
from fleet.engines.llama_cpp import LlamaCpp
from fleet.instances import Remedy

RAW = json.loads(files("fleet.engines").joinpath("failure_patterns.json").read_text())
OWN = LlamaCpp.failure_patterns
NO_MEMORY, PORT = "CUDA out of memory", "OSError: [Errno 98] Address already in use"
UNKNOWN_MODEL = "unknown model architecture: 'x'"


@pytest.mark.parametrize(("line", "expected"), RAW["samples"].items())
def test_sample_is_understood(line: str, expected: str) -> None:
    found = classify(1, f"INFO loading\n{line}\nTraceback\n", served=False)
    assert found.failure_class == expected
    assert found.hint.startswith(known_classes()[expected].hint)
    assert "The engine said: " in found.hint
    known = known_classes()[expected]
    assert (found.remedy, found.at_most, found.gpu_fault) == (known.remedy, known.at_most, known.gpu_fault)


NAMED_BY_HOSTS = {"hung", "container_oom"}


def test_every_class_has_a_sample_and_says_what_to_do() -> None:
    assert len(known_classes()) == len(RAW["classes"])
    assert set(known_classes()) == set(RAW["samples"].values()) | NAMED_BY_HOSTS
    for known in known_classes().values():
        assert bool(known.patterns) == (known.name not in NAMED_BY_HOSTS)
        assert known.hint.endswith(".")


HELP = {
    "port": Remedy.HERE,
    "network": Remedy.HERE,
    "hung": Remedy.HERE,
    "slow": Remedy.HERE,
    "oom_load": Remedy.ELSEWHERE,
    "gpu_busy": Remedy.ELSEWHERE,
    "disk_full": Remedy.ELSEWHERE,
    "driver": Remedy.ELSEWHERE,
    "gpu_fault": Remedy.ELSEWHERE,
    "gpu_error": Remedy.ELSEWHERE,
    "not_installed": Remedy.ELSEWHERE,
    "no_docker": Remedy.ELSEWHERE,
    "no_gpu_runtime": Remedy.ELSEWHERE,
    "no_device": Remedy.ELSEWHERE,
    "image_auth": Remedy.ELSEWHERE,
    "image_arch": Remedy.ELSEWHERE,
    "image": Remedy.NEVER,
    "registry": Remedy.HERE,
    "oom_kv": Remedy.CHANGED,
    "ctx_too_long": Remedy.CHANGED,
    "bad_flag": Remedy.NEVER,
    "unsupported_arch": Remedy.NEVER,
    "remote_code": Remedy.NEVER,
    "auth": Remedy.NEVER,
    "not_found": Remedy.NEVER,
    "weights_mismatch": Remedy.NEVER,
}


@pytest.mark.parametrize(("name", "remedy"), HELP.items())
def test_what_helps_against_a_cause(name: str, remedy: Remedy) -> None:
    assert known_classes()[name].remedy is remedy


def test_only_gpus_that_leave_no_other_explanation_are_certainly_at_fault() -> None:
    blamed = {c.name: c.gpu_fault for c in known_classes().values() if c.gpu_fault}
    assert blamed == {"gpu_fault": "certain", "gpu_error": "possible"}


def test_causes_that_may_pass_once_are_tried_once_more() -> None:
    assert {c.name for c in known_classes().values() if c.at_most == 1} == {
        "oom_runtime",
        "corrupt_file",
        "nccl",
        "container_oom",
    }


@pytest.mark.parametrize(
    ("line", "fits"),
    [
        (
            "To serve at least one request with the model's max seq len (40960), (5.62 GiB is needed, ...) Based on "
            "the available memory, the estimated maximum model length is 32640. Try",
            32640,
        ),
        ("To serve at least one request with the model's max seq len (40960), 5.6 GiB is needed", None),
        ("No available memory for the cache blocks", None),
        (
            "User-specified max_model_len (65536) is greater than the derived max_model_len "
            "(max_position_embeddings=40960 or model_max_length=None)",
            40960,
        ),
        ("max_model_len (9) is greater than the derived max_model_len (8192)", 8192),
        ("the estimated maximum model length is " + "9" * 30, None),
    ],
)
def test_context_that_would_fit_is_read_where_it_is_printed(line: str, fits: int | None) -> None:
    assert classify(1, f"ValueError: {line}", served=False).max_model_len == fits


def test_earliest_line_is_the_cause_and_the_rest_its_consequences() -> None:
    assert classify(1, f"ok\n{NO_MEMORY}\n{PORT}\n", served=False).failure_class == "oom_load"
    assert classify(1, f"ok\n{PORT}\n{NO_MEMORY}\n", served=False).failure_class == "port"


def test_engine_knows_its_own_words_best() -> None:
    line = "gguf_init: invalid magic characters, No space left on device"
    assert classify(1, line, served=False).failure_class == "disk_full"
    assert classify(1, line, served=False, extra=OWN).failure_class == "corrupt_file"


def test_cause_that_comes_first_is_the_cause_whoever_knows_it() -> None:
    log = f"{NO_MEMORY}\nerror: invalid argument: --x"
    assert classify(1, log, served=False, extra=OWN).failure_class == "oom_load"


@pytest.mark.parametrize(
    ("exit_code", "expected"),
    [
        *((code, "killed") for code in (-9, 137)),
        *((code, "crashed") for code in (-11, -6, -4, 139, 134, 132)),
        *((code, "unknown") for code in (0, 1, -15, None)),
    ],
)
def test_exit_code_speaks_when_the_log_says_nothing(exit_code: int | None, expected: str) -> None:
    found = classify(exit_code, "all is well\n", served=False)
    assert (found.failure_class, found.exit_code, found.remedy) == (expected, exit_code, Remedy.HERE)
    assert found.hint
    assert found.log_tail == "all is well\n"


def test_engine_that_had_served_is_always_tried_again() -> None:
    assert classify(1, UNKNOWN_MODEL, served=False).remedy is Remedy.NEVER
    found = classify(1, UNKNOWN_MODEL, served=True)
    assert (found.remedy, found.served) == (Remedy.HERE, True)


@pytest.mark.parametrize("line", RAW["samples"])
def test_of_an_engine_that_had_served_only_words_about_gpus_are_believed(line: str) -> None:
    found = classify(1, line, served=True)
    assert found.remedy is (Remedy.ELSEWHERE if found.gpu_fault else Remedy.HERE)
    assert (found.at_most, found.max_model_len) == (None, None)


@pytest.mark.parametrize(
    "line",
    [
        "INFO non-default args: {'max_model_len': 2048, 'trust_remote_code': False}",
        "INFO LLM engine config: max_model_len=2048, trust_remote_code=False, rope_scaling=None",
        "print_info: rope scaling     = linear",
        "print_info: rope type        = 2",
        "WARNING: --foo is deprecated and will be removed; use --bar",
    ],
)
def test_ordinary_line_of_a_start_is_no_cause(line: str) -> None:
    assert classify(-9, line, served=False, extra=OWN).failure_class == "killed"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ValueError: User-specified max_model_len (9) is greater than the derived max_model_len", "ctx_too_long"),
        ("ValueError: rope_scaling must have a factor", "ctx_too_long"),
        ("Please pass the argument `trust_remote_code=True` to allow custom code to be run.", "remote_code"),
        ("please set the option `trust_remote_code=True` to remove this error", "remote_code"),
        ("ValueError: quantization method fp8 is not supported on this device", "quant_unsupported"),
        ("Use `--allow-deprecated-quantization` to go on", "quant_unsupported"),
    ],
)
def test_same_words_in_an_error_are(line: str, expected: str) -> None:
    assert classify(1, line, served=False).failure_class == expected


@settings(deadline=None)
@given(st.none() | st.integers(-64, 255), st.text(), st.booleans())
def test_any_text_gets_an_answer(exit_code: int | None, text: str, served: bool) -> None:
    found = classify(exit_code, text, served=served, extra=OWN)
    assert found.failure_class in {*known_classes(), "killed", "crashed", "unknown"}
    assert found.hint
    assert found.remedy is not Remedy.NEVER or not served


def openings() -> list[str]:
    """Texts with which patterns begin to match: where a gap follows, all of it is tried again from each."""
    samples = [line[: len(line) // 2] for line in RAW["samples"]]
    return [
        *samples,
        "Error: ",
        "error: ",
        "pass ",
        "unable to allocate ",
        "quantization method ",
        "exec ",
        "HCCL",
        "x",
    ]


@pytest.mark.parametrize("opening", openings())
def test_line_of_a_megabyte_takes_no_time(opening: str) -> None:
    line = (opening * (1 + (1 << 20) // len(opening)))[: 1 << 20]
    began = time.process_time()
    classify(1, line, served=False, extra=OWN)
    assert time.process_time() - began < 1
