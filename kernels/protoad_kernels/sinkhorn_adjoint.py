# mypy: allow-untyped-defs
"""The gradient of Sinkhorn's iteration, unrolled: exact for the iterations that were run.

Notation as in `sinkhorn`; everything is made anew from the history of g. With X = -C / epsilon and, at some g, the
shares S of a token and the plan T = a S, a gradient D to T is one of

    T o (D - w),  w_n = sum_k (S o D)_kn,

to X, and of that summed over the tokens to g; w is the gradient to a. One iteration g' = g + log b - log c(g) turns a
gradient p to g' into D_kn = -p_k / c_k, and into p itself for g, which the sum of T o D cancels: what is left for g is
-sum_n (T w)_kn. No column has to be summed for c = b exp(g - g'). In the kernels, `pull` is p and `push` is v o D.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from protoad_kernels import tiers
from protoad_kernels.sinkhorn import rows
from protoad_kernels.tile import (
    INF,
    LOG2E,
    empty,
    kernel_matrix,
    launch_sizes,
    load_parts,
    load_row_mass,
    load_tile,
    store_tile,
    sum_of_prototypes,
    sum_of_tokens,
    tile_tokens,
)

__all__ = ["sinkhorn_backward"]

# M is made anew when a potential is farther than this from the gauge, in base e: exp(32) squared is within float32.
FARTHEST = tl.constexpr(32.0)


class _Problem(NamedTuple):
    """What was solved, and what is known of it: shapes as for `sinkhorn_backward`."""

    cost: Tensor
    row_mass: Tensor | None
    col_mass: Tensor
    history: Tensor
    iterations: Tensor


def sinkhorn_backward(
    grad_plan: Tensor | None,
    grad_f: Tensor | None,
    grad_g: Tensor | None,
    cost: Tensor,
    row_mass: Tensor | None,
    col_mass: Tensor,
    init: Tensor | None,
    epsilon: float,
    history: Tensor,
    iterations: Tensor,
    of_masses: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gives the gradients of `sinkhorn_forward`.

    Args:
        grad_plan: (b k n), contiguous, or None for zeros.
        grad_f: (b n) or None.
        grad_g: (b k) or None.
        cost: (b k n) float32, contiguous.
        row_mass: (b n) or None, as given forward; likewise the following three.
        col_mass: (b k).
        init: (b k) or None; a constant.
        epsilon: entropic regularisation.
        history: (b n_iters k) of the result.
        iterations: (b) int32 of the result.
        of_masses: whether gradients to the masses are wanted.

    Returns:
        To cost (b k n), row_mass (b n) and col_mass (b k), the last two empty unless wanted.
    """
    b, k, n = cost.shape
    n_iters = history.shape[1]
    grad_cost = torch.empty_like(cost)
    grad_rows, grad_cols = (empty(cost, b, n), empty(cost, b, k)) if of_masses else (empty(cost, 0), empty(cost, 0))
    incoming, problem = (grad_plan, grad_f, grad_g), _Problem(cost, row_mass, col_mass, history, iterations)
    tier = tiers.backward_tier(b, n, k)
    if isinstance(tier, tiers.Tile):
        tile, of_g = tier, None
    else:
        tile, of_g = tiers.plan_tile(n, k), _gradients_of_g(incoming, problem, epsilon, tier)
        if of_masses:
            torch.div(of_g.sum(1), col_mass, out=grad_cols)
    _sinkhorn_bwd_kernel[(b, triton.cdiv(n, tile.block_n))](
        *incoming,
        *problem,
        init,
        None if init is None else rows(cost, None, init, epsilon),
        of_g,
        grad_cost,
        grad_rows if of_masses else None,
        grad_cols if of_masses else None,
        n,
        k,
        epsilon,
        n_iters,
        **launch_sizes(tile),
    )
    return grad_cost, grad_rows, grad_cols


