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

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from protoad_kernels import tiers

__all__ = ["SinkhornResult", "sinkhorn_forward"]

LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2))
INF = tl.constexpr(math.inf)
# v is absorbed when an entry leaves 2^-32..2^32: what underflows in M is then less than 2^(64 - 126) of a token's mass.
LOWEST, HIGHEST = tl.constexpr(2.0**-32), tl.constexpr(2.0**32)


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


class _Problem(NamedTuple):
    """Cost (b k n), row_mass (b n) or None, col_mass (b k), and the f to start from (b n), None for 0."""

    cost: Tensor
    row_mass: Tensor | None
    col_mass: Tensor
    start: Tensor | None


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
    problem = _Problem(cost, row_mass, col_mass, None if init is None else rows(cost, row_mass, init, epsilon))
    tier = tiers.forward_tier(b, n, k, stops=tol is not None)
    if isinstance(tier, tiers.Tile):
        _sinkhorn_resident_fwd_kernel[(b,)](
            *problem, *result[:5], history, n, k, epsilon, n_iters, tol, look_every, **launch_sizes(tier)
        )
        return result
    if tier.splits == 1:
        state, sums = empty(cost, b, 2, k), empty(cost, b, 1, k)
        _sinkhorn_streaming_fwd_kernel[(b,)](
            *problem,
            state,
            sums,
            result.iterations,
            history,
            n,
            k,
            epsilon,
            n_iters,
            tol,
            look_every,
            **launch_sizes(tier.tile),
        )
    else:
        state, sums = _iterate_split(problem, history, epsilon, n_iters, tier)
        result.iterations.fill_(n_iters)
    tile, splits = tiers.plan_tile(n, k), sums.shape[1]
    _sinkhorn_plan_fwd_kernel[(b, triton.cdiv(n, tile.block_n))](
        *problem[:3],
        state,
        sums,
        result.plan,
        result.f,
        result.g,
        result.error,
        n,
        k,
        epsilon,
        splits,
        BLOCK_S=triton.next_power_of_2(splits),
        **launch_sizes(tile),
    )
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


def empty(cost: Tensor, *shape: int) -> Tensor:
    """Memory on the device of the cost."""
    return torch.empty(shape, dtype=torch.float32, device=cost.device)


def rows(cost: Tensor, row_mass: Tensor | None, g: Tensor, epsilon: float) -> Tensor:
    """The f (b n) that a g leads to, in units of the cost."""
    b, k, n = cost.shape
    f, tile = empty(cost, b, n), tiers.plan_tile(n, k)
    grid = (b, triton.cdiv(n, tile.block_n))
    _sinkhorn_rows_fwd_kernel[grid](cost, row_mass, g, f, n, k, epsilon, **launch_sizes(tile))
    return f


def _iterate_split(
    problem: _Problem, history: Tensor | None, epsilon: float, n_iters: int, tier: tiers.Split
) -> tuple[Tensor, Tensor]:
    """One launch per iteration: what a launch writes only the next one reads.

    Returns:
        The last gauge and v (b 2 k), and the partial sums of the columns they lead to (b splits k).
    """
    b, k, n = problem.cost.shape
    tile, splits, chunk = tier
    lowest = empty(problem.cost, b, splits, k)
    states = [empty(problem.cost, b, 2, k) for _ in range(2)]
    sums = [torch.empty_like(lowest) for _ in range(2)]
    grid, block_s = (b, splits), triton.next_power_of_2(splits)
    _sinkhorn_lowest_fwd_kernel[grid](*problem, lowest, n, k, chunk, splits, **launch_sizes(tile))
    _sinkhorn_start_fwd_kernel[grid](
        *problem, lowest, states[0], sums[0], n, k, epsilon, chunk, splits, BLOCK_S=block_s, **launch_sizes(tile)
    )
    for t in range(n_iters):
        before, after = t % 2, (t + 1) % 2
        _sinkhorn_step_fwd_kernel[grid](
            *problem[:3],
            states[before],
            sums[before],
            states[after],
            sums[after],
            history,
            n,
            k,
            epsilon,
            n_iters,
            t,
            chunk,
            splits,
            BLOCK_S=block_s,
            **launch_sizes(tile),
        )
    return states[n_iters % 2], sums[n_iters % 2]


def launch_sizes(tile: tiers.Tile) -> dict[str, int]:
    """The arguments of a launch that a tile determines."""
    # All registers a thread of 8 warps can have: left alone, the assembler spills some to fit more programs in.
    sizes = {"BLOCK_K": tile.block_k, "ROWS": tile.rows, "LANES": tile.lanes}
    return sizes | {"num_warps": tile.num_warps, "maxnreg": 255}


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


