"""From tensors as the operators know them to those the Triton kernels take: one batch axis, dense, prototypes first."""

from __future__ import annotations

import torch
from protoad_kernels import apply, newton, similarity, sinkhorn, sinkhorn_adjoint
from torch import Tensor

from protoad.ops import _newton, _sinkhorn_implicit
from protoad.ops._sinkhorn_adjoint import Gradients, flat_gradients, unchange_masses
from protoad.ops._sinkhorn_kernel import Masses, solvable
from protoad.ops._sinkhorn_solver import LOOK_EVERY, Solution, column_error, publish

__all__ = [
    "adjoint",
    "context",
    "context_backward",
    "cosine",
    "cosine_backward",
    "implicit_adjoint",
    "reconstruct",
    "reconstruct_backward",
    "solve",
]

Gradient = tuple[Tensor | None, ...]
# The kernels work with logarithms of masses: a prototype without any gets this one, and is then given none, which saves
# looking at its value on the host. And the potential of a prototype without mass.
_NEXT_TO_NOTHING = 1e-30
_ABSENT = -80.0


def solve(
    cost: Tensor,
    row_mass: Tensor | None,
    col_mass: Tensor | None,
    init: Tensor | None,
    epsilon: float,
    n_iters: int,
    tol: float | None,
    method: str,
    keep_history: bool,
) -> Solution:
    """As `_sinkhorn_solver.solve` and `_newton.solve`; an item too large for Newton's kernel is solved in torch."""
    *leading, n, k = cost.shape
    if method == "newton" and not newton.newton_fits(n, k):
        return _newton.solve(cost, row_mass, col_mass, init, epsilon, n_iters, tol)
    masses = solvable(cost, row_mass, col_mass)
    problem = _problem(cost, masses, init)
    if method == "newton":
        tol = _newton.TOLERANCE[cost.dtype] if tol is None else tol
        result = newton.newton_forward(*problem, epsilon, n_iters, tol)
    else:
        result = sinkhorn.sinkhorn_forward(*problem, epsilon, n_iters, tol, keep_history, look_every=LOOK_EVERY)
    if col_mass is not None:
        absent = masses.wanted == 0
        result.plan.masked_fill_(absent.unsqueeze(-1), 0)
        result.g.masked_fill_(absent, -torch.inf)
        result.error.copy_(column_error(result.plan.sum(-1), masses.b))
    solution = Solution(
        result.plan.view(*leading, k, n).mT,
        result.f.view(*leading, n),
        result.g.view(*leading, k),
        result.error.view(leading),
        result.iterations.to(torch.int64).view(leading),
        result.history if keep_history else cost.new_empty((len(masses.b), 0, 0)),
    )
    publish(solution, masses)
    return solution


