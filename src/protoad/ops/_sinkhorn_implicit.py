"""The gradient of the converged plan: the equations it solves, differentiated; notation as in `_sinkhorn_kernel`."""

from __future__ import annotations

import torch
from torch import Tensor

from protoad.ops._sinkhorn_adjoint import Gradients, empty_gradients, flat_gradients, unchange_masses
from protoad.ops._sinkhorn_kernel import chunks, kernel_matrix, solvable
from protoad.ops.precision import full_precision

__all__ = ["curvature", "implicit_adjoint"]


def implicit_adjoint(
    grads: tuple[Tensor | None, ...],
    cost: Tensor,
    row_mass: Tensor | None,
    col_mass: Tensor | None,
    plan: Tensor,
    g: Tensor,
    epsilon: float,
    of_masses: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gives the gradients as if the plan had converged, from a system of k unknowns for each item.

    With shares S = plan / a (rows sum to 1) and column sums c, the multipliers of the two constraints solve

        (diag c - plan^T S) lam = column sums of plan o G - plan^T alpha,   alpha = row sums of S o G,
        mu = alpha - S lam,

    and the gradient to -C / epsilon is plan o (G - mu - lam); mu and lam are the gradients to the masses. Potentials
    are known up to a constant that both exchange: what a gradient to f or g says of it is left out.

    Args:
        grads: to plan (... n k), f (... n) and g (... k), None for zeros.
        cost: (... n k), as solved.
        row_mass: (... n) or None.
        col_mass: (... k) or None.
        plan: (... n k) of the solver.
        g: (... k) of the solver.
        epsilon: entropic regularisation.
        of_masses: whether gradients to the masses are wanted.

    Returns:
        To cost (... n k), row_mass (... n) and col_mass (... k), the last two empty unless wanted.
    """
    n, k = cost.shape[-2:]
    grad_cost, grad_a, grad_b = empty_gradients(cost, of_masses)
    costs, masses = cost.reshape(-1, n, k).mT, solvable(cost, row_mass, col_mass)
    plans, gauges = plan.reshape(-1, n, k).mT, g.reshape(-1, k) * epsilon
    flat = flat_gradients(grads, masses.empty, n, k)
    with full_precision(cost):
        for items in chunks(costs):
            a = None if masses.a is None else masses.a[items]
            shares = plans[items] if a is None else _shares(costs[items], gauges[items], epsilon)
            grad_x, mu, lam = _adjoint(Gradients(*(None if grad is None else grad[items] for grad in flat)), shares, a)
            torch.div(grad_x, -epsilon, out=grad_cost.mT.view(-1, k, n)[items])
            if of_masses:
                grad_a.view(-1, n)[items], grad_b.view(-1, k)[items] = mu, lam
    if masses.empty is not None:
        grad_cost.mT.view(-1, k, n).masked_fill_(masses.empty.unsqueeze(-1), 0)
    if of_masses:
        unchange_masses(grad_a, grad_b, masses, col_mass is None)
    return grad_cost, grad_a, grad_b


def _shares(cost: Tensor, gauge: Tensor, epsilon: float) -> Tensor:
    """S (.. k n), also of tokens without mass, of which the plan says nothing."""
    kernel, _ = kernel_matrix(cost, gauge, epsilon)
    return kernel.div_(kernel.sum(-2, keepdim=True))


def _adjoint(grads: Gradients, shares: Tensor, a: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Gives the gradient to -C / epsilon (.. k n), mu (.. n) and lam (.. k) of one chunk."""
    plan = shares if a is None else shares * a.unsqueeze(-2)
    sums = plan.sum(-1)
    alpha, right = torch.zeros_like(plan[..., 0, :]), torch.zeros_like(sums)
    if grads.plan is not None:
        pull = grads.plan * plan
        alpha, right = (pull if a is None else grads.plan * shares).sum(-2), pull.sum(-1)
    if grads.f is not None:
        # f = -inf has no gradient.
        alpha = alpha + (grads.f if a is None else torch.where(a > 0, grads.f / a, 0))
    if grads.g is not None:
        right = right + grads.g
    right = right - (plan * alpha.unsqueeze(-2)).sum(-1)
    right = right - right.mean(-1, keepdim=True)
    lam = torch.linalg.solve_ex(curvature(plan @ shares.mT, sums), right.unsqueeze(-1)).result.squeeze(-1)
    lam = lam - lam.mean(-1, keepdim=True)
    mu = alpha - (shares * lam.unsqueeze(-1)).sum(-2)
    grad_x = plan * (mu.unsqueeze(-2) + lam.unsqueeze(-1)).neg_()
    return grad_x if grads.plan is None else grad_x.add_(pull), mu, lam


def curvature(overlap: Tensor, sums: Tensor) -> Tensor:
    """The k x k matrix diag c - plan^T S, from the plan^T S that prototypes share, made regular.

    A constant added to all of g changes nothing: 1 is its null vector, and gets the mean curvature. The small diagonal
    is for prototypes that share their tokens with no other, and for those without mass.
    """
    k, level = sums.shape[-1], sums.mean(-1)[..., None, None]
    matrix = torch.diag_embed(sums).sub_(overlap)
    matrix += level / k
    matrix.diagonal(dim1=-2, dim2=-1).add_(level.squeeze(-1) * 8 * torch.finfo(sums.dtype).eps)
    return matrix
