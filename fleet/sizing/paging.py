"""How vLLM pages its KV cache: what one request takes of it, to the byte. Pure.

Layers are grouped by kind, all groups have pages of one size, and a block costs a page of each layer of a group; so
windows and states take whole blocks, and far more than the window where many tokens are in flight.
"""

from dataclasses import dataclass
from math import ceil

from fleet.sizing.facts import LayerKind, Layers
from fleet.sizing.kv import state_bytes, token_bytes

_BLOCK = 16
"""Tokens."""


@dataclass(frozen=True)
class Group:
    """Layers of one kind, which share a block table."""

    kind: LayerKind
    block: int
    """Tokens."""
    window: int = 0
    tables: int = 1
    """So many groups alike."""

    def blocks(self, context: int, in_flight: int, state_blocks: int) -> int:
        """Of one request of ``context`` tokens."""
        match self.kind:
            case LayerKind.STATE:
                each = state_blocks
            case LayerKind.SLIDING:
                each = -(-min(self.window - 1 + in_flight, context) // self.block) + 1
            case LayerKind.CROSS:
                each = -(-self.window // self.block)
            case _:
                each = -(-context // self.block)
        return each * self.tables


@dataclass(frozen=True)
class Paging:
    groups: tuple[Group, ...]
    block_bytes: int
    """Of one block, in all layers that share it; 0: nothing is kept."""
    in_flight: int
    """Prompt tokens that may be computed before a window moves on."""
    state_blocks: int = 1

    def blocks(self, context: int) -> int:
        return sum(group.blocks(context, self.in_flight, self.state_blocks) for group in self.groups)

    def request_bytes(self, context: int) -> int:
        """That one request of ``context`` tokens takes."""
        return self.blocks(context) * self.block_bytes

    def most_sequences(self, kv_bytes: int) -> int | None:
        """With state layers each decoding sequence holds a block of every such group; None: no such cap."""
        held = sum(group.tables for group in self.groups if group.kind is LayerKind.STATE)
        return kv_bytes // self.block_bytes // held if held else None


def paging(
    layers: tuple[Layers, ...],
    *,
    tensor_parallel: int = 1,
    dtype: str = "auto",
    in_flight: int,
    prefix_caching: bool = True,
    draft_tokens: int = 0,
) -> Paging:
    """Of the layers of one stage."""
    kept = tuple(layer for layer in layers if layer.count and layer.kind is not LayerKind.ENCODER)
    sizes = {layer: token_bytes(layer, tensor_parallel, dtype) for layer in kept}
    state_blocks = (2 if prefix_caching else 1) + draft_tokens
    if all(layer.kind in (LayerKind.FULL, LayerKind.MLA) for layer in kept):
        whole = ceil(sum(layer.count * sizes[layer] for layer in kept) * _BLOCK)
        return Paging((Group(LayerKind.FULL, _BLOCK),) if kept else (), whole, in_flight)
    block, page = _page(kept, sizes, tensor_parallel)
    size = _group_size([layer.count for layer in kept])
    groups = tuple(_group(layer, sizes[layer], block, page, size) for layer in kept)
    return Paging(groups, size * page, in_flight, state_blocks)


def _page(kept: tuple[Layers, ...], sizes: dict[Layers, float], tensor_parallel: int) -> tuple[int, int]:
    """(tokens, bytes) of a page of the layers that keep most for a token: state layers ask for larger blocks."""
    widest = max(sizes.values())
    state = max((state_bytes(layer.state, tensor_parallel) for layer in kept if layer.state), default=0)
    if not widest:
        return _BLOCK, state
    block = _BLOCK * max(1, ceil(state / (_BLOCK * widest)))
    return block, ceil(block * widest)


def _group_size(counts: list[int]) -> int:
    least, most = min(counts), max(counts)
    return most if most < 1.5 * least else least


def _group(layer: Layers, token: float, block: int, page: int, size: int) -> Group:
    own = max(_BLOCK, int(page // token) // _BLOCK * _BLOCK) if token else block
    return Group(layer.kind, own, layer.window, ceil(layer.count / size))
