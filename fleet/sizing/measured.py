"""What an engine said of its memory when it started. Pure; bytes of the fullest card (of RAM, on CPUs)."""

from fleet.model import Record


class Measured(Record):
    """None: it did not say."""

    weights_bytes: int | None = None
    kv_bytes: int | None = None
    kv_tokens: int | None = None
    """So many tokens of context fit, over all requests."""
    activation_bytes: int | None = None
    non_torch_bytes: int | None = None
    graph_bytes: int | None = None
    compute_bytes: int | None = None
    """llama.cpp: compute buffers."""
    host_bytes: int | None = None
    """llama.cpp: buffers in RAM beside those on cards."""
    longest_context: int | None = None
    """That would fit for one request, where it said so."""

    def __bool__(self) -> bool:
        return any(value is not None for value in self.model_dump().values())
