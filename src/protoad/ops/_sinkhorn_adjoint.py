"""The adjoint of Sinkhorn's iteration, written out; notation as in `_sinkhorn_kernel`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from protoad.ops._sinkhorn_kernel import (
    History,
    Masses,
    chunks,
    first_row,
    kernel_matrix,
    products,
    solvable,
    split,
    weigh,
)
from protoad.ops.precision import full_precision

__all__ = ["adjoint"]


class _Gradients(NamedTuple):
    """To plan (.. k n), f (.. n) and g (.. k), None for zeros."""

    plan: Tensor | None
    f: Tensor | None
    g: Tensor | None


@torch.library.custom_op(
    "protoad::sinkhorn_backward",
    mutates_args=(),
    schema="(Tensor? grad_plan, Tensor? grad_f, Tensor? grad_g, Tensor cost, Tensor? row_mass, Tensor? col_mass, "
    "Tensor history, float epsilon, bool of_masses) -> (Tensor, Tensor, Tensor)",
)
def adjoint(
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
    costs, masses = cost.reshape(-1, n, k).mT, solvable(cost, row_mass, col_mass)
    grad_a.zero_()
    grad_b.zero_()
    grads = _flat_gradients(grad_plan, grad_f, grad_g, masses.empty, n, k)
    with full_precision(cost):
        for items in chunks(costs):
            a = None if masses.a is None else masses.a[items]
            of_a, of_b = (grad_a.view(-1, n)[items], grad_b.view(-1, k)[items]) if of_masses else (None, None)
            chunk_grads = _Gradients(*(None if grad is None else grad[items] for grad in grads))
            _backward(
                costs[items].contiguous(),
                a,
                masses.b[items],
                epsilon,
                split(history[items], n, k),
                chunk_grads,
                grad_cost.mT.view(-1, k, n)[items],
                of_a,
                of_b,
            )
    if of_masses:
        _unchange_masses(grad_a, grad_b, masses, col_mass is None)
    return grad_cost, grad_a, grad_b


@adjoint.register_fake
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


def _unchange_masses(grad_a: Tensor, grad_b: Tensor, masses: Masses, default_columns: bool) -> None:
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
    history: History,
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
        kernel, shift = kernel_matrix(cost, history.gauge[..., first, :], epsilon)
        weighted = weigh(kernel, a)
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
            _, row_sums = products(weighted, kernel)
            w, y = row_sums(ys[..., 0, :]).mul_(before).neg_(), None
    grad_cost.div_(-epsilon)


def _segments_from_the_last(history: History) -> list[tuple[int, int]]:
    """First iteration and end of each; all items of a chunk are absorbed at once, so that the first one's are all's."""
    firsts = history.start.reshape(-1, history.start.shape[-1])[0].nonzero().flatten().tolist()
    return list(zip(firsts, [*firsts[1:], history.r.shape[-2]], strict=True))[::-1]


def _enter(
    grads: _Gradients, kernel: Tensor, a: Tensor | None, b: Tensor, r: Tensor, v: Tensor, grad_cost: Tensor
) -> tuple[Tensor, Tensor]:
    """Where the incoming gradients enter: w (.. n) and y (.. k) of the last iteration, as `_reverse` takes them.

    Leaves (gradient to plan) o plan in grad_cost.
    """
    if grads.plan is None:
        w, y = torch.zeros_like(r), torch.zeros_like(v)
        grad_cost.zero_()
    else:
        pull, u = grads.plan * kernel, r if a is None else a * r
        column_sums, row_sums = products(pull, pull)
        w, y = row_sums(v).mul_(r), column_sums(u).mul_(v).mul_(v).div_(b)
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
    column_sums, row_sums = products(weighted, kernel)
    last = len(z_views) - 1
    torch.mul(r[..., -1, :], w, out=z_views[last])
    for t in range(last, -1, -1):
        torch.mul(column_sums(z_views[t]), v_factors[t], out=y_views[t])
        if y is not None and t == last:
            y_views[t].add_(y)
        if t > 0:
            torch.mul(row_sums(y_views[t]), r_factors[t - 1], out=z_views[t - 1])
    return zs, ys


def _row_before(history: History, cost: Tensor, a: Tensor | None, shift: Tensor, epsilon: float, first: int) -> Tensor:
    """The r that a segment's first iteration starts from, in the segment's own gauge."""
    if first == 0:
        return first_row(shift, a, epsilon)
    previous_shift = (history.gauge[..., first - 1, :].unsqueeze(-1) - cost).amax(-2)
    return history.r[..., first - 1, :] * ((shift - previous_shift) / epsilon).exp_()


def _refuse_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError(
        "sinkhorn: expected first derivatives only, got a derivative of its gradient; "
        "sinkhorn_reference of protoad.ops.sinkhorn_reference can be differentiated as often as needed"
    )


adjoint.register_autograd(_refuse_second_derivative)
