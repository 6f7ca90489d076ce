"""Sinkhorn's iteration as one operator with a written-out gradient: fast on a CPU, right in float32 for small epsilon.

Notation, per item: C (k n) is the cost, prototypes first because reducing a short last axis is slow on a CPU; a (n) and
b (k) are the masses. A gauge G (k), in units of the cost, keeps the kernel in range:

    M = exp((G - C - s) / epsilon),  s_n = max_k (G - C)_kn,     so that every token has its largest entry at 1;
    v = b / (M (a r)),  r = 1 / (M^T v)                          is one iteration, columns first;
    plan = M o (v (a r)^T),  f = log(a r) - s / epsilon,  g = log v + G / epsilon.

Written with r and not with u = a r, a token without mass (a = 0) needs no special case and has a finite gradient.
The first r is the one of f = 0. When v spreads over too many orders of magnitude it is absorbed into the gauge and M is
built anew; the iterations from one such rebuilding to the next are called a segment. Kept for the gradient are the cost,
the masses, and of each iteration r, v and the gauge they refer to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protoad.ops.precision import full_precision

__all__ = ["Solution", "solve"]

# Largest log(max v / min v) of an iteration. The gradient squares v and r: exp(2 * 30) fits into float32, and what
# underflows in M is less than exp(30 - 87) of the sum it is missing from. The same in float64: one path for both.
SPREAD = 30.0
# Entries of a cost from which on items go one after another, so that each stays in the second-level cache while it is
# solved; and how many entries go together below that.
LARGE_ITEM = 1 << 14
CHUNK = 1 << 17


class Solution(NamedTuple):
    """What the operator gives: plan (... n k), f (... n), g (... k), error (...), and the history (b t n+2k+1)."""

    plan: Tensor
    f: Tensor
    g: Tensor
    error: Tensor
    history: Tensor


class _Masses(NamedTuple):
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


class _History(NamedTuple):
    """Of each iteration: r (.. t n), v (.. t k), the gauge of both (.. t k), and whether a segment starts (.. t)."""

    r: Tensor
    v: Tensor
    gauge: Tensor
    start: Tensor


class _Gradients(NamedTuple):
    """To plan (.. k n), f (.. n) and g (.. k), None for zeros."""

    plan: Tensor | None
    f: Tensor | None
    g: Tensor | None


def solve(
    cost: Tensor, row_mass: Tensor | None, col_mass: Tensor | None, epsilon: float, n_iters: int
) -> Solution:
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
    costs, masses = cost.reshape(-1, n, k).mT, _solvable(cost, row_mass, col_mass)
    # A caller's autocast reaches into the operator: without this it would multiply matrices in bfloat16.
    with full_precision(cost):
        for items in _chunks(costs):
            a = None if masses.a is None else masses.a[items]
            history = _split(solution.history[items], n, k)
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


def _solvable(cost: Tensor, row_mass: Tensor | None, col_mass: Tensor | None) -> _Masses:
    *leading, n, k = cost.shape
    if row_mass is None and col_mass is None:
        b = cost.new_full((math.prod(leading), k), n / k)
        return _Masses(None, b, b, None)
    if row_mass is None:
        wanted = col_mass.reshape(-1, k)
        return _Masses(None, torch.where(wanted == 0, 1, wanted), wanted, None)
    a = row_mass.reshape(-1, n)
    total = a.sum(-1, keepdim=True)
    wanted = (total / k).expand(-1, k) if col_mass is None else col_mass.reshape(-1, k)
    empty = total == 0
    b = torch.where(empty | (wanted == 0), 1, wanted)
    return _Masses(torch.where(empty, 1, a), b, wanted, empty)


def _chunks(cost: Tensor) -> list[int] | list[slice]:
    """Which items to solve together: an index drops the axis of the batch, a slice keeps it."""
    items, size = cost.shape[0], cost.shape[1] * cost.shape[2]
    if cost.device.type != "cpu":
        return [slice(None)]
    if items == 1 or size >= LARGE_ITEM:
        return list(range(items))
    together = CHUNK // size
    return [slice(first, first + together) for first in range(0, items, together)]


def _split(history: Tensor, n: int, k: int) -> _History:
    r, v, gauge, start = history.split((n, k, k, 1), -1)
    return _History(r, v, gauge, start.squeeze(-1))


def _forward(
    cost: Tensor, a: Tensor | None, b: Tensor, epsilon: float, history: _History, plan: Tensor, f: Tensor, g: Tensor
) -> None:
    """Solves one chunk, of cost (k n) or (b k n), into views of the outputs."""
    rows, cols = history.r.unbind(-2), history.v.unbind(-2)
    gauge = _first_gauge(cost, a)
    kernel, shift = _kernel(cost, gauge, epsilon)
    weighted, r = _weigh(kernel, a), _first_row(shift, a, epsilon)
    column_sums, row_sums = _products(weighted, kernel)
    history.start.zero_()
    first, due = 0, 1
    for t, (next_r, v) in enumerate(zip(rows, cols, strict=True)):
        column_sums(r, out=v)
        torch.div(b, v, out=v)
        if t == due:
            spread, change = _spreads(v, cols[t - 1])
            if spread + change > SPREAD:
                _close_segment(history, gauge, first, t)
                gauge = gauge + epsilon * v.log()
                v.fill_(1)
                kernel, shift = _kernel(cost, gauge, epsilon)
                weighted = _weigh(kernel, a)
                column_sums, row_sums = _products(weighted, kernel)
                first, spread = t, 0.0
            due = t + _harmless_iterations(spread, change)
        row_sums(v, out=next_r)
        r = next_r.reciprocal_()
    _close_segment(history, gauge, first, len(rows))
    torch.mul(weighted, cols[-1].unsqueeze(-1), out=plan).mul_(r.unsqueeze(-2))
    torch.sub((r if a is None else a * r).log(), shift / epsilon, out=f)
    torch.add(cols[-1].log(), gauge / epsilon, out=g)


def _first_gauge(cost: Tensor, a: Tensor | None) -> Tensor:
    """The cheapest cost of each prototype among tokens with mass: its first column sum then lies in [1, n]."""
    if a is not None:
        cost = cost.masked_fill((a == 0).unsqueeze(-2), torch.inf)
    return cost.amin(-1)


def _first_row(shift: Tensor, a: Tensor | None, epsilon: float) -> Tensor:
    """The r of f = 0 at tokens with mass, and of f = -inf at others."""
    r = (shift / epsilon).exp_()
    return r if a is None else torch.where(a > 0, r / a, 0)


def _kernel(cost: Tensor, gauge: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """M (.. k n) and s (.. n). Divided by epsilon last: close costs subtract without a rounding error."""
    kernel = gauge.unsqueeze(-1) - cost
    shift = kernel.amax(-2)
    return kernel.sub_(shift.unsqueeze(-2)).div_(epsilon).exp_(), shift


def _weigh(kernel: Tensor, a: Tensor | None) -> Tensor:
    return kernel if a is None else kernel * a.unsqueeze(-2)


def _products(weighted: Tensor, kernel: Tensor) -> tuple[Callable[..., None], Callable[..., None]]:
    """x (.. n) -> (M a) x (.. k) and y (.. k) -> M^T y (.. n), each called with the vector and `out`."""
    if kernel.ndim == 2:
        return partial(torch.mv, weighted), partial(torch.mv, kernel.mT)
    return partial(_from_the_left, weighted.mT), partial(_from_the_left, kernel)


def _from_the_left(matrix: Tensor, vector: Tensor, *, out: Tensor) -> None:
    # torch.bmm takes 5 to 30 times as long with the vector on the right, which misses the batched matrix product.
    torch.bmm(vector.unsqueeze(-2), matrix, out=out.unsqueeze(-2))


def _spreads(v: Tensor, previous: Tensor) -> list[float]:
    """Of v and of its change, the largest log(max / min) over the items."""
    low, high = torch.stack((v, v / previous)).log_().aminmax(dim=-1)
    return (high - low).view(2, -1).amax(-1).tolist()


def _harmless_iterations(spread: float, change: float) -> int:
    """For how many iterations v stays in range: in Hilbert's metric an iteration is nonexpansive, so that log v never
    changes by more than it last did. At least 1, also for NaN.
    """
    return int(min(1e9, max(1.0, (SPREAD - spread) / max(1e-3, change))))


def _close_segment(history: _History, gauge: Tensor, first: int, end: int) -> None:
    history.gauge[..., first:end, :] = gauge.unsqueeze(-2)
    history.start[..., first] = 1


@torch.library.custom_op(
    "protoad::sinkhorn_backward",
    mutates_args=(),
    schema="(Tensor? grad_plan, Tensor? grad_f, Tensor? grad_g, Tensor cost, Tensor? row_mass, Tensor? col_mass, "
    "Tensor history, float epsilon, bool of_masses) -> (Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad_plan: Tensor | None,
    grad_f: Tensor | None,
    grad_g: Tensor | None,
    cost: Tensor,
    row_mass: Tensor | None,
    col_mass: Tensor | None,
    history: Tensor,
    epsilon: float,
    of_masses: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gives the gradients to cost (... n k), row_mass (b n) and col_mass (b k); the last two empty unless asked for."""
    n, k = cost.shape[-2:]
    grad_cost, grad_a, grad_b = _empty_gradients(
        grad_plan, grad_f, grad_g, cost, row_mass, col_mass, history, epsilon, of_masses
    )
    costs, masses = cost.reshape(-1, n, k).mT, _solvable(cost, row_mass, col_mass)
    grad_a.zero_(), grad_b.zero_()
    grads = _flat_gradients(grad_plan, grad_f, grad_g, masses.empty, n, k)
    with full_precision(cost):
        for items in _chunks(costs):
            a = None if masses.a is None else masses.a[items]
            of_a, of_b = (grad_a.view(-1, n)[items], grad_b.view(-1, k)[items]) if of_masses else (None, None)
            chunk_grads = _Gradients(*(None if grad is None else grad[items] for grad in grads))
            _backward(
                costs[items].contiguous(), a, masses.b[items], epsilon, _split(history[items], n, k), chunk_grads,
                grad_cost.mT.view(-1, k, n)[items], of_a, of_b,
            )
    if of_masses:
        _unchange_masses(grad_a, grad_b, masses, col_mass is None)
    return grad_cost, grad_a, grad_b


