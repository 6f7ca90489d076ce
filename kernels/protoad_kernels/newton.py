# mypy: allow-untyped-defs
"""Newton's method on the prototypes' potentials, and the gradient of a converged plan: both solve with its curvature.

One program holds a whole item. With shares S = plan / a and column sums c, the curvature diag c - plan^T S is only ever
multiplied with vectors, by two sums over the tile, inside conjugate gradients. Notation as in `sinkhorn`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from protoad_kernels import tiers
from protoad_kernels.sinkhorn import SinkhornResult, rows
from protoad_kernels.tile import (
    INF,
    LOG2E,
    absorb,
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

__all__ = ["implicit_backward", "implicit_fits", "newton_fits", "newton_forward"]

# The settings of `protoad.ops._newton`, where they are explained.
FIRST_ITERATIONS = tl.constexpr(30)
ANNEAL_BELOW, ANNEAL_BY = tl.constexpr(0.02), tl.constexpr(4.0)
ROUGHLY = tl.constexpr(0.1)
LONGEST_STEP = tl.constexpr(50.0)
MOST_HALVINGS = tl.constexpr(10)
EPS = tl.constexpr(torch.finfo(torch.float32).eps)


def newton_fits(n: int, k: int) -> bool:
    """Whether `newton_forward` can hold an item of n tokens and k prototypes."""
    tile = tiers.plan_tile(n, k)
    return tile.block_n >= n and tile.block_k <= 64  # vectors over more prototypes spill


def implicit_fits(n: int, k: int) -> bool:
    """Whether `implicit_backward` can hold an item of n tokens and k prototypes."""
    return isinstance(tiers.backward_tier(1, n, k), tiers.Tile)


def newton_forward(
    cost: Tensor,
    row_mass: Tensor | None,
    col_mass: Tensor,
    init: Tensor | None,
    epsilon: float,
    n_iters: int,
    tol: float,
) -> SinkhornResult:
    """Gives the converged transport plan.

    Args:
        cost: (b k n) float32, contiguous; +inf forbids a pair. n and k for which `newton_fits`.
        row_mass: (b n), non-negative; None for ones.
        col_mass: (b k), positive.
        init: (b k), a g to start from; None to start from f = 0, and to approach epsilon from above.
        epsilon: entropic regularisation.
        n_iters: most steps at each epsilon.
        tol: largest relative error of a column sum at which an item is done.
    """
    b, k, n = cost.shape
    result = SinkhornResult(
        torch.empty_like(cost),
        cost.new_empty((b, n)),
        cost.new_empty((b, k)),
        cost.new_empty((b,), dtype=torch.int32),
        cost.new_empty((b,)),
        cost.new_empty((b, 0, k)),
    )
    # Eight warps: it holds so many vectors at a time that with fewer registers would spill.
    tile = tiers.plan_tile(n, k)._replace(num_warps=8)
    _newton_fwd_kernel[(b,)](
        cost,
        row_mass,
        col_mass,
        None if init is None else rows(cost, row_mass, init, epsilon),
        *result[:5],
        n,
        k,
        epsilon,
        n_iters,
        tol,
        **launch_sizes(tile),
    )
    return result


def implicit_backward(
    grad_plan: Tensor | None,
    grad_f: Tensor | None,
    grad_g: Tensor | None,
    cost: Tensor,
    g: Tensor,
    row_mass: Tensor | None,
    epsilon: float,
    of_masses: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gives the gradients as if the plan of g had converged.

    Args:
        grad_plan: (b k n), contiguous, or None for zeros.
        grad_f: (b n) or None.
        grad_g: (b k) or None.
        cost: (b k n) float32, contiguous. n and k for which `implicit_fits`.
        g: (b k), as given forward.
        row_mass: (b n) or None for ones.
        epsilon: entropic regularisation.
        of_masses: whether gradients to the masses are wanted.

    Returns:
        To cost (b k n), row_mass (b n) and col_mass (b k), the last two empty unless wanted.
    """
    b, k, n = cost.shape
    grad_cost = torch.empty_like(cost)
    grad_rows, grad_cols = cost.new_empty((b, n) if of_masses else (0,)), cost.new_empty((b, k) if of_masses else (0,))
    tile = tiers.backward_tier(1, n, k)
    assert isinstance(tile, tiers.Tile)  # `implicit_fits`
    _implicit_bwd_kernel[(b,)](
        grad_plan,
        grad_f,
        grad_g,
        cost,
        g,
        row_mass,
        grad_cost,
        grad_rows if of_masses else None,
        grad_cols if of_masses else None,
        n,
        k,
        epsilon,
        **launch_sizes(tile),
    )
    return grad_cost, grad_rows, grad_cols


