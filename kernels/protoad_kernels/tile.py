# mypy: allow-untyped-defs
"""What Sinkhorn's kernels and their relatives do with a tile of the cost; notation as in `sinkhorn`."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from protoad_kernels import tiers

__all__ = ["empty", "launch_sizes"]

LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2))
INF = tl.constexpr(math.inf)
# v is absorbed when an entry leaves 2^-32..2^32: what underflows in M is then less than 2^(64 - 126) of a token's mass.
LOWEST, HIGHEST = tl.constexpr(2.0**-32), tl.constexpr(2.0**32)


def empty(cost: Tensor, *shape: int) -> Tensor:
    """Memory on the device of the cost."""
    return torch.empty(shape, dtype=torch.float32, device=cost.device)


def launch_sizes(tile: tiers.Tile) -> dict[str, int]:
    """The arguments of a launch that a tile determines."""
    # All registers a thread of 8 warps can have: left alone, the assembler spills some to fit more programs in.
    sizes = {"BLOCK_K": tile.block_k, "ROWS": tile.rows, "LANES": tile.lanes}
    return sizes | {"num_warps": tile.num_warps, "maxnreg": 255}


@triton.jit
def tile_tokens(ROWS: tl.constexpr, LANES: tl.constexpr):
    return tl.arange(0, ROWS)[:, None] * LANES + tl.arange(0, LANES)[None, :]


@triton.jit
def tile_offsets(item, prototypes, tokens, n, k):
    # In 64 bits all along: a thread's addresses then differ by constants, instead of taking two registers each.
    return (item * k + prototypes.to(tl.int64))[None, :, None] * n + tokens.to(tl.int64)[:, None, :]


@triton.jit
def load_tile(pointer, item, prototypes, tokens, real, inside, n, k, other):
    offsets = tile_offsets(item, prototypes, tokens, n, k)
    return tl.load(pointer + offsets, mask=real[None, :, None] & inside[:, None, :], other=other)


@triton.jit
def store_tile(pointer, value, item, prototypes, tokens, real, inside, n, k):
    offsets = tile_offsets(item, prototypes, tokens, n, k)
    tl.store(pointer + offsets, value, mask=real[None, :, None] & inside[:, None, :])


@triton.jit
def sum_of_tokens(tile):
    return tl.sum(tl.sum(tile, 0), 1)


@triton.jit
def lowest_of_tokens(tile):
    return tl.min(tl.min(tile, 0), 1)


@triton.jit
def sum_of_prototypes(tile):
    return tl.sum(tile, 1)


@triton.jit
def load_row_mass(row_mass, offsets, inside):
    """a, 0 beside the tokens."""
    if row_mass is None:
        return tl.where(inside, 1.0, 0.0)
    else:
        return tl.load(row_mass + offsets, mask=inside, other=0.0)


@triton.jit
def load_start(start, a, offsets, inside):
    """The f to start from, in units of the cost; -inf where there is no mass."""
    if start is None:
        return tl.where(a > 0, 0.0, -INF)
    else:
        return tl.load(start + offsets, mask=inside, other=-INF)


@triton.jit
def load_parts(partial, item, splits, k, other, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr):
    """All parts (splits k) of an item: every program reduces them in the same order."""
    parts, prototypes = tl.arange(0, BLOCK_S)[:, None], tl.arange(0, BLOCK_K)[None, :]
    offsets = (item * splits + parts) * k + prototypes
    return tl.load(partial + offsets, mask=(parts < splits) & (prototypes < k), other=other)


@triton.jit
def kernel_matrix(cost, gauge, inside, scale):
    """M and s."""
    distance = gauge[None, :, None] - cost
    shift = tl.where(inside, tl.max(distance, 1), 0.0)
    return tl.exp2((distance - shift[:, None, :]) * scale), shift


@triton.jit
def start_terms(cost, gauge, f, scale):
    """What the first columns sum: exp(f + (G - C) / epsilon), in [1, n] if G is the lowest C - f."""
    return tl.exp2((gauge[None, :, None] - cost + f[:, None, :]) * scale)


@triton.jit
def out_of_range(v, real):
    """Whether v is to be absorbed; a NaN is not."""
    highest, lowest = tl.max(v, 0), tl.min(tl.where(real, v, 1.0), 0)
    return (highest > HIGHEST) | (lowest < LOWEST)


@triton.jit
def absorb(gauge, v, real, scale):
    """The gauge with v absorbed, and as the new v what rounding the gauge has left over."""
    logarithm = tl.log2(tl.where(real, v, 1.0))
    absorbed = gauge + logarithm / scale
    rest = tl.exp2(logarithm - (absorbed - gauge) * scale)
    return absorbed, tl.where(real, rest, 0.0)


@triton.jit
def store_potential(pointer, row, v, gauge, prototypes, real, k, scale):
    """Stores g, to base e."""
    potential = (tl.log2(tl.where(real, v, 1.0)) / scale + gauge) * (scale * LN2)
    tl.store(pointer + row * k + prototypes, potential, mask=real)


@triton.jit
def row_potential(u, shift, scale):
    """f, to base e."""
    return tl.where(u == 0, -INF, (tl.log2(tl.where(u == 0, 1.0, u)) - shift * scale) * LN2)


@triton.jit
def next_columns(sums, b, real):
    """The next v, b / (M u); 0 beside the prototypes."""
    return b / tl.where(real, sums, 1.0)


@triton.jit
def largest_error(v, next_v, real):
    """The largest relative error of a column sum, which is b v / next_v; NaN, which tl.max would drop, if any is."""
    errors = tl.where(real, tl.abs(v / tl.where(real, next_v, 1.0) - 1), 0.0)
    total = tl.sum(errors, 0)
    return tl.where(total == total, tl.max(errors, 0), total)
