# mypy: allow-untyped-defs
"""Tiles of the kernels with a feature axis, how tokens are split over programs, and loads and stores they share."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["Blocks", "batch_stride", "blocks", "load_rows", "split_tokens", "store_rows"]

# Programs that fill a large GPU, two on each of its multiprocessors.
_PROGRAMS = 264


class Blocks(NamedTuple):
    """Prototypes, tokens and features of a tile, powers of two, and its warps."""

    k: int
    n: int
    d: int
    warps: int

    def launch(self) -> dict[str, int]:
        """Gives what a kernel is launched with.

        Told that it may use all registers, the assembler does not spill some to make room for more programs.
        """
        return {
            "BLOCK_K": self.k,
            "BLOCK_N": self.n,
            "BLOCK_D": self.d,
            "num_warps": self.warps,
            "num_stages": 3,
            "maxnreg": 255,
        }


def blocks(k: int, d: int, *, most_k: int = 64, n: int = 32, most_d: int = 64) -> Blocks:
    """As many prototypes and features as there are, up to the most whose registers compile without spills."""
    block_k = min(most_k, max(16, triton.next_power_of_2(k)))
    return Blocks(block_k, n, min(most_d, max(16, triton.next_power_of_2(d))), 4 if block_k == 16 else 8)


def split_tokens(n: int, block_n: int, programs: int) -> tuple[int, int]:
    """Gives how many splits of n tokens fill the GPU beside so many programs, and the tokens of each.

    A split leaves a partial sum behind: there are no more splits than that takes, and none below two blocks of tokens.
    """
    splits = min(triton.cdiv(_PROGRAMS, programs), triton.cdiv(n, 2 * block_n))
    chunk = triton.cdiv(triton.cdiv(n, splits), block_n) * block_n
    return triton.cdiv(n, chunk), chunk


def batch_stride(tensor: Tensor) -> int:
    """Entries from one item to the next; 0 for what all items share."""
    return 0 if len(tensor) == 1 else tensor.stride(0)


@triton.jit
def load_rows(base, rows, columns, num_rows, num_columns):
    """The tile (rows columns) of a dense matrix in float32, 0 outside."""
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    tile = tl.load(base + rows[:, None].to(tl.int64) * num_columns + columns[None, :], mask=inside, other=0.0)
    return tile.to(tl.float32)


@triton.jit
def store_rows(base, tile, rows, columns, num_rows, num_columns):
    """Stores a tile (rows columns) of a dense matrix in the dtype of the matrix."""
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    pointers = base + rows[:, None].to(tl.int64) * num_columns + columns[None, :]
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside)
