"""Which kernel and which tile serve a problem of a given size: tiles as large as compile without spilling registers."""

from __future__ import annotations

from typing import NamedTuple

import triton

__all__ = ["MAX_PROTOTYPES", "Split", "Tile", "backward_tier", "forward_tier", "plan_tile"]

MAX_PROTOTYPES = 128

# Of more prototypes a thread would hold too many: the vectors over them do not fit beside the matrix.
_MAX_RESIDENT = 64
# Programs that fill a large GPU, one on each multiprocessor.
_PROGRAMS = 132
# So many tiles are no work for several programs: an estimate of what one could do in the time of another launch.
_LAUNCH = 8
# Every program of a step sums over all splits: beyond this, reading the partial sums costs more than it saves.
_MAX_SPLITS = 32


class Tile(NamedTuple):
    """The prototypes and tokens one program holds at a time, all powers of two.

    Tokens lie in `rows` of `lanes`: the compiler gives each warp 32 of a row and spreads the prototypes over the warps,
    so that a thread holds few entries of a vector over prototypes, and few of one over tokens.
    """

    block_k: int
    rows: int
    lanes: int
    num_warps: int

    @property
    def block_n(self) -> int:
        """Tokens in all."""
        return self.rows * self.lanes


class Split(NamedTuple):
    """An item too large for one tile: `splits` programs, each of which walks over `chunk` tokens tile by tile.

    One program runs all iterations in one launch; several need a launch for each iteration.
    """

    tile: Tile
    splits: int
    chunk: int


def forward_tier(b: int, n: int, k: int, *, stops: bool) -> Tile | Split:
    """The tile that holds a whole item, or how to walk over it.

    Args:
        b: items.
        n: tokens.
        k: prototypes.
        stops: whether an item may stop early, which only a program that sees all of it can decide.
    """
    return _resident(n, k, 1 << 14) or _split(1 if stops else triton.cdiv(_PROGRAMS, b), n, k)


def backward_tier(b: int, n: int, k: int) -> Tile | Split:
    """As `forward_tier`, for two matrices in registers."""
    return _resident(n, k, 1 << 13) or _split(triton.cdiv(_PROGRAMS, b), n, k)


def plan_tile(n: int, k: int) -> Tile:
    """A tile for programs that need nothing of each other."""
    return _tile(n, k, 1 << 12)


def _resident(n: int, k: int, entries: int) -> Tile | None:
    tile = _tile(n, k, entries)
    return tile if tile.block_n >= n and tile.block_k <= _MAX_RESIDENT else None


def _tile(n: int, k: int, entries: int) -> Tile:
    """As many tokens as fit beside all prototypes into so many entries; few prototypes count as 16.

    A thread gets at most 64 entries, 8 prototypes (16 of 128), and 16 tokens.
    """
    block_k = triton.next_power_of_2(k)
    block_n = min(max(32, triton.next_power_of_2(n)), entries // max(16, block_k))
    rows = min(block_n // 32, max(8, block_n // 64))
    return Tile(block_k, rows, block_n // rows, min(8, max(1, block_k * block_n // 1024, block_k // 8, block_n // 256)))


def _split(programs: int, n: int, k: int) -> Split:
    tile = _tile(n, k, 1 << (13 if k <= _MAX_RESIDENT else 12))
    tiles = triton.cdiv(n, tile.block_n)
    splits = 1 if tiles <= _LAUNCH else min(programs, _MAX_SPLITS, tiles)
    chunk = triton.cdiv(tiles, splits) * tile.block_n
    return Split(tile, triton.cdiv(n, chunk), chunk)