@triton.jit(do_not_specialize=["n", "n_iters"])
def _newton_fwd_kernel(
    cost,
    row_mass,
    col_mass,
    start,
    plan,
    f,
    g,
    iterations,
    error,
    n,
    k,
    final,
    n_iters,
    tol,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    prototypes, tokens = tl.arange(0, BLOCK_K), tile_tokens(ROWS, LANES)
    real, inside = prototypes < k, tokens < n
    a = load_row_mass(row_mass, item * n + tokens, inside)
    b = tl.load(col_mass + item * k + prototypes, mask=real, other=0.0)

    block = load_tile(cost, item, prototypes, tokens, real, inside, n, k, INF)
    epsilon = final * 1.0 if start is not None else _first_epsilon(block, real, inside, final)
    f_start = load_start(start, a, item * n + tokens, inside)
    gauge = tl.where(real, lowest_of_tokens(block - f_start[:, None, :]), 0.0)
    v = next_columns(sum_of_tokens(start_terms(block, gauge, f_start, 1.0 / epsilon * LOG2E)), b, real)
    kernel, shift = kernel_matrix(block, gauge, inside, 1.0 / epsilon * LOG2E)
    for _ in range(FIRST_ITERATIONS):
        u = a * _rows(kernel, v, inside)
        v = next_columns(sum_of_tokens(kernel * u[:, None, :]), b, real)
        if out_of_range(v, real):
            gauge, v = absorb(gauge, v, real, 1.0 / epsilon * LOG2E)
            block = load_tile(cost, item, prototypes, tokens, real, inside, n, k, INF)
            kernel, shift = kernel_matrix(block, gauge, inside, 1.0 / epsilon * LOG2E)

    steps, here, running = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32), tl.full((), 1, tl.int32)
    while running > 0:
        u = a * _rows(kernel, v, inside)
        sums = v * sum_of_tokens(kernel * u[:, None, :])
        wrong = _error(sums, b, real)
        stepping = (wrong > tl.where(epsilon > final, ROUGHLY, tol)) & (here < n_iters)  # NaN does not
        cooling = (stepping == 0) & (epsilon > final)
        running = tl.where(stepping | cooling, 1, 0)
        if stepping:
            v = _step(kernel, v, a, b, sums, real, inside, k)
            steps += 1
            here += 1
        if cooling | (stepping & out_of_range(v, real)):
            gauge, v = absorb(gauge, v, real, 1.0 / epsilon * LOG2E)
            here = tl.where(cooling, 0, here)
            epsilon = tl.where(cooling, tl.maximum(epsilon / ANNEAL_BY, final), epsilon)
            block = load_tile(cost, item, prototypes, tokens, real, inside, n, k, INF)
            kernel, shift = kernel_matrix(block, gauge, inside, 1.0 / epsilon * LOG2E)

    scale = LOG2E / final
    u = a * _rows(kernel, v, inside)
    next_v = next_columns(sum_of_tokens(kernel * u[:, None, :]), b, real)
    store_tile(plan, kernel * v[None, :, None] * u[:, None, :], item, prototypes, tokens, real, inside, n, k)
    tl.store(f + item * n + tokens, row_potential(u, shift, scale), mask=inside)
    store_potential(g, item, v, gauge, prototypes, real, k, scale)
    tl.store(iterations + item, steps)
    tl.store(error + item, largest_error(v, next_v, real))


