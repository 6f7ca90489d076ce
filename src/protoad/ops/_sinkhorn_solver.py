"""Sinkhorn's iteration, right in float32 for small epsilon, fast on a CPU; notation as in `_sinkhorn_kernel`.

Kept for the exact gradient are, of each iteration, v, the gauge it refers to, and whether a new kernel was built for
it: a segment starts. All else is computed again from the cost.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from protoad.ops._sinkhorn_kernel import (
    SPREAD,
    Masses,
    absorbed,
    chunks,
    first_gauge,
    first_row,
    iteration,
    kernel_matrix,
    row_scale,
    solvable,
    spread,
    unit_scale,
    warm_row,
    weigh,
)
from protoad.ops.precision import full_precision

__all__ = [
    "LOOK_EVERY",
    "History",
    "Solution",
    "column_error",
    "empty_solution",
    "publish",
    "solve",
    "split",
]

# With a tolerance the columns are looked at every so many iterations, a look costing as much as one of a small item.
LOOK_EVERY = 5


class Solution(NamedTuple):
    """What every solver gives.

    Attributes:
        plan: (... n k).
        f: (... n).
        g: (... k).
        error: (...) largest relative error of a column sum.
        iterations: (...) int64.
        history: (b t h) for the exact gradient; empty where none is wanted.
    """

    plan: Tensor
    f: Tensor
    g: Tensor
    error: Tensor
    iterations: Tensor
    history: Tensor


class History(NamedTuple):
    """Of each iteration: v (.. t k), its gauge (.. t k), and whether a segment starts (.. t)."""

    v: Tensor
    gauge: Tensor
    start: Tensor


def split(history: Tensor) -> History:
    """The parts of a history (.. t 2k+1), as views."""
    k = history.shape[-1] // 2
    v, gauge, start = history.split((k, k, 1), -1)
    return History(v, gauge, start.squeeze(-1))


def empty_solution(cost: Tensor, n_iters: int, history_size: int) -> Solution:
    """Memory for a solution, the plan with n dense, and for a history (b t h) of that h, or none for 0."""
    *leading, n, k = cost.shape
    steps = n_iters if history_size else 0
    return Solution(
        cost.new_empty((*leading, k, n)).mT,
        cost.new_empty((*leading, n)),
        cost.new_empty((*leading, k)),
        cost.new_empty(leading),
        torch.empty(leading, dtype=torch.int64, device=cost.device),
        cost.new_empty((math.prod(leading), steps, history_size)),
    )


def solve(
    cost: Tensor,
    row_mass: Tensor | None,
    col_mass: Tensor | None,
    init: Tensor | None,
    epsilon: float,
    n_iters: int,
    tol: float | None,
    keep_history: bool,
) -> Solution:
    """Runs the iteration.

    Args:
        cost: (... n k) float32 or float64; fastest where n is the axis that lies dense in memory.
        row_mass: (... n) masses of the tokens, non-negative; None for ones.
        col_mass: (... k) masses of the prototypes, non-negative; None for sum(row_mass) / k.
        init: (... k) the g to start from; None for f = 0.
        epsilon: entropic regularisation.
        n_iters: iterations, at least 1; with a tolerance, the most.
        tol: error of the columns at which an item is done; None to run all iterations.
        keep_history: whether the exact gradient will be asked for.
    """
    n, k = cost.shape[-2:]
    solution = empty_solution(cost, n_iters, 2 * k + 1 if keep_history else 0)
    costs, masses = cost.reshape(-1, n, k).mT, solvable(cost, row_mass, col_mass)
    inits = None if init is None else init.reshape(-1, k)
    # A caller's autocast reaches into the operator: without this it would multiply matrices in bfloat16.
    with full_precision(cost):
        for items in chunks(costs):
            _Chunk(costs, masses, inits, epsilon, solution, items).run(n_iters, tol)
    publish(solution, masses)
    return solution


def publish(solution: Solution, masses: Masses) -> None:
    """Gives items without mass their zero plan, which misses all of a wanted column."""
    if masses.empty is not None:
        n, k = solution.plan.shape[-2:]
        solution.plan.mT.view(-1, k, n).masked_fill_(masses.empty.unsqueeze(-1), 0)
        missed = (masses.wanted > 0).any(-1).to(solution.error)
        error = solution.error.view(-1)
        error.copy_(torch.where(masses.empty.squeeze(-1), missed, error))


def column_error(sums: Tensor, b: Tensor) -> Tensor:
    """The largest relative error (..) of column sums (.. k)."""
    return (sums - b).abs_().div_(b.clamp_min(torch.finfo(b.dtype).tiny)).amax(-1)


class _Chunk:
    """Items that are solved together, cost (k n) or (c k n), and where their solution goes."""

    def __init__(
        self,
        costs: Tensor,
        masses: Masses,
        inits: Tensor | None,
        epsilon: float,
        solution: Solution,
        items: int | slice,
    ) -> None:
        k, n = costs.shape[-2:]
        self.cost = costs[items].contiguous()
        self.a = None if masses.a is None else masses.a[items]
        self.b = masses.b[items].contiguous()
        self.epsilon = epsilon
        self.result: tuple[Tensor, ...] = (
            solution.plan.mT.view(-1, k, n)[items],
            solution.f.view(-1, n)[items],
            solution.g.view(-1, k)[items],
            solution.error.view(-1)[items],
            solution.iterations.view(-1)[items],
        )
        self.history = split(solution.history[items]) if solution.history.numel() else None
        start = None if inits is None else warm_row(self.cost, inits[items], self.b, epsilon)
        self._build(first_gauge(self.cost, self.a, start))
        self.r = first_row(self.shift, self.a, start, epsilon)

    def _build(self, gauge: Tensor) -> None:
        self.gauge = gauge
        self.kernel, self.shift = kernel_matrix(self.cost, gauge, self.epsilon)
        self.weighted = weigh(self.kernel, self.a)
        self.iterate = iteration(self.kernel, self.weighted, self.b)

    def run(self, n_iters: int, tol: float | None) -> None:
        """Iterates to the end, absorbing v before it leaves the range, and looking at the columns if need be."""
        v, done = torch.ones_like(self.b), None
        t, due, starts = 0, 2, True
        while t < n_iters:
            look = n_iters if tol is None else (t // LOOK_EVERY + 1) * LOOK_EVERY
            end = min(n_iters, due, look)
            vs = self._record(t, end, starts)
            self.iterate(self.r, vs)
            before, v, starts, t = vs[..., -2, :] if end - t > 1 else v, vs[..., -1, :], False, end
            if tol is not None and t in (look, n_iters):
                done = self._look(v, done, t, tol)
                if done.all():
                    return
            if t == due and t < n_iters:
                wide, change = spread(v), spread(v / before.clamp_min(torch.finfo(v.dtype).tiny))
                if wide + change > SPREAD:
                    self._build(absorbed(self.gauge, v, self.epsilon))
                    v, starts, wide = unit_scale(self.b), True, 0.0
                    self.r = row_scale(self.kernel, v)
                due = t + _harmless_iterations(wide, change)
        self._write(v, t, None if done is None else ~done)

    def _record(self, first: int, end: int, starts: bool) -> Tensor:
        """Where the v (.. t k) of these iterations go: the history, or nowhere."""
        if self.history is None:
            return self.b.new_empty((*self.b.shape[:-1], end - first, self.b.shape[-1]))
        self.history.gauge[..., first:end, :] = self.gauge.unsqueeze(-2)
        self.history.start[..., first:end] = 0
        self.history.start[..., first] = float(starts)
        return self.history.v[..., first:end, :]

    def _look(self, v: Tensor, done: Tensor | None, t: int, tol: float) -> Tensor:
        """Writes the items that are done by now, and says which (..) are."""
        good = self._error(v) <= tol
        new = good if done is None else good & ~done
        if new.any():
            self._write(v, t, new)
        return good if done is None else good | done

    def _error(self, v: Tensor) -> Tensor:
        return column_error((self.weighted * self.r.unsqueeze(-2)).sum(-1).mul_(v), self.b)

    def _write(self, v: Tensor, t: int, which: Tensor | None) -> None:
        """Gives the solution after t iterations, of all items or of some."""
        if which is not None and which.ndim and not which.all():
            whole, parts = self.result, [torch.empty_like(one) for one in self.result]
            self.result = tuple(parts)
            self._write(v, t, None)
            for target, value in zip(whole, parts, strict=True):
                target[which] = value[which]
            self.result = whole
            return
        plan, f, g, error, iterations = self.result
        torch.mul(self.weighted, v.unsqueeze(-1), out=plan).mul_(self.r.unsqueeze(-2))
        torch.log(self.r if self.a is None else self.a * self.r, out=f).sub_(self.shift / self.epsilon)
        torch.log(v, out=g).add_(self.gauge / self.epsilon)
        error.copy_(column_error(plan.sum(-1), self.b))
        iterations.fill_(t)


def _harmless_iterations(wide: float, change: float) -> int:
    """For how many iterations v stays in range: in Hilbert's metric an iteration is nonexpansive, so that log v never
    changes by more than it last did. At least 1.
    """
    return int(min(1e9, max(1.0, (SPREAD - wide) / max(1e-3, change))))
