# mypy: allow-untyped-defs
"""Sinkhorn's iteration between tokens and prototypes.

Notation, per item: C (k n) is the cost, prototypes first; a (n) and b (k) are the masses. A gauge G (k), in units of
the cost, keeps the kernel matrix in range,

    M = exp((G - C - s) / epsilon),  s_n = max_k (G - C)_kn,     so that every token has its largest entry at 1,

and with v = exp(g - G / epsilon) one iteration is

    u = a / (M^T v),  v <- b / (M u).

The plan is M o (v u^T). When v leaves the range of float32 it is absorbed into the gauge. Exponents are to base 2, with
`scale` = log2(e) / epsilon. The gauge, v and the differences G - C - s carry the precision: at a small epsilon the
potential g itself has too few digits.

In the kernels a tile is (rows k lanes) and a vector over tokens (rows lanes), see `tiers.Tile`; `real` marks prototypes
and `inside` tokens that exist.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from protoad_kernels import tiers
from protoad_kernels.sinkhorn_passes import Problem, iterate_split, iterate_streaming, write_plan
from protoad_kernels.tile import (
    INF,
    LOG2E,
    absorb,
    empty,
    kernel_matrix,
    largest_error,
    launch_sizes,
    load_row_mass,
    load_start,
    load_tile,
    lowest_of_tokens,
    next_columns,
    out_of_range,
    row_potential,
    start_terms,
    store_potential,
    store_tile,
    sum_of_prototypes,
    sum_of_tokens,
    tile_tokens,
)

__all__ = ["SinkhornResult", "sinkhorn_forward"]


class SinkhornResult(NamedTuple):
    """What a solver gives: plan = exp(f + g - cost / epsilon), rows exact.

    Attributes:
        plan: (b k n).
        f: (b n), -inf for a token without mass.
        g: (b k).
        iterations: (b) int32, how many were run.
        error: (b), largest relative error of a column sum.
        history: (b n_iters k), g of each iteration, and zeros past an item's last one; (b 0 k) if not kept.
    """

    plan: Tensor
    f: Tensor
    g: Tensor
    iterations: Tensor
    error: Tensor
    history: Tensor


def sinkhorn_forward(
    cost: Tensor,
    row_mass: Tensor | None,
    col_mass: Tensor,
    init: Tensor | None,
    epsilon: float,
    n_iters: int,
    tol: float | None,
    keep_history: bool,
    look_every: int = 1,
) -> SinkhornResult:
    """Gives the transport plan after Sinkhorn's iteration, rows last.

    Args:
        cost: (b k n) float32, contiguous; +inf forbids a pair, but never a whole row or column. k at most
            `tiers.MAX_PROTOTYPES`.
        row_mass: (b n), non-negative; None for ones.
        col_mass: (b k), positive.
        init: (b k), a g to continue from; None to start from f = 0.
        epsilon: entropic regularisation.
        n_iters: iterations, at least 1.
        tol: stops an item once its error is not above this; None for never.
        look_every: iterations from one look at the error to the next.
        keep_history: whether to keep g of each iteration for `sinkhorn_backward`.
    """
    b, k, n = cost.shape
    result = empty_result(cost, n_iters if keep_history else 0)
    history = result.history if keep_history else None
    problem = Problem(cost, row_mass, col_mass, None if init is None else rows(cost, row_mass, init, epsilon))
    tier = tiers.forward_tier(b, n, k, stops=tol is not None)
    if isinstance(tier, tiers.Tile):
        _sinkhorn_resident_fwd_kernel[(b,)](
            *problem, *result[:5], history, n, k, epsilon, n_iters, tol, look_every, **launch_sizes(tier)
        )
        return result
    if tier.splits == 1:
        state, sums = iterate_streaming(
            problem, result.iterations, history, epsilon, n_iters, tol, look_every, tier.tile
        )
    else:
        state, sums = iterate_split(problem, history, epsilon, n_iters, tier)
        result.iterations.fill_(n_iters)
    write_plan(problem, state, sums, (result.plan, result.f, result.g, result.error), epsilon)
    return result


def empty_result(cost: Tensor, n_iters: int) -> SinkhornResult:
    """Memory for the result, with so many iterations of history."""
    b, k, n = cost.shape
    return SinkhornResult(
        torch.empty_like(cost),
        empty(cost, b, n),
        empty(cost, b, k),
        torch.empty(b, dtype=torch.int32, device=cost.device),
        empty(cost, b),
        empty(cost, b, n_iters, k),
    )


def rows(cost: Tensor, row_mass: Tensor | None, g: Tensor, epsilon: float) -> Tensor:
    """The f (b n) that a g leads to, in units of the cost."""
    b, k, n = cost.shape
    f, tile = empty(cost, b, n), tiers.plan_tile(n, k)
    grid = (b, triton.cdiv(n, tile.block_n))
    _sinkhorn_rows_fwd_kernel[grid](cost, row_mass, g, f, n, k, epsilon, **launch_sizes(tile))
    return f


# Unspecialised: n may be known to be a multiple of 16 or not, and vector loads would change the layout of a tile.
@triton.jit(do_not_specialize=["n", "n_iters"])
def _sinkhorn_resident_fwd_kernel(
    cost,
    row_mass,
    col_mass,
    start,
    plan,
    f,
    g,
    iterations,
    error,
    history,
    n,
    k,
    epsilon,
    n_iters,
    tol,
    look_every,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """One program per item holds M in registers while v stays in range."""
    item = tl.program_id(0).to(tl.int64)
    prototypes, tokens = tl.arange(0, BLOCK_K), tile_tokens(ROWS, LANES)
    real, inside = prototypes < k, tokens < n
    scale = LOG2E / epsilon
    a = load_row_mass(row_mass, item * n + tokens, inside)
    b = tl.load(col_mass + item * k + prototypes, mask=real, other=0.0)

    block = load_tile(cost, item, prototypes, tokens, real, inside, n, k, INF)
    f_start = load_start(start, a, item * n + tokens, inside)
    gauge = tl.where(real, lowest_of_tokens(block - f_start[:, None, :]), 0.0)
    sums = sum_of_tokens(start_terms(block, gauge, f_start, scale))
    next_v = next_columns(sums, b, real)
    kernel = tl.zeros_like(block)
    v, u, shift = b, a, a
    t = 0
    end = n_iters
    while t < end:
        gauge, next_v = absorb(gauge, next_v, real, scale)
        block = load_tile(cost, item, prototypes, tokens, real, inside, n, k, INF)
        kernel, shift = kernel_matrix(block, gauge, inside, scale)
        pause = end
        while t < pause:
            v = next_v
            u = a / tl.where(inside, sum_of_prototypes(kernel * v[None, :, None]), 1.0)
            next_v = next_columns(sum_of_tokens(kernel * u[:, None, :]), b, real)
            if history is not None:
                store_potential(history, item * n_iters + t, v, gauge, prototypes, real, k, scale)
            t += 1
            if tol is not None:
                looking = (t % look_every == 0) | (t == n_iters)
                end = tl.where(looking & (largest_error(v, next_v, real) <= tol), t, end)
            pause = tl.where(out_of_range(next_v, real), t, end)
    if history is not None and tol is not None:
        for rest in range(t, n_iters):
            tl.store(history + (item * n_iters + rest) * k + prototypes, tl.zeros_like(v), mask=real)

    store_tile(plan, kernel * v[None, :, None] * u[:, None, :], item, prototypes, tokens, real, inside, n, k)
    tl.store(f + item * n + tokens, row_potential(u, shift, scale), mask=inside)
    store_potential(g, item, v, gauge, prototypes, real, k, scale)
    tl.store(iterations + item, t)
    tl.store(error + item, largest_error(v, next_v, real))


@triton.jit(do_not_specialize=["n"])
def _sinkhorn_rows_fwd_kernel(
    cost, row_mass, g, f, n, k, epsilon, BLOCK_K: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr
):
    item, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    prototypes, tokens = tl.arange(0, BLOCK_K), part * ROWS * LANES + tile_tokens(ROWS, LANES)
    real, inside = prototypes < k, tokens < n
    scale = LOG2E / epsilon
    gauge = tl.load(g + item * k + prototypes, mask=real, other=0.0) * epsilon
    block = load_tile(cost, item, prototypes, tokens, real, inside, n, k, INF)
    kernel, shift = kernel_matrix(block, gauge, inside, scale)
    a = load_row_mass(row_mass, item * n + tokens, inside)
    u = a / tl.where(inside, sum_of_prototypes(kernel), 1.0)
    potential = tl.where(u == 0, -INF, tl.log2(tl.where(u == 0, 1.0, u)) / scale - shift)
    tl.store(f + item * n + tokens, potential, mask=inside)