@triton.jit(do_not_specialize=["n"])
def _implicit_bwd_kernel(
    grad_plan,
    grad_f,
    grad_g,
    cost,
    g,
    row_mass,
    grad_cost,
    grad_rows,
    grad_cols,
    n,
    k,
    epsilon,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    prototypes, tokens = tl.arange(0, BLOCK_K), tile_tokens(ROWS, LANES)
    real, inside = prototypes < k, tokens < n
    a = load_row_mass(row_mass, item * n + tokens, inside)
    gauge = tl.load(g + item * k + prototypes, mask=real, other=0.0) * epsilon
    block = load_tile(cost, item, prototypes, tokens, real, inside, n, k, INF)
    kernel, _ = kernel_matrix(block, gauge, inside, 1.0 / epsilon * LOG2E)
    shares = kernel / tl.where(inside, sum_of_prototypes(kernel), 1.0)[:, None, :]
    shares = tl.where(real[None, :, None] & inside[:, None, :], shares, 0.0)
    sums = sum_of_tokens(shares * a[:, None, :])

    alpha, right = tl.zeros_like(a), tl.zeros_like(sums)
    if grad_plan is not None:
        incoming = load_tile(grad_plan, item, prototypes, tokens, real, inside, n, k, 0.0)
        alpha += sum_of_prototypes(shares * incoming)
        right += sum_of_tokens(shares * a[:, None, :] * incoming)
    else:
        incoming = tl.zeros_like(shares)
    if grad_f is not None:
        of_f = tl.load(grad_f + item * n + tokens, mask=inside, other=0.0)
        alpha += tl.where(a > 0, of_f / tl.where(a > 0, a, 1.0), 0.0)
    if grad_g is not None:
        right += tl.load(grad_g + item * k + prototypes, mask=real, other=0.0)
    right -= sum_of_tokens(shares * (a * alpha)[:, None, :])
    right = tl.where(real, right - tl.sum(right, 0) / k, 0.0)

    lam = _solve(shares, tl.where(real, 1.0, 0.0), a, sums, right, real, k, 1e-13)
    lam = tl.where(real, lam - tl.sum(lam, 0) / k, 0.0)
    mu = alpha - sum_of_prototypes(shares * lam[None, :, None])
    pull = shares * a[:, None, :] * (incoming - mu[:, None, :] - lam[None, :, None])
    store_tile(grad_cost, pull / -epsilon, item, prototypes, tokens, real, inside, n, k)
    if grad_rows is not None:
        tl.store(grad_rows + item * n + tokens, mu, mask=inside)
    if grad_cols is not None:
        tl.store(grad_cols + item * k + prototypes, lam, mask=real)


@triton.jit
def _first_epsilon(cost, real, inside, final):
    """`final`, times 4 as often as it lies below its share of the spread of the costs."""
    known = real[None, :, None] & inside[:, None, :] & (cost < INF)
    highest = tl.max(tl.max(tl.where(known, cost, -INF), 0), 1)
    lowest = tl.min(tl.min(tl.where(known, cost, INF), 0), 1)
    reach = tl.max(tl.where(real, highest - lowest, 0.0), 0)
    epsilon = final * 1.0
    while epsilon < reach * ANNEAL_BELOW:
        epsilon *= ANNEAL_BY
    return epsilon


@triton.jit
def _rows(kernel, v, inside):
    """The r that goes with v, 0 beside the tokens."""
    return tl.where(inside, 1.0 / tl.where(inside, sum_of_prototypes(kernel * v[None, :, None]), 1.0), 0.0)


@triton.jit
def _error(sums, b, real):
    """The largest relative error of the columns; NaN, which tl.max would drop, if any is."""
    errors = tl.where(real, tl.abs(sums - b) / tl.where(real, b, 1.0), 0.0)
    total = tl.sum(errors, 0)
    return tl.where(total == total, tl.max(errors, 0), total)


@triton.jit
def _step(kernel, v, a, b, sums, real, inside, k):
    """The v after one step: Newton's, if one short enough is an ascent, else Sinkhorn's."""
    r = _rows(kernel, v, inside)
    missing = tl.where(real, b - sums, 0.0)
    direction = _solve(kernel, v, a * r * r, sums, missing - tl.sum(missing, 0) / k, real, k, 1e-8)
    longest = tl.max(tl.abs(direction), 0)
    direction *= tl.minimum(1.0, 1.0 / tl.maximum(longest, 1e-30) * LONGEST_STEP)
    before, promised = tl.sum(tl.abs(missing), 0), tl.sum(missing * direction, 0)
    rounding = tl.sum(b * tl.abs(direction), 0) * EPS
    length, halvings, trial = tl.full((), 1.0, tl.float32), tl.full((), 0, tl.int32), v
    while halvings <= MOST_HALVINGS:
        change = length * direction
        trial = v * tl.exp2(change * LOG2E)
        new_r = _rows(kernel, trial, inside)
        new_sums = trial * sum_of_tokens(kernel * (a * new_r)[:, None, :])
        gain = tl.log2(tl.where(inside, new_r, 1.0) / tl.where(inside, r, 1.0)) / LOG2E
        rise = tl.sum(b * change, 0) + tl.sum(tl.sum(a * gain, 0), 0)
        ascends = rise >= 0.1 * length * promised
        closer = tl.sum(tl.where(real, tl.abs(b - new_sums), 0.0), 0) < before
        good = tl.where(promised > 100 * rounding, ascends, closer)
        halvings = tl.where(good, MOST_HALVINGS + 1, halvings + 1)
        length *= 0.5
        trial = tl.where(good, trial, v * next_columns(sums, b, real))
    return trial


@triton.jit
def _solve(kernel, v, weights, sums, right, real, k, tolerance):
    """The x (k) with (diag c - plan^T S) x = right, sum(right) = 0, by conjugate gradients scaled by c.

    S = M o (r v^T) and plan = a S are not formed: plan^T S = v o M diag(weights) M^T o v, with weights = a r^2.
    """
    diagonal = tl.where(real & (sums > 0), sums, 1.0)
    x = tl.zeros_like(right)
    rest = tl.where(real, right, 0.0)
    scaled = rest / diagonal
    towards = scaled
    size = tl.sum(rest * scaled, 0)
    enough = size * tolerance
    i = tl.full((), 0, tl.int32)
    while (i < 2 * k) & (size > enough):
        across = weights * sum_of_prototypes(kernel * (v * towards)[None, :, None])
        image = diagonal * towards - v * sum_of_tokens(kernel * across[:, None, :])
        bend = tl.sum(towards * image, 0)
        length = tl.where(bend > 0, size / tl.where(bend > 0, bend, 1.0), 0.0)
        x += length * towards
        rest -= length * image
        scaled = rest / diagonal
        new_size = tl.where(bend > 0, tl.sum(rest * scaled, 0), 0.0)
        towards = scaled + (new_size / size) * towards
        size = new_size
        i += 1
    return x
