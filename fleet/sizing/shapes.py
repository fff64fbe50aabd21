"""Over how many cards a replica may be spread. Pure."""

from fleet.sizing.division import refusal
from fleet.sizing.facts import ModelFacts
from fleet.sizing.sizing import Shape
from fleet.sizing.weights import kv_heads


def shapes(
    engine: str, facts: ModelFacts, *, most_gpus_per_host: int, most_hosts: int = 1, gpus: int | None = None
) -> tuple[Shape, ...]:
    """Candidates, fewest GPUs first, then fewest hosts. ``gpus``: only those with so many, if there are any.

    Tensor parallelism stays within a host, pipeline stages are hosts. On one host stages are used only where a person
    wants a number of GPUs that does not divide the model. llama.cpp spreads layers over the cards of one host, or over
    one card (on CPUs: the RAM) of each of several. ``most_gpus_per_host`` 0 (or ``gpus`` 0): on CPUs.
    """
    on_cpus = gpus == 0 or most_gpus_per_host == 0
    if engine == "llama_cpp":
        over_hosts = tuple(Shape(pipeline_parallel=n, hosts=n) for n in range(2, most_hosts + 1))
        if on_cpus:
            return (Shape(), *over_hosts)
        alone = tuple(Shape(pipeline_parallel=n) for n in _numbers(most_gpus_per_host, gpus))
        return (*alone, *(s for s in over_hosts if gpus in (None, s.gpus)))
    if on_cpus:
        return (Shape(),)
    ranks = [n for n in range(1, most_gpus_per_host + 1) if _divides(facts, n)]
    found = [
        Shape(tensor_parallel=n, pipeline_parallel=hosts, hosts=hosts)
        for hosts in range(1, most_hosts + 1)
        for n in ranks
        if hosts <= facts.layers_total and gpus in (None, n * hosts)
    ]
    if not found and gpus is not None and gpus <= most_gpus_per_host:
        found = _staged(facts, gpus)
    return tuple(sorted(found, key=lambda shape: (shape.gpus, shape.hosts)))


def _numbers(most: int, wanted: int | None) -> tuple[int, ...]:
    if wanted is None:
        return tuple(range(1, most + 1))
    return (wanted,) if wanted <= most else ()


def _divides(facts: ModelFacts, ranks: int) -> bool:
    shape = Shape(tensor_parallel=ranks)
    heads = kv_heads(facts)
    return not refusal(facts, shape) and (not heads or not (heads % ranks and ranks % heads))


def _staged(facts: ModelFacts, gpus: int) -> list[Shape]:
    """So many GPUs of one host as stages of the most ranks that divide the model."""
    ranks = next(n for n in range(gpus, 0, -1) if not gpus % n and _divides(facts, n))
    shape = Shape(tensor_parallel=ranks, pipeline_parallel=gpus // ranks)
    return [] if refusal(facts, shape) else [shape]
