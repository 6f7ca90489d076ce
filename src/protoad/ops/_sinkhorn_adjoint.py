"""The adjoint of Sinkhorn's iteration, written out; notation as in `_sinkhorn_kernel`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from protoad.ops._sinkhorn_kernel import (
    Masses,
    chunks,
    first_row,
    kernel_matrix,
    products,
    quick,
    row_scale,
    solvable,
    unit_scale,
    warm_kernel,
    warm_row,
    weigh,
)
from protoad.ops._sinkhorn_solver import History, split
from protoad.ops.precision import full_precision

__all__ = ["Gradients", "adjoint", "empty_gradients", "flat_gradients", "unchange_masses"]


class Gradients(NamedTuple):
    """To plan (.. k n), f (.. n) and g (.. k), None for zeros."""

    plan: Tensor | None
    f: Tensor | None
    g: Tensor | None


def empty_gradients(cost: Tensor, of_masses: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the gradients to cost (... n k), row_mass (... n) and col_mass (... k); the last two may be empty."""
    *leading, n, k = cost.shape
    rows, cols = ((*leading, n), (*leading, k)) if of_masses else ((0,), (0,))
    return cost.new_empty((*leading, k, n)).mT, cost.new_empty(rows), cost.new_empty(cols)


def flat_gradients(grads: tuple[Tensor | None, ...], empty: Tensor | None, n: int, k: int) -> Gradients:
    """The incoming gradients with one batch axis, prototypes first; none through the zero plan of an empty item."""
    plan, f, g = grads
    if plan is not None:
        plan = plan.reshape(-1, n, k).mT
        if empty is not None:
            plan = plan.masked_fill(empty.unsqueeze(-1), 0)
    return Gradients(plan, None if f is None else f.reshape(-1, n), None if g is None else g.reshape(-1, k))


def unchange_masses(grad_a: Tensor, grad_b: Tensor, masses: Masses, default_columns: bool) -> None:
    """From gradients to the masses solved with to those of the masses asked for, in place."""
    grad_a, grad_b = grad_a.view(-1, grad_a.shape[-1]), grad_b.view(-1, grad_b.shape[-1])
    grad_b.masked_fill_(masses.wanted == 0, 0)
    if masses.empty is not None:
        grad_a.masked_fill_(masses.empty, 0)
        grad_b.masked_fill_(masses.empty, 0)
    if default_columns:
        grad_a.add_(grad_b.mean(-1, keepdim=True))


