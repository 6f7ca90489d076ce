"""Sinkhorn's iteration as one operator with a written-out gradient: fast on a CPU, right in float32 for small epsilon.

Notation as in `_sinkhorn_kernel`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protoad.ops._sinkhorn_adjoint import adjoint
from protoad.ops._sinkhorn_kernel import (
    History,
    chunks,
    first_row,
    kernel_matrix,
    products,
    solvable,
    split,
    weigh,
)
from protoad.ops.precision import full_precision

__all__ = ["Solution", "solve"]

# Largest log(max v / min v) of an iteration. The gradient squares v and r: exp(2 * 30) fits into float32, and what
# underflows in M is less than exp(30 - 87) of the sum it is missing from. The same in float64: one path for both.
SPREAD = 30.0


class Solution(NamedTuple):
    """What the operator gives: plan (... n k), f (... n), g (... k), error (...), and the history (b t n+2k+1)."""

    plan: Tensor
    f: Tensor
    g: Tensor
    error: Tensor
    history: Tensor


def solve(cost: Tensor, row_mass: Tensor | None, col_mass: Tensor | None, epsilon: float, n_iters: int) -> Solution:
    """Runs the iteration.

    Args:
        cost: (... n k) float32 or float64; fastest where n is the axis that lies dense in memory.
        row_mass: (... n) masses of the tokens, non-negative; None for ones.
        col_mass: (... k) masses of the prototypes, positive; None for sum(row_mass) / k.
        epsilon: entropic regularisation.
        n_iters: iterations, at least 1.

    Returns:
        `Solution`; error and history have no gradient.
    """
    return Solution(*_solve_op(cost, row_mass, col_mass, epsilon, n_iters))


@torch.library.custom_op(
    "protoad::sinkhorn",
    mutates_args=(),
    schema="(Tensor cost, Tensor? row_mass, Tensor? col_mass, float epsilon, int n_iters) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _solve_op(
    cost: Tensor, row_mass: Tensor | None, col_mass: Tensor | None, epsilon: float, n_iters: int
) -> tuple[Tensor, ...]:
    n, k = cost.shape[-2:]
    solution = _empty_solution(cost, row_mass, col_mass, epsilon, n_iters)
    plan, f, g = solution.plan.mT.view(-1, k, n), solution.f.view(-1, n), solution.g.view(-1, k)
    costs, masses = cost.reshape(-1, n, k).mT, solvable(cost, row_mass, col_mass)
    # A caller's autocast reaches into the operator: without this it would multiply matrices in bfloat16.
    with full_precision(cost):
        for items in chunks(costs):
            a = None if masses.a is None else masses.a[items]
            history = split(solution.history[items], n, k)
            _forward(costs[items].contiguous(), a, masses.b[items], epsilon, history, plan[items], f[items], g[items])
    if masses.empty is not None:
        plan.masked_fill_(masses.empty.unsqueeze(-1), 0)
    excess = plan.sum(-1).sub_(masses.wanted).abs_()
    excess.div_(masses.wanted.clamp_min(torch.finfo(cost.dtype).tiny))
    torch.amax(excess, -1, out=solution.error.view(-1))
    return tuple(solution)


@_solve_op.register_fake
def _empty_solution(
    cost: Tensor, row_mass: Tensor | None, col_mass: Tensor | None, epsilon: float, n_iters: int
) -> Solution:
    *leading, n, k = cost.shape
    return Solution(
        cost.new_empty((*leading, k, n)).mT,
        cost.new_empty((*leading, n)),
        cost.new_empty((*leading, k)),
        cost.new_empty(leading),
        cost.new_empty((math.prod(leading), n_iters, n + 2 * k + 1)),
    )


def _forward(
    cost: Tensor, a: Tensor | None, b: Tensor, epsilon: float, history: History, plan: Tensor, f: Tensor, g: Tensor
) -> None:
    """Solves one chunk, of cost (k n) or (b k n), into views of the outputs."""
    rows, cols = history.r.unbind(-2), history.v.unbind(-2)
    gauge = _first_gauge(cost, a)
    kernel, shift = kernel_matrix(cost, gauge, epsilon)
    weighted, r = weigh(kernel, a), first_row(shift, a, epsilon)
    column_sums, row_sums = products(weighted, kernel)
    history.start.zero_()
    first, due = 0, 1
    for t, (next_r, v) in enumerate(zip(rows, cols, strict=True)):
        torch.div(b, column_sums(r), out=v)
        if t == due:
            spread, change = _spreads(v, cols[t - 1])
            if spread + change > SPREAD:
                _close_segment(history, gauge, first, t)
                gauge = gauge + epsilon * v.log()
                v.fill_(1)
                kernel, shift = kernel_matrix(cost, gauge, epsilon)
                weighted = weigh(kernel, a)
                column_sums, row_sums = products(weighted, kernel)
                first, spread = t, 0.0
            due = t + _harmless_iterations(spread, change)
        r = torch.reciprocal(row_sums(v), out=next_r)
    _close_segment(history, gauge, first, len(rows))
    torch.mul(weighted, cols[-1].unsqueeze(-1), out=plan).mul_(r.unsqueeze(-2))
    torch.sub((r if a is None else a * r).log(), shift / epsilon, out=f)
    torch.add(cols[-1].log(), gauge / epsilon, out=g)


def _first_gauge(cost: Tensor, a: Tensor | None) -> Tensor:
    """The cheapest cost of each prototype among tokens with mass: its first column sum then lies in [1, n]."""
    if a is not None:
        cost = cost.masked_fill((a == 0).unsqueeze(-2), torch.inf)
    return cost.amin(-1)


def _spreads(v: Tensor, previous: Tensor) -> list[float]:
    """Of v and of its change, the largest log(max / min) over the items; an item that is NaN does not count."""
    low, high = torch.stack((v, v / previous)).log_().aminmax(dim=-1)
    return (high - low).nan_to_num_(0).view(2, -1).amax(-1).tolist()


def _harmless_iterations(spread: float, change: float) -> int:
    """For how many iterations v stays in range: in Hilbert's metric an iteration is nonexpansive, so that log v never
    changes by more than it last did. At least 1.
    """
    return int(min(1e9, max(1.0, (SPREAD - spread) / max(1e-3, change))))


def _close_segment(history: History, gauge: Tensor, first: int, end: int) -> None:
    history.gauge[..., first:end, :] = gauge.unsqueeze(-2)
    history.start[..., first] = 1


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cost, row_mass, col_mass, epsilon, _ = inputs
    _, _, _, error, history = output
    ctx.epsilon = epsilon
    ctx.save_for_backward(cost, row_mass, col_mass, history)
    ctx.mark_non_differentiable(error, history)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    of_cost, of_rows, of_cols = ctx.needs_input_grad[:3]
    grad_cost, grad_a, grad_b = adjoint(*grads[:3], *ctx.saved_tensors, ctx.epsilon, of_rows or of_cols)
    return grad_cost if of_cost else None, grad_a if of_rows else None, grad_b if of_cols else None, None, None


_solve_op.register_autograd(_differentiate, setup_context=_setup_context)