@triton.jit(do_not_specialize=["n", "n_iters"])
def _sinkhorn_streaming_fwd_kernel(
    cost,
    row_mass,
    col_mass,
    start,
    state,
    partial,
    iterations,
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
    """One program per item reads the cost in every iteration."""
    item = tl.program_id(0).to(tl.int64)
    prototypes = tl.arange(0, BLOCK_K)
    real = prototypes < k
    scale = LOG2E / epsilon
    b = tl.load(col_mass + item * k + prototypes, mask=real, other=0.0)

    lowest = _lowest_cost(cost, row_mass, start, item, 0, n, n, k, BLOCK_K, ROWS, LANES)
    gauge = tl.where(real, lowest, 0.0)
    sums = _start_sums(cost, row_mass, start, gauge, item, 0, n, n, k, scale, BLOCK_K, ROWS, LANES)
    v = b
    t = 0
    end = n_iters
    while t < end:
        gauge, v = _step_columns(gauge, sums, b, real, scale)
        sums = _column_sums(cost, row_mass, gauge, v, item, 0, n, n, k, scale, BLOCK_K, ROWS, LANES)
        if history is not None:
            store_potential(history, item * n_iters + t, v, gauge, prototypes, real, k, scale)
        t += 1
        if tol is not None:
            looking = (t % look_every == 0) | (t == n_iters)
            end = tl.where(looking & (largest_error(v, next_columns(sums, b, real), real) <= tol), t, end)
    if history is not None and tol is not None:
        for rest in range(t, n_iters):
            tl.store(history + (item * n_iters + rest) * k + prototypes, tl.zeros_like(v), mask=real)

    _store_state(state, gauge, v, item, prototypes, real, k)
    tl.store(partial + item * k + prototypes, sums, mask=real)
    tl.store(iterations + item, t)


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


@triton.jit(do_not_specialize=["n"])
def _sinkhorn_lowest_fwd_kernel(
    cost,
    row_mass,
    col_mass,
    start,
    lowest,
    n,
    k,
    chunk,
    splits,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    item, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    prototypes = tl.arange(0, BLOCK_K)
    first, last = part * chunk, tl.minimum((part + 1) * chunk, n)
    here = _lowest_cost(cost, row_mass, start, item, first, last, n, k, BLOCK_K, ROWS, LANES)
    tl.store(lowest + (item * splits + part) * k + prototypes, here, mask=prototypes < k)


@triton.jit(do_not_specialize=["n"])
def _sinkhorn_start_fwd_kernel(
    cost,
    row_mass,
    col_mass,
    start,
    lowest,
    state,
    partial,
    n,
    k,
    epsilon,
    chunk,
    splits,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    item, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    prototypes = tl.arange(0, BLOCK_K)
    real = prototypes < k
    first, last = part * chunk, tl.minimum((part + 1) * chunk, n)
    scale = LOG2E / epsilon
    gauge = tl.where(real, tl.min(load_parts(lowest, item, splits, k, INF, BLOCK_K, BLOCK_S), 0), 0.0)
    sums = _start_sums(cost, row_mass, start, gauge, item, first, last, n, k, scale, BLOCK_K, ROWS, LANES)
    tl.store(partial + (item * splits + part) * k + prototypes, sums, mask=real)
    if part == 0:
        _store_state(state, gauge, tl.where(real, 1.0, 0.0), item, prototypes, real, k)


@triton.jit(do_not_specialize=["n", "n_iters", "t"])
def _sinkhorn_step_fwd_kernel(
    cost,
    row_mass,
    col_mass,
    old_state,
    old_partial,
    state,
    partial,
    history,
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
    item, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    prototypes = tl.arange(0, BLOCK_K)
    real = prototypes < k
    first, last = part * chunk, tl.minimum((part + 1) * chunk, n)
    scale = LOG2E / epsilon
    b = tl.load(col_mass + item * k + prototypes, mask=real, other=0.0)
    gauge = tl.load(old_state + item * 2 * k + prototypes, mask=real, other=0.0)
    old_sums = tl.sum(load_parts(old_partial, item, splits, k, 0.0, BLOCK_K, BLOCK_S), 0)
    gauge, v = _step_columns(gauge, old_sums, b, real, scale)
    sums = _column_sums(cost, row_mass, gauge, v, item, first, last, n, k, scale, BLOCK_K, ROWS, LANES)
    tl.store(partial + (item * splits + part) * k + prototypes, sums, mask=real)
    if part == 0:
        _store_state(state, gauge, v, item, prototypes, real, k)
        if history is not None:
            store_potential(history, item * n_iters + t, v, gauge, prototypes, real, k, scale)


@triton.jit(do_not_specialize=["n"])
def _sinkhorn_plan_fwd_kernel(
    cost,
    row_mass,
    col_mass,
    state,
    partial,
    plan,
    f,
    g,
    error,
    n,
    k,
    epsilon,
    splits,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    item, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    prototypes, tokens = tl.arange(0, BLOCK_K), part * ROWS * LANES + tile_tokens(ROWS, LANES)
    real, inside = prototypes < k, tokens < n
    scale = LOG2E / epsilon
    gauge = tl.load(state + item * 2 * k + prototypes, mask=real, other=0.0)
    v = tl.load(state + (item * 2 + 1) * k + prototypes, mask=real, other=0.0)
    block = load_tile(cost, item, prototypes, tokens, real, inside, n, k, INF)
    kernel, shift = kernel_matrix(block, gauge, inside, scale)
    a = load_row_mass(row_mass, item * n + tokens, inside)
    u = a / tl.where(inside, sum_of_prototypes(kernel * v[None, :, None]), 1.0)
    store_tile(plan, kernel * v[None, :, None] * u[:, None, :], item, prototypes, tokens, real, inside, n, k)
    tl.store(f + item * n + tokens, row_potential(u, shift, scale), mask=inside)
    if part == 0:
        sums = tl.sum(load_parts(partial, item, splits, k, 0.0, BLOCK_K, BLOCK_S), 0)
        b = tl.load(col_mass + item * k + prototypes, mask=real, other=0.0)
        store_potential(g, item, v, gauge, prototypes, real, k, scale)
        tl.store(error + item, largest_error(v, next_columns(sums, b, real), real))


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


@triton.jit
def _step_columns(gauge, sums, b, real, scale):
    """Gauge and v of the next iteration, from the sums M u of the last."""
    v = next_columns(sums, b, real)
    absorbed, rest = absorb(gauge, v, real, scale)
    full = out_of_range(v, real)
    return tl.where(full, absorbed, gauge), tl.where(full, rest, v)


@triton.jit
def _store_state(state, gauge, v, item, prototypes, real, k):
    tl.store(state + item * 2 * k + prototypes, gauge, mask=real)
    tl.store(state + (item * 2 + 1) * k + prototypes, v, mask=real)


@triton.jit
def _lowest_cost(
    cost,
    row_mass,
    start,
    item,
    first,
    last,
    n,
    k,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The lowest C - f (k) among tokens from `first` to `last`, for the f to start from."""
    prototypes = tl.arange(0, BLOCK_K)
    lowest = tl.full((ROWS, BLOCK_K, LANES), INF, tl.float32)
    for here in range(first, last, ROWS * LANES):
        tokens = here + tile_tokens(ROWS, LANES)
        inside = tokens < last
        block = load_tile(cost, item, prototypes, tokens, prototypes < k, inside, n, k, INF)
        a = load_row_mass(row_mass, item * n + tokens, inside)
        lowest = tl.minimum(lowest, block - load_start(start, a, item * n + tokens, inside)[:, None, :])
    return lowest_of_tokens(lowest)


@triton.jit
def _start_sums(
    cost,
    row_mass,
    start,
    gauge,
    item,
    first,
    last,
    n,
    k,
    scale,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The first column sums (k) over tokens from `first` to `last`."""
    prototypes = tl.arange(0, BLOCK_K)
    sums = tl.zeros((ROWS, BLOCK_K, LANES), tl.float32)
    for here in range(first, last, ROWS * LANES):
        tokens = here + tile_tokens(ROWS, LANES)
        inside = tokens < last
        block = load_tile(cost, item, prototypes, tokens, prototypes < k, inside, n, k, INF)
        a = load_row_mass(row_mass, item * n + tokens, inside)
        sums += start_terms(block, gauge, load_start(start, a, item * n + tokens, inside), scale)
    return sum_of_tokens(sums)


@triton.jit
def _column_sums(
    cost,
    row_mass,
    gauge,
    v,
    item,
    first,
    last,
    n,
    k,
    scale,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """M u (k) over tokens from `first` to `last`: one pass over the cost, and one reduction at its end."""
    prototypes = tl.arange(0, BLOCK_K)
    sums = tl.zeros((ROWS, BLOCK_K, LANES), tl.float32)
    for here in range(first, last, ROWS * LANES):
        tokens = here + tile_tokens(ROWS, LANES)
        inside = tokens < last
        block = load_tile(cost, item, prototypes, tokens, prototypes < k, inside, n, k, INF)
        kernel, _ = kernel_matrix(block, gauge, inside, scale)
        a = load_row_mass(row_mass, item * n + tokens, inside)
        u = a / tl.where(inside, sum_of_prototypes(kernel * v[None, :, None]), 1.0)
        sums += kernel * u[:, None, :]
    return sum_of_tokens(sums)
