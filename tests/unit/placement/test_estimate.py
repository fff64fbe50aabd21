"""The guess of what a replica needs."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.sizing.estimate import replica_memory

sizes = st.integers(0, 1 << 42)
contexts = st.integers(16, 1_000_000)
concurrencies = st.integers(1, 1024)
GIB = 1 << 30


@settings(deadline=None)
@given(sizes, contexts, concurrencies, sizes, contexts, concurrencies)
def test_more_of_anything_never_needs_less(a: int, b: int, c: int, d: int, e: int, f: int) -> None:
    smaller = replica_memory(min(a, d), min(b, e), min(c, f))
    larger = replica_memory(max(a, d), max(b, e), max(c, f))
    assert 0 < smaller <= larger


@settings(deadline=None)
@given(sizes, contexts, concurrencies)
def test_weights_and_a_cache_for_every_request_fit_in(size: int, context: int, concurrency: int) -> None:
    assert replica_memory(size, context, concurrency) >= size + 32 * 1024 * context * concurrency


def test_guess_is_near_what_was_measured() -> None:
    """SmolLM2-135M, 4 requests of 2048 tokens: up to 390 MB measured. An 8 B model of 5 GB, one of 8192: about 6 GB."""
    assert 390e6 < replica_memory(93_000_000, 2048, 4) < 1.2 * GIB
    assert 6 * GIB < replica_memory(5 * GIB, 8192, 1) < 8 * GIB
