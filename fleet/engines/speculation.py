"""Speculative decoding, as sizing and engines are told of it. Pure."""

from fleet.sizing.sizing import Draft
from fleet.specs import SpeculativeSpec

_SGLANG_METHODS = {"eagle3": "EAGLE3", "mtp": "EAGLE", "ngram": "NGRAM", "draft_model": "STANDALONE"}
_LLAMA_METHODS = {"eagle3": "draft-eagle3", "mtp": "draft-mtp", "ngram": "ngram-simple", "draft_model": "draft-simple"}
_LONGEST_MATCH, _SHORTEST_MATCH = 4, 2
"""Tokens of the prompt that an n-gram guess looks for."""


def draft_of(speculative: SpeculativeSpec | None) -> Draft | None:
    """Without the draft's facts, which its files have."""
    return Draft(method=speculative.method, tokens=speculative.tokens) if speculative is not None else None


def vllm_config(speculative: SpeculativeSpec) -> dict[str, object]:
    config: dict[str, object] = {"method": speculative.method, "num_speculative_tokens": speculative.tokens}
    if speculative.model is not None:
        config["model"] = speculative.model
    if speculative.method == "eagle3":
        config["draft_tensor_parallel_size"] = 1
    if speculative.method == "ngram":
        config |= {"prompt_lookup_max": _LONGEST_MATCH, "prompt_lookup_min": _SHORTEST_MATCH}
    return config


def sglang_flags(speculative: SpeculativeSpec) -> dict[str, str]:
    """A chain of guesses, one at a time, so that ``tokens`` means the same as with other engines: SGLang counts the
    token that the model itself gives among the drafted ones."""
    flags = {"--speculative-algorithm": _SGLANG_METHODS[speculative.method]}
    if speculative.model is not None:
        flags["--speculative-draft-model-path"] = speculative.model
    if speculative.method != "ngram":
        flags |= {"--speculative-num-steps": str(speculative.tokens), "--speculative-eagle-topk": "1"}
    return {**flags, "--speculative-num-draft-tokens": str(speculative.tokens + 1)}


def llama_flags(speculative: SpeculativeSpec) -> dict[str, str]:
    flags = {"--spec-type": _LLAMA_METHODS[speculative.method]}
    if speculative.method == "ngram":
        return flags
    if speculative.model is not None:
        flags["--spec-draft-model"] = speculative.model
    return {**flags, "--spec-draft-n-max": str(speculative.tokens)}
