"""Newton's method on the k potentials of the prototypes: the converged plan in about ten steps.

With the rows exact, what remains is a concave problem in g alone, of gradient b - c for the column sums c, and of
curvature diag c - plan^T S (`_sinkhorn_implicit.curvature`). Notation as in `_sinkhorn_kernel`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from protoad.ops._sinkhorn_implicit import curvature
from protoad.ops._sinkhorn_kernel import (
    SPREAD,
    absorbed,
    chunks,
    first_gauge,
    first_row,
    iteration,
    kernel_matrix,
    products,
    quick,
    row_scale,
    solvable,
    spread,
    unit_scale,
    warm_row,
    weigh,
)
from protoad.ops._sinkhorn_solver import Solution, column_error, empty_solution, publish
from protoad.ops.precision import full_precision

__all__ = ["TOLERANCE", "solve"]

# The column error that rounding still lets through, and that a tolerance of None asks for.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}
# Far from the solution Sinkhorn gains more than Newton: so many iterations cost as much as one or two steps. v survives
# a few between two looks at its range.
FIRST_ROUNDS, ITERATIONS_A_ROUND = 10, 3
# Below this share of the spread of the costs epsilon is approached from above, by so large a factor at a time: Newton's
# quadratic model is good for changes of g of about epsilon.
ANNEAL_BELOW, ANNEAL_BY = 0.02, 4.0
# While annealing a column error of this size is good enough.
ROUGHLY = 0.1
LONGEST_STEP = 50.0  # largest change of log v; with SPREAD it stays in float32, and the search halves it
MOST_HALVINGS = 10


def solve(
    cost: Tensor,
    row_mass: Tensor | None,
    col_mass: Tensor | None,
    init: Tensor | None,
    epsilon: float,
    n_iters: int,
    tol: float | None,
) -> Solution:
    """Gives the converged plan; arguments as in `_sinkhorn_solver.solve`, n_iters bounds the steps at each epsilon."""
    n, k = cost.shape[-2:]
    solution = empty_solution(cost, n_iters, 0)
    costs, masses = cost.reshape(-1, n, k).mT, solvable(cost, row_mass, col_mass)
    plans, fs, gs = solution.plan.mT.view(-1, k, n), solution.f.view(-1, n), solution.g.view(-1, k)
    tol = TOLERANCE[cost.dtype] if tol is None else tol
    with full_precision(cost):
        for items in chunks(costs):
            items = slice(items, items + 1) if isinstance(items, int) else items
            a = None if masses.a is None else masses.a[items]
            start = None if init is None else init.reshape(-1, k)[items]
            descent = _Ascent(costs[items].contiguous(), a, masses.b[items].contiguous(), start, epsilon)
            descent.run(n_iters, tol)
            plans[items], fs[items], gs[items] = descent.result()
            solution.error.view(-1)[items] = column_error(plans[items].sum(-1), descent.b)
            solution.iterations.view(-1)[items] = descent.steps
    publish(solution, masses)
    return solution


class _Ascent:
    """Items of cost (c k n) that climb side by side, none knowing of the others."""

    gauge: Tensor
    v: Tensor
    kernel: Tensor
    shift: Tensor
    weighted: Tensor

    def __init__(self, cost: Tensor, a: Tensor | None, b: Tensor, init: Tensor | None, epsilon: float) -> None:
        self.cost, self.a, self.b, self.final = cost, a, b, epsilon
        self.steps = torch.zeros(len(cost), dtype=torch.int64, device=cost.device)
        self.epsilon = self._first_epsilon(cold=init is None)
        start = None if init is None else warm_row(cost, init, b, epsilon)
        self._build(first_gauge(cost, a, start))
        self._first_iterations(first_row(self.shift, a, start, self.epsilon))

    def _first_epsilon(self, *, cold: bool) -> Tensor:
        """The epsilon (c 1) each item starts with."""
        epsilon = torch.full_like(self.b[:, :1], self.final)
        if cold:
            finite = torch.where(self.cost < torch.inf, self.cost, self.cost.amin(-2, keepdim=True))
            reach = (finite.amax(-2) - finite.amin(-2)).amax(-1, keepdim=True)
            rounds = (ANNEAL_BELOW * reach / self.final).log_().div_(math.log(ANNEAL_BY)).ceil_()
            epsilon *= ANNEAL_BY ** rounds.nan_to_num_(0).clamp_(0, 60)
        return epsilon

    def _first_iterations(self, r: Tensor) -> None:
        vs = self.b.new_empty((len(self.b), ITERATIONS_A_ROUND, self.b.shape[-1]))
        run = self._iteration()
        for _ in range(FIRST_ROUNDS):
            run(r, vs) if len(vs) > 1 else run(r[0], vs[0])
            self.v = vs[:, -1].contiguous()
            if spread(self.v) > SPREAD:
                self._build(absorbed(self.gauge, self.v, self.epsilon))
                r, run = row_scale(self.kernel, self.v), self._iteration()

    def _iteration(self) -> Callable[[Tensor, Tensor], None]:
        if len(self.b) == 1:
            return iteration(self.kernel[0], self.weighted[0], self.b[0])
        return iteration(self.kernel, self.weighted, self.b)

    def _build(self, gauge: Tensor) -> None:
        """Lets v be 1 in this gauge, for these epsilon."""
        self.gauge, self.v = gauge, unit_scale(self.b)
        self.kernel, self.shift = kernel_matrix(self.cost, gauge, self.epsilon.unsqueeze(-1))
        self.weighted = weigh(self.kernel, self.a)
        self.column_sums, self.row_sums = products(self.weighted, self.kernel)

    def _sums(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the r (c n) of v, and the column sums (c k) of their plan."""
        r, sums = torch.empty_like(self.shift), torch.empty_like(v)
        _, (fast_v, fast_r, fast_sums) = quick(self.kernel, v, r, sums)
        self.row_sums(fast_v, fast_r)
        r.reciprocal_()
        self.column_sums(fast_r, fast_sums)
        return r, sums.mul_(v)

    def run(self, n_iters: int, tol: float) -> None:
        """Climbs until every item has arrived, or has taken n_iters steps at one epsilon."""
        r, sums = self._sums(self.v)
        at_this_epsilon = torch.zeros_like(self.steps)
        while True:
            annealing = self.epsilon[:, 0] > self.final
            error = ((sums - self.b).abs() - torch.where(annealing, ROUGHLY, tol).unsqueeze(-1) * self.b).amax(-1)
            arrived = ~(error > 0) | (at_this_epsilon >= n_iters)  # written so that NaN has arrived
            finished = arrived & ~annealing
            if finished.all():
                return
            if (arrived & annealing).any():
                gauge = absorbed(self.gauge, self.v, self.epsilon)
                cooled = torch.where(arrived.unsqueeze(-1), self.epsilon / ANNEAL_BY, self.epsilon)
                self.epsilon = cooled.clamp_min(self.final)
                at_this_epsilon.masked_fill_(arrived, 0)
                self._build(gauge)
                r, sums = self._sums(self.v)
                continue
            r, sums = self._step(r, sums, finished)
            at_this_epsilon += ~finished
            self.steps += ~finished
            if spread(self.v) > SPREAD:
                self._build(absorbed(self.gauge, self.v, self.epsilon))
                r, sums = self._sums(self.v)

    def _step(self, r: Tensor, sums: Tensor, finished: Tensor) -> tuple[Tensor, Tensor]:
        """One step of every unfinished item: Newton's, if one short enough is an ascent, else Sinkhorn's."""
        missing, length = self.b - sums, torch.ones_like(self.b[:, :1])
        direction = self._direction(r, sums).masked_fill_(finished.unsqueeze(-1), 0)
        for halving in range(MOST_HALVINGS + 1):
            change = length * direction
            trial = self.v * change.exp()
            new_r, new_sums = self._sums(trial)
            good = finished | self._ascends(change, missing, r, new_r, new_sums)
            if good.all():
                break
            bad = ~good.unsqueeze(-1)
            if halving < MOST_HALVINGS - 1:
                length = torch.where(bad, length / 2, length)
            else:
                length = torch.where(bad, 1, length)
                direction = torch.where(bad, torch.where(self.b > 0, self.b / sums, 1).log_(), direction)
        self.v = trial
        return new_r, new_sums

    def _ascends(self, change: Tensor, missing: Tensor, r: Tensor, new_r: Tensor, new_sums: Tensor) -> Tensor:
        """Whether a change of log v (c k) brings an item on (c): the dual objective rises as it should, or, where that
        is lost in rounding, the columns come closer.
        """
        gain = (new_r / r).log_()
        rise = (self.b * change).sum(-1) + (gain if self.a is None else self.a * gain).sum(-1)
        promised = (missing * change).sum(-1)
        rounding = torch.finfo(rise.dtype).eps * (self.b * change.abs()).sum(-1)
        closer = (self.b - new_sums).abs().sum(-1) < missing.abs().sum(-1)
        return torch.where(promised > 100 * rounding, rise >= 0.1 * promised, closer)

    def _direction(self, r: Tensor, sums: Tensor) -> Tensor:
        """Newton's change of log v (c k), of limited length; 0 where the matrix cannot be inverted."""
        shares = self.kernel * r.unsqueeze(-2)  # but for v
        overlap = (weigh(shares, self.a) @ shares.mT).mul_(self.v.unsqueeze(-1)).mul_(self.v.unsqueeze(-2))
        matrix = curvature(overlap, sums)
        step, failed = torch.linalg.solve_ex(matrix, (self.b - sums).unsqueeze(-1))
        step = step.squeeze(-1).masked_fill_((failed != 0).unsqueeze(-1), 0).nan_to_num_(0)
        return step * (LONGEST_STEP / step.abs().amax(-1, keepdim=True)).clamp_max(1)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Plan (c k n), f (c n) and g (c k)."""
        r, _ = self._sums(self.v)
        plan = (self.weighted * self.v.unsqueeze(-1)).mul_(r.unsqueeze(-2))
        f = (r if self.a is None else self.a * r).log().sub_(self.shift / self.epsilon)
        return plan, f, self.v.log().add_(self.gauge / self.epsilon)