def _gradients_of_g(
    incoming: tuple[Tensor | None, ...], problem: _Problem, epsilon: float, tier: tiers.Split
) -> Tensor:
    """The gradients to the g of all iterations (b n_iters k), of items too large for one tile."""
    cost, history = problem.cost, problem.history
    (b, k, n), n_iters = cost.shape, history.shape[1]
    tile, splits, chunk = tier
    if splits == 1:
        of_g = torch.empty_like(history)
        _sinkhorn_streaming_bwd_kernel[(b,)](*incoming, *problem, of_g, n, k, epsilon, n_iters, **launch_sizes(tile))
        return of_g
    partial = empty(cost, b, n_iters, splits, k)
    for t in range(n_iters, 0, -1):
        _sinkhorn_step_bwd_kernel[(b, splits)](
            *incoming,
            *problem,
            partial,
            n,
            k,
            epsilon,
            n_iters,
            t,
            chunk,
            splits,
            BLOCK_S=triton.next_power_of_2(splits),
            **launch_sizes(tile),
        )
    return partial.sum(2)


# Unspecialised for the same layout of a tile whatever n is, see `sinkhorn`.
@triton.jit(do_not_specialize=["n", "n_iters"])
def _sinkhorn_bwd_kernel(
    grad_plan,
    grad_f,
    grad_g,
    cost,
    row_mass,
    col_mass,
    history,
    iterations,
    init,
    start,
    of_g,
    grad_cost,
    grad_rows,
    grad_cols,
    n,
    k,
    epsilon,
    n_iters,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """All iterations backwards for the tokens of a tile: those of a whole item, or as many with `of_g` given."""
    item, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    prototypes, tokens = tl.arange(0, BLOCK_K), part * ROWS * LANES + tile_tokens(ROWS, LANES)
    real, inside = prototypes < k, tokens < n
    scale = LOG2E / epsilon
    history += item * n_iters * k + prototypes
    a = load_row_mass(row_mass, item * n + tokens, inside)
    b = tl.load(col_mass + item * k + prototypes, mask=real, other=1.0)

    t = tl.load(iterations + item)
    g = tl.load(history + (t - 1) * k, mask=real, other=0.0)
    gauge = g
    block = load_tile(cost, item, prototypes, tokens, real, inside, n, k, INF)
    kernel, _ = kernel_matrix(block, gauge * epsilon, inside, scale)
    grad_x, w = _leave_plan(grad_plan, grad_f, kernel, a, item, prototypes, tokens, real, inside, n, k)
    pull = sum_of_tokens(grad_x)
    if grad_g is not None:
        pull += tl.load(grad_g + item * k + prototypes, mask=real, other=0.0)
    all_w, all_pull = w, pull

    t -= 1
    while t > 0:
        next_g = g
        g = tl.load(history + (t - 1) * k, mask=real, other=0.0)
        if tl.max(tl.abs(g - gauge), 0) > FARTHEST:
            gauge = g
            block = load_tile(cost, item, prototypes, tokens, real, inside, n, k, INF)
            kernel, _ = kernel_matrix(block, gauge * epsilon, inside, scale)
        if of_g is not None:
            pull = tl.load(of_g + (item * n_iters + t) * k + prototypes, mask=real, other=0.0)
        v = tl.where(real, tl.exp2((g - gauge) * LOG2E), 0.0)
        push = tl.where(real, -pull / b * tl.exp2((next_g - gauge) * LOG2E), 0.0)
        r = 1 / tl.where(inside, sum_of_prototypes(kernel * v[None, :, None]), 1.0)
        w = r * sum_of_prototypes(kernel * push[None, :, None])
        u, uw = a * r, a * r * w
        grad_x += kernel * (push[None, :, None] * u[:, None, :] - v[None, :, None] * uw[:, None, :])
        pull = -v * sum_of_tokens(kernel * uw[:, None, :])
        all_w += w
        all_pull += pull
        t -= 1

    if of_g is not None:
        pull = tl.load(of_g + item * n_iters * k + prototypes, mask=real, other=0.0)
    block = load_tile(cost, item, prototypes, tokens, real, inside, n, k, INF)
    if start is None:
        f = tl.where(a > 0, 0.0, -INF)
        grad_x -= _first_terms(block, g * epsilon, f, pull, b, scale)
    else:
        f = tl.load(start + item * n + tokens, mask=inside, other=0.0)
        terms = _first_terms(block, g * epsilon, f, pull, b, scale)
        gauge = tl.load(init + item * k + prototypes, mask=real, other=0.0) * epsilon
        kernel, _ = kernel_matrix(block, gauge, inside, scale)
        w = -sum_of_prototypes(terms)
        share = w / tl.where(inside, sum_of_prototypes(kernel), 1.0)
        grad_x -= a[:, None, :] * (terms + kernel * share[:, None, :])
        all_w += w
    store_tile(grad_cost, grad_x / -epsilon, item, prototypes, tokens, real, inside, n, k)
    if grad_rows is not None:
        tl.store(grad_rows + item * n + tokens, all_w, mask=inside)
        if of_g is None:
            tl.store(grad_cols + item * k + prototypes, all_pull / b, mask=real)


@triton.jit(do_not_specialize=["n", "n_iters"])
def _sinkhorn_streaming_bwd_kernel(
    grad_plan,
    grad_f,
    grad_g,
    cost,
    row_mass,
    col_mass,
    history,
    iterations,
    of_g,
    n,
    k,
    epsilon,
    n_iters,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The gradients to g of all iterations; one program per item reads the cost for each."""
    item = tl.program_id(0).to(tl.int64)
    prototypes = tl.arange(0, BLOCK_K)
    real = prototypes < k
    history += item * n_iters * k + prototypes
    of_g += item * n_iters * k + prototypes
    b = tl.load(col_mass + item * k + prototypes, mask=real, other=1.0)
    t = tl.load(iterations + item)
    for rest in range(t, n_iters):
        tl.store(of_g + rest * k, tl.zeros_like(b), mask=real)
    g = tl.load(history + (t - 1) * k, mask=real, other=0.0)
    pull = _last_pull(grad_plan, grad_f, grad_g, cost, row_mass, g, item, 0, n, n, k, epsilon, BLOCK_K, ROWS, LANES)
    tl.store(of_g + (t - 1) * k, pull, mask=real)
    t -= 1
    while t > 0:
        next_g = g
        g = tl.load(history + (t - 1) * k, mask=real, other=0.0)
        pull = _previous_pull(cost, row_mass, g, next_g, pull, b, item, 0, n, n, k, epsilon, BLOCK_K, ROWS, LANES)
        tl.store(of_g + (t - 1) * k, pull, mask=real)
        t -= 1


@triton.jit(do_not_specialize=["n", "n_iters", "t"])
def _sinkhorn_step_bwd_kernel(
    grad_plan,
    grad_f,
    grad_g,
    cost,
    row_mass,
    col_mass,
    history,
    iterations,
    partial,
    n,
    k,
    epsilon,
    n_iters,
    t,
    chunk,
    splits,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """A part of the gradient to g_t, from all parts of that to g_(t+1)."""
    item, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    prototypes = tl.arange(0, BLOCK_K)
    real = prototypes < k
    first, last = part * chunk, tl.minimum((part + 1) * chunk, n)
    history += (item * n_iters + t - 1) * k + prototypes
    g = tl.load(history, mask=real, other=0.0)
    run = tl.load(iterations + item)
    pull = tl.zeros_like(g)
    if t == run:
        pull = _last_pull(
            grad_plan, grad_f, grad_g, cost, row_mass, g, item, first, last, n, k, epsilon, BLOCK_K, ROWS, LANES
        )
    elif t < run:
        b = tl.load(col_mass + item * k + prototypes, mask=real, other=1.0)
        next_g = tl.load(history + k, mask=real, other=0.0)
        pull = tl.sum(load_parts(partial, item * n_iters + t, splits, k, 0.0, BLOCK_K, BLOCK_S), 0)
        pull = _previous_pull(
            cost, row_mass, g, next_g, pull, b, item, first, last, n, k, epsilon, BLOCK_K, ROWS, LANES
        )
    tl.store(partial + ((item * n_iters + t - 1) * splits + part) * k + prototypes, pull, mask=real)


@triton.jit
def _last_pull(
    grad_plan,
    grad_f,
    grad_g,
    cost,
    row_mass,
    g,
    item,
    first,
    last,
    n,
    k,
    epsilon,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The gradient to the last g from tokens `first` to `last`, and from outside together with the first of all."""
    prototypes = tl.arange(0, BLOCK_K)
    real = prototypes < k
    sums = tl.zeros((ROWS, BLOCK_K, LANES), tl.float32)
    for here in range(first, last, ROWS * LANES):
        tokens = here + tile_tokens(ROWS, LANES)
        inside = tokens < last
        block = load_tile(cost, item, prototypes, tokens, real, inside, n, k, INF)
        kernel, _ = kernel_matrix(block, g * epsilon, inside, LOG2E / epsilon)
        a = load_row_mass(row_mass, item * n + tokens, inside)
        grad_x, _ = _leave_plan(grad_plan, grad_f, kernel, a, item, prototypes, tokens, real, inside, n, k)
        sums += grad_x
    pull = sum_of_tokens(sums)
    if grad_g is not None:
        pull += tl.load(grad_g + item * k + prototypes, mask=real & (first == 0), other=0.0)
    return pull


@triton.jit
def _previous_pull(
    cost,
    row_mass,
    g,
    next_g,
    pull,
    b,
    item,
    first,
    last,
    n,
    k,
    epsilon,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The gradient to g from tokens `first` to `last`, given that to the next g."""
    prototypes = tl.arange(0, BLOCK_K)
    real = prototypes < k
    push = tl.where(real, -pull / b * tl.exp2((next_g - g) * LOG2E), 0.0)
    sums = tl.zeros((ROWS, BLOCK_K, LANES), tl.float32)
    for here in range(first, last, ROWS * LANES):
        tokens = here + tile_tokens(ROWS, LANES)
        inside = tokens < last
        block = load_tile(cost, item, prototypes, tokens, real, inside, n, k, INF)
        kernel, _ = kernel_matrix(block, g * epsilon, inside, LOG2E / epsilon)
        a = load_row_mass(row_mass, item * n + tokens, inside)
        r = 1 / tl.where(inside, sum_of_prototypes(kernel), 1.0)
        w = r * sum_of_prototypes(kernel * push[None, :, None])
        sums -= kernel * (a * r * w)[:, None, :]
    return sum_of_tokens(sums)


@triton.jit
def _leave_plan(grad_plan, grad_f, kernel, a, item, prototypes, tokens, real, inside, n, k):
    """The gradient to X of what comes in through plan and f of the last iteration, and its w."""
    shares = kernel / tl.where(inside, sum_of_prototypes(kernel), 1.0)[:, None, :]
    w = tl.zeros_like(a)
    if grad_f is not None:
        # f = -inf has no gradient.
        of_f = tl.load(grad_f + item * n + tokens, mask=inside, other=0.0)
        w += tl.where(a > 0, of_f / tl.where(a > 0, a, 1.0), 0.0)
    if grad_plan is not None:
        of_plan = load_tile(grad_plan, item, prototypes, tokens, real, inside, n, k, 0.0)
        # Where nothing can be carried an incoming gradient may be infinite, as that of an entropy is.
        of_plan = tl.where(shares == 0, 0.0, of_plan)
        w += sum_of_prototypes(shares * of_plan)
        return a[:, None, :] * shares * (of_plan - w[:, None, :]), w
    else:
        return -shares * (a * w)[:, None, :], w


@triton.jit
def _first_terms(cost, gauge, f, pull, b, scale):
    """What the first columns take from each token, for mass 1: (gradient to g_1) / b o exp(g_1 - C / epsilon + f)."""
    exponent = (gauge[None, :, None] - cost + f[:, None, :]) * scale
    # It is at most b / a: only for a token without mass, of which nothing is taken, can it be out of range.
    return tl.exp2(tl.minimum(exponent, 126.0)) * (pull / b)[None, :, None]
