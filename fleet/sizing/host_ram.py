"""What engines of several ranks take of a host's RAM (vLLM, SGLang). Pure."""

from math import ceil

from fleet.sizing.cards import GIB
from fleet.sizing.needs import Question, Terms

_ENGINE = 2 * GIB
_RANK = 2 * GIB
"""Of the API server and of each worker: Python, PyTorch and CUDA's host side. Not measured, on the safe side."""
_SHARED_MEMORY = GIB


def of_ranks(question: Question) -> Terms:
    shape = question.shape
    terms = {"engine": _ENGINE + _RANK * shape.gpus_per_host}
    if not question.on_cpu:
        # Pages of the file that is just read; on CPUs the weights themselves are counted, and no file twice.
        terms["loading"] = question.facts.largest_file_bytes
    if shape.gpus > 1:
        terms["shared_memory"] = _SHARED_MEMORY
    if question.workload.kv_offload_bytes:
        terms["kv_offload"] = ceil(question.workload.kv_offload_bytes / shape.hosts)
    return terms
