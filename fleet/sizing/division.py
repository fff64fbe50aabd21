"""Whether a model divides over so many ranks. Pure."""

from fleet.sizing.facts import ModelFacts
from fleet.sizing.sizing import Shape
from fleet.sizing.weights import kv_heads


def refusal(facts: ModelFacts, shape: Shape) -> str:
    """Why no engine starts in this shape; empty: none knows of a reason."""
    ranks = shape.tensor_parallel
    if facts.heads % ranks:
        return f"tensor parallelism {ranks} does not divide the model's {facts.heads} attention heads"
    if shape.pipeline_parallel > facts.layers_total:
        return f"{shape.pipeline_parallel} pipeline stages are more than the model's {facts.layers_total} layers"
    for name, width in _widths(facts):
        if width % ranks:
            return f"tensor parallelism {ranks} does not divide the {name} width of {width}"
        block = _block(facts)
        if ranks > 1 and block and width // ranks % block:
            return (
                f"with tensor parallelism {ranks} each rank gets {width // ranks} of the {name} width of {width}, "
                f"which is no multiple of the FP8 block of {block}"
            )
    return ""


def doubts(facts: ModelFacts, shape: Shape) -> tuple[str, ...]:
    """What works badly, or not on every engine."""
    found = []
    ranks, heads = shape.tensor_parallel, kv_heads(facts)
    if heads and heads % ranks and ranks % heads:
        found.append(f"{heads} KV heads do not divide over tensor parallelism {ranks}: some engines refuse it")
    if heads and ranks > heads and not ranks % heads:
        found.append(f"{heads} KV heads over {ranks} ranks: each is kept {ranks // heads} times")
    group = facts.quantization.group if facts.quantization is not None else 0
    for name, width in _widths(facts):
        if ranks > 1 and group and width // ranks % group:
            found.append(f"{width // ranks} of the {name} width on each rank is no multiple of the group of {group}")
    return tuple(found)


def _block(facts: ModelFacts) -> int:
    return facts.quantization.block[1] if facts.quantization is not None else 0


def _widths(facts: ModelFacts) -> list[tuple[str, int]]:
    expert = facts.moe.expert_ffn if facts.moe is not None else 0
    return [(name, width) for name, width in (("MLP", facts.ffn), ("expert", expert)) if width]
