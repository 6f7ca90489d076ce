"""The kernel matrix that Sinkhorn's solver, Newton's and their adjoints share, and what they call things.

Notation, per item: C (k n) is the cost, prototypes first because reducing a short last axis is slow on a CPU; a (n) and
b (k) are the masses. A gauge G (k), in units of the cost, keeps the kernel in range:

    M = exp((G - C - s) / epsilon),  s_n = max_k (G - C)_kn,     so that every token has its largest entry at 1;
    v = b / (M (a r)),  r = 1 / (M^T v)                          is one iteration, columns first;
    plan = M o (v (a r)^T),  f = log(a r) - s / epsilon,  g = log v + G / epsilon.

Written with r and not with u = a r, a token without mass (a = 0) needs no special case and has a finite gradient.
The first r is the one of f = 0, or the one that a given g brings with it. When v spreads over too many orders of
magnitude it is absorbed into the gauge and M is built anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "SPREAD",
    "Masses",
    "Product",
    "absorbed",
    "chunks",
    "first_gauge",
    "first_row",
    "iteration",
    "kernel_matrix",
    "products",
    "quick",
    "row_scale",
    "solvable",
    "spread",
    "unit_scale",
    "warm_kernel",
    "warm_row",
    "weigh",
]

# Largest log(max v / min v). The gradient squares v and r: exp(2 * 30) fits into float32, and what is left out of M is
# less than exp(30 - 68) of the sum it is missing from. The same in float64: one path for both.
SPREAD = 30.0

# Items up to this many entries are solved together, in NumPy: at n = 256, k = 10 calls are what takes the time, and
# NumPy's cost a third of torch's; up to here its batched product of matrix and vector is faster, too. Larger items
# are solved one by one in torch, each staying in the cache.
SMALL = 1 << 17
TOGETHER = 1 << 18

Product = Callable[[Any, Any], Any]


class Masses(NamedTuple):
    """Masses that the iteration can run on, and what had to be changed for it.

    An item without any mass has no transport: it is solved as if all its tokens and prototypes had mass 1, and then
    given the zero plan.

    Attributes:
        a: (b n), or None for ones.
        b: (b k).
        wanted: (b k), b as asked for.
        empty: (b 1) bool, items without mass, or None if there can be none.
    """

    a: Tensor | None
    b: Tensor
    wanted: Tensor
    empty: Tensor | None


def solvable(cost: Tensor, row_mass: Tensor | None, col_mass: Tensor | None) -> Masses:
    """The masses to solve with, from those of the public functions."""
    *leading, n, k = cost.shape
    if row_mass is None:
        b = cost.new_full((math.prod(leading), k), n / k) if col_mass is None else col_mass.reshape(-1, k)
        return Masses(None, b, b, None)
    a = row_mass.reshape(-1, n)
    total = a.sum(-1, keepdim=True)
    wanted = (total / k).expand(-1, k) if col_mass is None else col_mass.reshape(-1, k)
    empty = total == 0
    return Masses(torch.where(empty, 1, a), torch.where(empty, 1, wanted), wanted, empty)


def chunks(cost: Tensor) -> list[int] | list[slice]:
    """Which items of cost (b k n) to solve together: an index drops the axis of the batch, a slice keeps it."""
    items, size = cost.shape[0], cost.shape[1] * cost.shape[2]
    if cost.device.type != "cpu":
        return [slice(None)]
    if items == 1 or size > SMALL:
        return list(range(items))
    together = TOGETHER // size
    return [slice(first, first + together) for first in range(0, items, together)]


def kernel_matrix(cost: Tensor, gauge: Tensor, epsilon: float | Tensor) -> tuple[Tensor, Tensor]:
    """M (.. k n) and s (.. n). Divided by epsilon last: close costs subtract without a rounding error."""
    kernel = gauge.unsqueeze(-1) - cost
    shift = kernel.amax(-2)
    kernel.sub_(shift.unsqueeze(-2)).div_(epsilon).exp_()
    # What is next to the smallest number counts for nothing, but makes products up to a hundred times as slow.
    return torch.threshold_(kernel, 1e8 * torch.finfo(kernel.dtype).tiny, 0.0), shift


def weigh(kernel: Tensor, a: Tensor | None) -> Tensor:
    """M with its columns times a."""
    return kernel if a is None else kernel * a.unsqueeze(-2)


def unit_scale(b: Tensor) -> Tensor:
    """The v (.. k) that a gauge starts with: 1, and 0 for a prototype without mass."""
    return (b > 0).to(b)


def row_scale(kernel: Tensor, v: Tensor) -> Tensor:
    """The r (.. n) that goes with v."""
    return torch.matmul(v.unsqueeze(-2), kernel).squeeze(-2).reciprocal_()


def warm_kernel(cost: Tensor, g: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """M and s in the gauge of a given g; a prototype without mass, g = -inf, gets any."""
    return kernel_matrix(cost, torch.where(g > -torch.inf, g, 0) * epsilon, epsilon)


def warm_row(cost: Tensor, g: Tensor, b: Tensor, epsilon: float) -> Tensor:
    """The f - log a (.. n) that goes with a given g, in units of the cost."""
    kernel, shift = warm_kernel(cost, g, epsilon)
    return row_scale(kernel, unit_scale(b)).log_().mul_(epsilon).sub_(shift)


def first_gauge(cost: Tensor, a: Tensor | None, start: Tensor | None) -> Tensor:
    """The cheapest cost of each prototype among tokens with mass, less the f that they start with: its first column sum
    is then at least that of one token, whatever epsilon and the start are.
    """
    if start is not None:
        cost = cost - start.unsqueeze(-2)
    if a is not None:
        cost = cost.masked_fill((a == 0).unsqueeze(-2), torch.inf)
    return cost.amin(-1)


def first_row(shift: Tensor, a: Tensor | None, start: Tensor | None, epsilon: float | Tensor) -> Tensor:
    """The r (.. n) of the start, f = 0 unless given, at tokens with mass, and of f = -inf at others."""
    r = ((shift if start is None else shift + start) / epsilon).exp_()
    if a is None:
        return r
    return torch.where(a > 0, r / a if start is None else r, 0)


def absorbed(gauge: Tensor, v: Tensor, epsilon: float | Tensor) -> Tensor:
    """The gauge that lets v be 1 again; a prototype without mass, v = 0, keeps its own."""
    return gauge + epsilon * torch.where(v > 0, v, 1).log_()


def products(weighted: Tensor, kernel: Tensor) -> tuple[Product, Product]:
    """The functions out (.. k) <- (M a) x and out (.. n) <- M^T y, each of (vector, out) as `quick` gives them."""
    if _small(kernel):
        left, right = weighted.numpy(), kernel.numpy()
        if kernel.ndim == 2:
            return lambda x, out: np.dot(left, x, out=out), lambda y, out: np.dot(y, right, out=out)
        return (
            lambda x, out: np.matmul(left, x[..., None], out=out[..., None]),
            lambda y, out: np.matmul(y[:, None], right, out=out[:, None]),
        )
    if kernel.ndim == 2:
        transposed = kernel.mT
        return lambda x, out: torch.mv(weighted, x, out=out), lambda y, out: torch.mv(transposed, y, out=out)
    # torch.bmm takes 5 to 30 times as long with the vector on the right, which misses the batched matrix product.
    return (
        lambda x, out: out.copy_(torch.bmm(x.unsqueeze(-2), weighted.mT).squeeze(-2)),
        lambda y, out: out.copy_(torch.bmm(y.unsqueeze(-2), kernel).squeeze(-2)),
    )


def quick(kernel: Tensor, *tensors: Tensor) -> tuple[Any, list[Any]]:
    """The library to compute with beside `kernel`, and views of the tensors for it."""
    return (np, [one.numpy() for one in tensors]) if _small(kernel) else (torch, list(tensors))


def _small(kernel: Tensor) -> bool:
    return kernel.device.type == "cpu" and kernel.shape[-2] * kernel.shape[-1] <= SMALL


def iteration(kernel: Tensor, weighted: Tensor, b: Tensor) -> Callable[[Tensor, Tensor], None]:
    """The function (r, v) that runs as many iterations as v (.. t k) has rows: it fills v, and leaves the last r in r
    (.. n). Made once for a kernel, since making it costs as much as an iteration of a small item.
    """
    if _small(kernel):
        return _quick_iteration(kernel.numpy(), weighted.numpy(), b.numpy())
    column_sums, row_sums = products(weighted, kernel)
    sums = torch.empty_like(b)

    def run(r: Tensor, v: Tensor) -> None:
        for now in v.unbind(-2):
            column_sums(r, sums)
            torch.divide(b, sums, out=now)
            row_sums(now, r)
            torch.reciprocal(r, out=r)

    return run


def _quick_iteration(kernel: np.ndarray, weighted: np.ndarray, b: np.ndarray) -> Callable[[Tensor, Tensor], None]:
    """The same in NumPy, with every view made before the loop: at n = 256, k = 10 a view costs a tenth of a product."""
    sums = np.empty_like(b)
    together = kernel.ndim == 3
    product = np.matmul if together else np.dot
    divide, reciprocal = np.divide, np.reciprocal
    out_sums = sums[..., None] if together else sums

    def run(r: Tensor, v: Tensor) -> None:
        rows, steps = r.numpy(), np.moveaxis(v.numpy(), -2, 0)
        x, out_rows = (rows[..., None], rows[:, None]) if together else (rows, rows)
        for now, y in zip(steps, steps[..., None, :] if together else steps, strict=True):
            product(weighted, x, out_sums)
            divide(b, sums, now)
            product(y, kernel, out_rows)
            reciprocal(rows, rows)

    return run


def spread(v: Tensor) -> float:
    """The log of largest over smallest entry, of those above 0; NaN does not count."""
    values = v.numpy(force=True)
    highest, lowest = float(values.max()), float(values.min())
    if not lowest > 0:  # a prototype without mass, or NaN
        values = values[values > 0]
        highest, lowest = (float(values.max()), float(values.min())) if values.size else (1.0, 1.0)
    return math.log(highest / lowest)