@_backward_op.register_fake
def _empty_gradients(
    grad_plan: Tensor | None,
    grad_f: Tensor | None,
    grad_g: Tensor | None,
    cost: Tensor,
    row_mass: Tensor | None,
    col_mass: Tensor | None,
    history: Tensor,
    epsilon: float,
    of_masses: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    *leading, n, k = cost.shape
    grad_cost = cost.new_empty((*leading, k, n)).mT
    rows, cols = ((*leading, n), (*leading, k)) if of_masses else ((0,), (0,))
    return grad_cost, cost.new_empty(rows), cost.new_empty(cols)


def _flat_gradients(
    plan: Tensor | None, f: Tensor | None, g: Tensor | None, empty: Tensor | None, n: int, k: int
) -> _Gradients:
    """The incoming gradients with one batch axis, prototypes first; none through the zero plan of an empty item."""
    if plan is not None:
        plan = plan.reshape(-1, n, k).mT
        if empty is not None:
            plan = plan.masked_fill(empty.unsqueeze(-1), 0)
    return _Gradients(plan, None if f is None else f.reshape(-1, n), None if g is None else g.reshape(-1, k))


def _unchange_masses(grad_a: Tensor, grad_b: Tensor, masses: _Masses, default_columns: bool) -> None:
    """From gradients to the masses solved with to those of the masses asked for, in place."""
    grad_a, grad_b = grad_a.view(-1, grad_a.shape[-1]), grad_b.view(-1, grad_b.shape[-1])
    grad_b.masked_fill_(masses.wanted == 0, 0)
    if masses.empty is not None:
        grad_a.masked_fill_(masses.empty, 0)
        grad_b.masked_fill_(masses.empty, 0)
    if default_columns:
        grad_a.add_(grad_b.mean(-1, keepdim=True))


def _backward(
    cost: Tensor,
    a: Tensor | None,
    b: Tensor,
    epsilon: float,
    history: _History,
    grads: _Gradients,
    grad_cost: Tensor,
    grad_a: Tensor | None,
    grad_b: Tensor | None,
) -> None:
    """The adjoint of `_forward` for one chunk, segment by segment from the last, into views of the gradients.

    The gradient to -C / epsilon is (gradient to plan) o plan minus M o sum_t (v_t (a z_t)^T + y_t (a r_(t-1))^T), with
    z and y from `_reverse`: per segment one product of two thin matrices.
    """
    w, y = None, None
    for first, end in _segments_from_the_last(history):
        kernel, shift = _kernel(cost, history.gauge[..., first, :], epsilon)
        weighted = _weigh(kernel, a)
        r, v = history.r[..., first:end, :], history.v[..., first:end, :]
        if w is None:
            w, y = _enter(grads, kernel, a, b, r[..., -1, :], v[..., -1, :], grad_cost)
        zs, ys = _reverse(kernel, weighted, r, v, b, w, y)
        before = _row_before(history, cost, a, shift, epsilon, first)
        left = torch.cat((v, ys), -2).mT
        right = torch.cat((zs, before.unsqueeze(-2), r[..., :-1, :]), -2)
        grad_cost.addcmul_(weighted, left @ right, value=-1)
        if grad_a is not None and grad_b is not None:
            grad_a += (zs / r).sum(-2)
            grad_b += (ys / v).sum(-2)
        if first > 0:
            w, y = -before * (kernel.mT @ ys[..., 0, :].unsqueeze(-1)).squeeze(-1), None
    grad_cost.div_(-epsilon)


def _segments_from_the_last(history: _History) -> list[tuple[int, int]]:
    """First iteration and end of each; all items of a chunk are absorbed at once, so that the first one's are all's."""
    firsts = history.start.reshape(-1, history.start.shape[-1])[0].nonzero().flatten().tolist()
    return list(zip(firsts, [*firsts[1:], history.r.shape[-2]], strict=True))[::-1]


def _enter(
    grads: _Gradients, kernel: Tensor, a: Tensor | None, b: Tensor, r: Tensor, v: Tensor, grad_cost: Tensor
) -> tuple[Tensor, Tensor]:
    """Where the incoming gradients enter: w (.. n) and y (.. k) of the last iteration, as `_reverse` takes them.

    Leaves (gradient to plan) o plan in grad_cost.
    """
    w, y = torch.zeros_like(r), torch.zeros_like(v)
    if grads.plan is None:
        grad_cost.zero_()
    else:
        pull, u = grads.plan * kernel, r if a is None else a * r
        to_columns, to_rows = _products(pull, pull)
        to_columns(u, out=y)
        to_rows(v, out=w)
        w.mul_(r)
        y.mul_(v).mul_(v).div_(b)
        torch.mul(pull, v.unsqueeze(-1), out=grad_cost).mul_(u.unsqueeze(-2))
    if grads.f is not None:
        # f = -inf has no gradient.
        w += grads.f if a is None else torch.where(a > 0, grads.f / a, 0)
    if grads.g is not None:
        y += grads.g * v / b
    return w, y


def _reverse(
    kernel: Tensor, weighted: Tensor, r: Tensor, v: Tensor, b: Tensor, w: Tensor, y: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The z (.. t n) and y (.. t k) of one segment: z = r w with w = (gradient to f) / a, y = v (gradient to g) / b.

    One step back at a time: y_t = -v_t^2 / b o (M (a z_t)), and z_(t-1) = -r_(t-1)^2 o (M^T y_t).

    Args:
        kernel: M (.. k n).
        weighted: M with its columns times a.
        r: (.. t n).
        v: (.. t k).
        b: (.. k).
        w: (.. n) of the last iteration.
        y: (.. k) that reaches the last iteration from outside, or None.
    """
    zs, ys = torch.empty_like(r), torch.empty_like(v)
    z_views, y_views = zs.unbind(-2), ys.unbind(-2)
    r_factors, v_factors = (r * r).neg_().unbind(-2), (v * v).div_(b.unsqueeze(-2)).neg_().unbind(-2)
    column_sums, row_sums = _products(weighted, kernel)
    last = len(z_views) - 1
    torch.mul(r[..., -1, :], w, out=z_views[last])
    for t in range(last, -1, -1):
        column_sums(z_views[t], out=y_views[t])
        y_views[t].mul_(v_factors[t])
        if y is not None and t == last:
            y_views[t].add_(y)
        if t > 0:
            row_sums(y_views[t], out=z_views[t - 1])
            z_views[t - 1].mul_(r_factors[t - 1])
    return zs, ys


def _row_before(
    history: _History, cost: Tensor, a: Tensor | None, shift: Tensor, epsilon: float, first: int
) -> Tensor:
    """The r that a segment's first iteration starts from, in the segment's own gauge."""
    if first == 0:
        return _first_row(shift, a, epsilon)
    previous_shift = (history.gauge[..., first - 1, :].unsqueeze(-1) - cost).amax(-2)
    return history.r[..., first - 1, :] * ((shift - previous_shift) / epsilon).exp_()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cost, row_mass, col_mass, epsilon, _ = inputs
    _, _, _, error, history = output
    ctx.epsilon = epsilon
    ctx.save_for_backward(cost, row_mass, col_mass, history)
    ctx.mark_non_differentiable(error, history)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    of_cost, of_rows, of_cols = ctx.needs_input_grad[:3]
    grad_cost, grad_a, grad_b = _backward_op(*grads[:3], *ctx.saved_tensors, ctx.epsilon, of_rows or of_cols)
    return grad_cost if of_cost else None, grad_a if of_rows else None, grad_b if of_cols else None, None, None


def _refuse_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError(
        "sinkhorn: expected first derivatives only, got a derivative of its gradient; "
        "protoad.ops.sinkhorn_reference is differentiable as often as asked"
    )


_solve_op.register_autograd(_differentiate, setup_context=_setup_context)
_backward_op.register_autograd(_refuse_second_derivative)