def adjoint(
    grads: tuple[Tensor | None, ...],
    cost: Tensor,
    row_mass: Tensor | None,
    col_mass: Tensor | None,
    init: Tensor | None,
    iterations: Tensor,
    history: Tensor,
    epsilon: float,
    of_masses: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gives the exact gradients of the iterations that were run.

    Args:
        grads: to plan (... n k), f (... n) and g (... k), None for zeros.
        cost: (... n k), as solved.
        row_mass: (... n) or None.
        col_mass: (... k) or None.
        init: (... k) or None.
        iterations: (...) how many were run.
        history: (b t 2k+1) of the solver.
        epsilon: entropic regularisation.
        of_masses: whether gradients to the masses are wanted.

    Returns:
        To cost (... n k), row_mass (... n) and col_mass (... k), the last two empty unless wanted.
    """
    n, k = cost.shape[-2:]
    grad_cost, grad_a, grad_b = empty_gradients(cost, of_masses)
    costs, masses = cost.reshape(-1, n, k).mT, solvable(cost, row_mass, col_mass)
    flat = flat_gradients(grads, masses.empty, n, k)
    steps, inits = iterations.view(-1), None if init is None else init.reshape(-1, k)
    # Items that stopped at different iterations go back one by one.
    together = chunks(costs) if bool((steps == history.shape[1]).all()) else list(range(costs.shape[0]))
    with full_precision(cost):
        for items in together:
            a, b = None if masses.a is None else masses.a[items], masses.b[items]
            run = split(history[items, : int(steps[items])] if isinstance(items, int) else history[items])
            step = _Reverse(costs[items].contiguous(), a, b, None if inits is None else inits[items], epsilon, run)
            step.run(Gradients(*(None if grad is None else grad[items] for grad in flat)))
            grad_cost.mT.view(-1, k, n)[items] = step.grad_cost.div_(-epsilon)
            if of_masses:
                grad_a.view(-1, n)[items], grad_b.view(-1, k)[items] = step.grad_a, step.grad_b
    if of_masses:
        unchange_masses(grad_a, grad_b, masses, col_mass is None)
    return grad_cost, grad_a, grad_b


class _Reverse:
    """The iterations of one chunk, cost (k n) or (c k n), backwards, segment by segment.

    The gradient to -C / epsilon is (gradient to plan) o plan minus M o sum_t (v_t (a z_t)^T + y_t (a r_(t-1))^T), with
    z and y from `_steps`: per segment one product of two thin matrices.
    """

    def __init__(
        self, cost: Tensor, a: Tensor | None, b: Tensor, init: Tensor | None, epsilon: float, history: History
    ) -> None:
        self.cost, self.a, self.init, self.epsilon, self.history = cost, a, init, epsilon, history
        self.first_v = unit_scale(b)
        self.b = torch.where(b == 0, 1, b)  # where v = 0, all that is divided by b is 0 as well
        self.grad_cost = torch.zeros_like(cost)
        self.grad_a, self.grad_b = torch.zeros_like(cost[..., 0, :]), torch.zeros_like(b)

    def run(self, grads: Gradients) -> None:
        """Fills grad_cost with the gradient to -C / epsilon, and grad_a and grad_b."""
        w, y = None, None
        for first, end in self._segments():
            kernel, shift = kernel_matrix(self.cost, self.history.gauge[..., first, :], self.epsilon)
            weighted, v = weigh(kernel, self.a), self.history.v[..., first:end, :].contiguous()
            r = (v @ kernel).reciprocal_()
            before = self._row_before(kernel, shift, first)
            if w is None:
                w, y = self._enter(grads, kernel, r[..., -1, :], v[..., -1, :])
            zs, ys = self._steps(kernel, weighted, r, v, w, y)
            left = torch.cat((v, ys), -2).mT
            right = torch.cat((zs, before.unsqueeze(-2), r[..., :-1, :]), -2)
            self.grad_cost.addcmul_(weighted, left @ right, value=-1)
            self.grad_a += (zs / r).sum(-2)
            self.grad_b += (ys / v).sum(-2)
            if first > 0 or self.init is not None:
                w, y = (kernel * ys[..., 0, :].unsqueeze(-1)).sum(-2).mul_(before).neg_(), None
                if first == 0 and self.init is not None:
                    self._row_step(w, self.init)

    def _segments(self) -> list[tuple[int, int]]:
        """First iteration and end of each, from the last; all items of a chunk are absorbed at once, so that the first
        one's are all's.
        """
        starts = self.history.start
        firsts = starts.reshape(-1, starts.shape[-1])[0].nonzero().flatten().tolist()
        return list(zip(firsts, [*firsts[1:], starts.shape[-1]], strict=True))[::-1]

    def _row_before(self, kernel: Tensor, shift: Tensor, first: int) -> Tensor:
        """The r that a segment's first iteration starts from."""
        if first > 0:
            return row_scale(kernel, self.first_v)
        start = None if self.init is None else warm_row(self.cost, self.init, self.first_v, self.epsilon)
        return first_row(shift, self.a, start, self.epsilon)

    def _row_step(self, w: Tensor, g: Tensor) -> None:
        """The step from a given g to the f that goes with it."""
        kernel, _ = warm_kernel(self.cost, g, self.epsilon)
        kernel = kernel * self.first_v.unsqueeze(-1)
        shares = kernel / kernel.sum(-2, keepdim=True)
        self.grad_cost -= weigh(shares, self.a) * w.unsqueeze(-2)
        self.grad_a += w

    def _enter(self, grads: Gradients, kernel: Tensor, r: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Where the incoming gradients enter: w (.. n) and y (.. k) of the last iteration, as `_steps` takes them.

        Leaves (gradient to plan) o plan in grad_cost.
        """
        w, y = torch.zeros_like(r), torch.zeros_like(v)
        if grads.plan is not None:
            u = r if self.a is None else self.a * r
            # The plan is 0 where M is, whatever comes in there.
            pull = torch.where(kernel > 0, grads.plan, 0).mul_(kernel)
            w = (pull * v.unsqueeze(-1)).sum(-2).mul_(r)
            y = (pull * u.unsqueeze(-2)).sum(-1).mul_(v * v / self.b)
            torch.mul(pull, v.unsqueeze(-1), out=self.grad_cost).mul_(u.unsqueeze(-2))
        if grads.f is not None:
            # f = -inf has no gradient.
            w += grads.f if self.a is None else torch.where(self.a > 0, grads.f / self.a, 0)
        if grads.g is not None:
            y += grads.g * v / self.b
        return w, y

    def _steps(
        self, kernel: Tensor, weighted: Tensor, r: Tensor, v: Tensor, w: Tensor, y: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The z (.. t n) and y (.. t k) of one segment: z = r w, w = (gradient to f) / a; y = v (gradient to g) / b.

        One step back at a time: y_t = -v_t^2 / b o (M (a z_t)), and z_(t-1) = -r_(t-1)^2 o (M^T y_t).

        Args:
            kernel: M (.. k n).
            weighted: M with its columns times a.
            r: (.. t n).
            v: (.. t k).
            w: (.. n) of the last iteration.
            y: (.. k) that reaches the last iteration from outside, or None.
        """
        z_steps, y_steps = (r * r).neg_(), (v * v).div_(self.b.unsqueeze(-2)).neg_()
        zs, ys = torch.empty_like(r), torch.empty_like(v)
        zs[..., -1, :] = r[..., -1, :] * w
        column_sums, row_sums = products(weighted, kernel)
        library, (all_z, all_y, factors_z, factors_y) = quick(kernel, zs, ys, z_steps, y_steps)
        last = r.shape[-2] - 1
        for t in range(last, -1, -1):
            now = all_y[..., t, :]
            column_sums(all_z[..., t, :], now)
            library.multiply(now, factors_y[..., t, :], out=now)
            if y is not None and t == last:
                ys[..., t, :] += y
            if t > 0:
                earlier = all_z[..., t - 1, :]
                row_sums(now, earlier)
                library.multiply(earlier, factors_z[..., t - 1, :], out=earlier)
        return zs, ys
