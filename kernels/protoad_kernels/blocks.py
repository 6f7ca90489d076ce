# mypy: allow-untyped-defs
"""Tiles of the kernels that walk along the feature axis, and the loads and strides they share."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["Blocks", "batch_stride", "blocks", "load_rows"]


class Blocks(NamedTuple):
    """Prototypes, tokens and features of a tile, powers of two, its warps, and how many tiles are on their way."""

    k: int
    n: int
    d: int
    warps: int
    stages: int

    def launch(self) -> dict[str, int]:
        """Gives what a kernel is launched with."""
        return {
            "BLOCK_K": self.k,
            "BLOCK_N": self.n,
            "BLOCK_D": self.d,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def blocks(k: int, d: int) -> Blocks:
    """All prototypes, beside as many tokens and features as every kernel compiles without spilling registers."""
    block_k = max(16, triton.next_power_of_2(k))
    block_d = min(16 if block_k > 32 else 32, max(16, triton.next_power_of_2(d)))
    if block_k == 16:
        return Blocks(block_k, 64, block_d, 4, 3)
    if block_k <= 64:
        return Blocks(block_k, 32, block_d, 8, 3)
    return Blocks(block_k, 16, block_d, 8, 1)


def batch_stride(tensor: Tensor) -> int:
    """Entries from one item to the next; 0 for what all items share."""
    return 0 if len(tensor) == 1 else tensor.stride(0)


@triton.jit
def load_rows(base, rows, columns, num_rows, num_columns):
    """The tile (rows columns) of a dense matrix in float32, 0 outside."""
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    tile = tl.load(base + rows[:, None].to(tl.int64) * num_columns + columns[None, :], mask=inside, other=0.0)
    return tile.to(tl.float32)
