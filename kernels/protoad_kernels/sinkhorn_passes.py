# mypy: allow-untyped-defs
"""Sinkhorn's iteration over items larger than a tile: one program an item, or several; notation as in `sinkhorn`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from protoad_kernels import tiers
from protoad_kernels.tile import (
    INF,
    LOG2E,
    absorb,
    empty,
    kernel_matrix,
    largest_error,
    launch_sizes,
    load_parts,
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

__all__ = ["Problem", "iterate_split", "iterate_streaming", "write_plan"]


class Problem(NamedTuple):
    """Cost (b k n), row_mass (b n) or None, col_mass (b k), and the f to start from (b n), None for 0."""

    cost: Tensor
    row_mass: Tensor | None
    col_mass: Tensor
    start: Tensor | None


def iterate_streaming(
    problem: Problem,
    iterations: Tensor,
    history: Tensor | None,
    epsilon: float,
    n_iters: int,
    tol: float | None,
    look_every: int,
    tile: tiers.Tile,
) -> tuple[Tensor, Tensor]:
    """One program per item, which passes over its cost once an iteration.

    Returns:
        The last gauge and v (b 2 k), and the sums of the columns they lead to (b 1 k).
    """
    b, k, n = problem.cost.shape
    state, sums = empty(problem.cost, b, 2, k), empty(problem.cost, b, 1, k)
    _sinkhorn_streaming_fwd_kernel[(b,)](
        *problem,
        state,
        sums,
        iterations,
        history,
        n,
        k,
        epsilon,
        n_iters,
        tol,
        look_every,
        **launch_sizes(tile),
    )
    return state, sums


def write_plan(problem: Problem, state: Tensor, sums: Tensor, result: Sequence[Tensor], epsilon: float) -> None:
    """Fills plan, f, g and error, the outputs in `result`, from the last state and its sums."""
    b, k, n = problem.cost.shape
    tile, splits = tiers.plan_tile(n, k), sums.shape[1]
    _sinkhorn_plan_fwd_kernel[(b, triton.cdiv(n, tile.block_n))](
        *problem[:3],
        state,
        sums,
        *result,
        n,
        k,
        epsilon,
        splits,
        BLOCK_S=triton.next_power_of_2(splits),
        **launch_sizes(tile),
    )


def iterate_split(
    problem: Problem, history: Tensor | None, epsilon: float, n_iters: int, tier: tiers.Split
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


# Unspecialised: n may be known to be a multiple of 16 or not, and vector loads would change the layout of a tile.
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