def adjoint(
    grads: Gradient,
    cost: Tensor,
    row_mass: Tensor | None,
    col_mass: Tensor | None,
    init: Tensor | None,
    iterations: Tensor,
    history: Tensor,
    epsilon: float,
    of_masses: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_sinkhorn_adjoint.adjoint`."""
    masses = solvable(cost, row_mass, col_mass)
    flat = _dense_gradients(grads, masses, cost)
    steps = iterations.view(-1).to(torch.int32)
    problem = _problem(cost, masses, init)
    results = sinkhorn_adjoint.sinkhorn_backward(
        flat.plan, flat.f, flat.g, *problem, epsilon, history, steps, of_masses
    )
    return _unflat_gradients(results, masses, cost, of_masses, col_mass is None)


def implicit_adjoint(
    grads: Gradient,
    cost: Tensor,
    row_mass: Tensor | None,
    col_mass: Tensor | None,
    plan: Tensor,
    g: Tensor,
    epsilon: float,
    of_masses: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_sinkhorn_implicit.implicit_adjoint`, which serves items too large for the kernel."""
    if not newton.implicit_fits(*cost.shape[-2:]):
        return _sinkhorn_implicit.implicit_adjoint(grads, cost, row_mass, col_mass, plan, g, epsilon, of_masses)
    masses = solvable(cost, row_mass, col_mass)
    flat = _dense_gradients(grads, masses, cost)
    potential = _flat_rows(torch.where(g > -torch.inf, g, _ABSENT))
    results = newton.implicit_backward(*flat, _flat(cost.mT), potential, _dense(masses.a), epsilon, of_masses)
    return _unflat_gradients(results, masses, cost, of_masses, col_mass is None)


def cosine(tokens: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Gives the similarity (... k n) and 1 / |z| (... n) in float32."""
    *leading, n, _ = tokens.shape
    result, inverse = similarity.similarity_forward(_flat(tokens), _flat(directions))
    return result.view(*leading, directions.shape[-2], n), inverse.view(*leading, n)


def cosine_backward(
    grad: Tensor, tokens: Tensor, directions: Tensor, similarities: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """Gives the gradients to tokens (... n d) and directions, of their shapes."""
    of_tokens, of_directions = similarity.similarity_backward(
        _flat(grad), _flat(tokens), _flat(directions), _flat(similarities), _flat_rows(inverse)
    )
    return of_tokens.view(tokens.shape), of_directions.view(directions.shape)


def reconstruct(plan: Tensor, prototypes: Tensor) -> Tensor:
    """Gives T P (... n d)."""
    rebuilt = apply.reconstruct_forward(_flat(plan.mT).float(), _flat(prototypes))
    return rebuilt.view(*plan.shape[:-1], prototypes.shape[-1])


def reconstruct_backward(grad: Tensor, plan: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Gives the gradients to plan (... n k) and prototypes, of their shapes and dtypes."""
    of_plan, of_prototypes = apply.reconstruct_backward(_flat(grad), _flat(plan.mT).float(), _flat(prototypes))
    return of_plan.view(plan.mT.shape).mT.to(plan.dtype), of_prototypes.view(prototypes.shape).to(prototypes.dtype)


def context(plan: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Gives the means (... k d) and the mass (... k)."""
    *leading, _, k = plan.shape
    means, mass = apply.context_forward(_flat(plan.mT).float(), _flat(tokens))
    return means.view(*leading, k, tokens.shape[-1]), mass.view(*leading, k).to(plan.dtype)


def context_backward(grad: Tensor, plan: Tensor, tokens: Tensor, means: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Gives the gradients to plan (... n k) and tokens (... n d)."""
    of_plan, of_tokens = apply.context_backward(
        _flat(grad), _flat(plan.mT).float(), _flat(tokens), _flat(means), _flat_rows(mass).float()
    )
    return of_plan.view(plan.mT.shape).mT.to(plan.dtype), of_tokens.view(tokens.shape)


def _problem(cost: Tensor, masses: Masses, init: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """What both solvers' kernels take: cost (b k n), row mass, column mass above 0, and a start."""
    b = torch.where(masses.b > 0, masses.b, _NEXT_TO_NOTHING)
    start = None if init is None else _flat_rows(torch.where(init > -torch.inf, init, _ABSENT))
    return _flat(cost.mT), _dense(masses.a), b.contiguous(), start


def _flat(tensor: Tensor) -> Tensor:
    """(... y x) -> (b y x), b = 1 for what all items share."""
    return tensor.reshape(-1, *tensor.shape[-2:]).contiguous()


def _flat_rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1]).contiguous()


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _dense_gradients(grads: Gradient, masses: Masses, cost: Tensor) -> Gradients:
    flat = flat_gradients(grads, masses.empty, *cost.shape[-2:])
    return Gradients(*(_dense(one) for one in flat))


def _unflat_gradients(
    grads: tuple[Tensor, Tensor, Tensor], masses: Masses, cost: Tensor, of_masses: bool, default_columns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_cost, grad_a, grad_b = grads
    if masses.empty is not None:
        grad_cost.masked_fill_(masses.empty.unsqueeze(-1), 0)
    if of_masses:
        unchange_masses(grad_a, grad_b, masses, default_columns)
        grad_a, grad_b = grad_a.view(cost.shape[:-1]), grad_b.view(*cost.shape[:-2], cost.shape[-1])
    return grad_cost.view(cost.mT.shape).mT, grad_a, grad_b
