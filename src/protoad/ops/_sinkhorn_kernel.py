"""The kernel matrix that Sinkhorn's solver and its adjoint share, and what they call things.

Notation, per item: C (k n) is the cost, prototypes first because reducing a short last axis is slow on a CPU; a (n) and
b (k) are the masses. A gauge G (k), in units of the cost, keeps the kernel in range:

    M = exp((G - C - s) / epsilon),  s_n = max_k (G - C)_kn,     so that every token has its largest entry at 1;
    v = b / (M (a r)),  r = 1 / (M^T v)                          is one iteration, columns first;
    plan = M o (v (a r)^T),  f = log(a r) - s / epsilon,  g = log v + G / epsilon.

Written with r and not with u = a r, a token without mass (a = 0) needs no special case and has a finite gradient.
The first r is the one of f = 0. When v spreads over too many orders of magnitude it is absorbed into the gauge and M
is built anew; the iterations from one such rebuilding to the next are called a segment. Kept for the gradient are the
cost, the masses, and of each iteration r, v and the gauge they refer to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "History",
    "Masses",
    "chunks",
    "first_row",
    "kernel_matrix",
    "products",
    "solvable",
    "split",
    "weigh",
]

# How many entries of the cost are solved together: so many that M stays in a core's cache from iteration to iteration.
CHUNK = 1 << 18


class Masses(NamedTuple):
    """Masses that the iteration can run on, and what had to be changed for it.

    An item without any mass has no transport: it is solved as if all its tokens and prototypes had mass 1, and then
    given the zero plan.

    Attributes:
        a: (b n), or None for ones.
        b: (b k), above 0.
        wanted: (b k), b as asked for.
        empty: (b 1) bool, items without mass, or None if there can be none.
    """

    a: Tensor | None
    b: Tensor
    wanted: Tensor
    empty: Tensor | None


class History(NamedTuple):
    """Of each iteration: r (.. t n), v (.. t k), the gauge of both (.. t k), and whether a segment starts (.. t)."""

    r: Tensor
    v: Tensor
    gauge: Tensor
    start: Tensor


def solvable(cost: Tensor, row_mass: Tensor | None, col_mass: Tensor | None) -> Masses:
    """The masses to solve with, from those of the public functions."""
    *leading, n, k = cost.shape
    if row_mass is None:
        if col_mass is None:
            b = cost.new_full((math.prod(leading), k), n / k)
            return Masses(None, b, b, None)
        wanted = col_mass.reshape(-1, k)
        return Masses(None, torch.where(wanted == 0, 1, wanted), wanted, None)
    a = row_mass.reshape(-1, n)
    total = a.sum(-1, keepdim=True)
    wanted = (total / k).expand(-1, k) if col_mass is None else col_mass.reshape(-1, k)
    empty = total == 0
    b = torch.where(empty | (wanted == 0), 1, wanted)
    return Masses(torch.where(empty, 1, a), b, wanted, empty)


def chunks(cost: Tensor) -> list[int] | list[slice]:
    """Which items to solve together: an index drops the axis of the batch, a slice keeps it."""
    items, size = cost.shape[0], cost.shape[1] * cost.shape[2]
    if cost.device.type != "cpu":
        return [slice(None)]
    together = CHUNK // size
    if items == 1 or together < 4:
        return list(range(items))
    return [slice(first, first + together) for first in range(0, items, together)]


def split(history: Tensor, n: int, k: int) -> History:
    """The parts of a history (.. t n+2k+1), as views."""
    r, v, gauge, start = history.split((n, k, k, 1), -1)
    return History(r, v, gauge, start.squeeze(-1))


def kernel_matrix(cost: Tensor, gauge: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """M (.. k n) and s (.. n). Divided by epsilon last: close costs subtract without a rounding error."""
    kernel = gauge.unsqueeze(-1) - cost
    shift = kernel.amax(-2)
    return kernel.sub_(shift.unsqueeze(-2)).div_(epsilon).exp_(), shift


def weigh(kernel: Tensor, a: Tensor | None) -> Tensor:
    """M with its columns times a."""
    return kernel if a is None else kernel * a.unsqueeze(-2)


def first_row(shift: Tensor, a: Tensor | None, epsilon: float) -> Tensor:
    """The r of f = 0 at tokens with mass, and of f = -inf at others."""
    r = (shift / epsilon).exp_()
    return r if a is None else torch.where(a > 0, r / a, 0)


def products(weighted: Tensor, kernel: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The functions x (.. n) -> (M a) x (.. k) and y (.. k) -> M^T y (.. n)."""
    if kernel.ndim == 2:
        return partial(torch.mv, weighted), partial(torch.mv, kernel.mT)
    return partial(_from_the_left, weighted.mT), partial(_from_the_left, kernel)


def _from_the_left(matrix: Tensor, vector: Tensor) -> Tensor:
    # torch.bmm takes 5 to 30 times as long with the vector on the right, which misses the batched matrix product.
    return torch.bmm(vector.unsqueeze(-2), matrix).squeeze(-2)
