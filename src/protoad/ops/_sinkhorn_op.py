"""Both solvers as one operator that torch's compiler, exporter and vmap know, with written-out gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from protoad.ops import _newton, _sinkhorn_adjoint, _sinkhorn_implicit, _sinkhorn_solver
from protoad.ops._sinkhorn_adjoint import empty_gradients
from protoad.ops._sinkhorn_solver import Solution, empty_solution

__all__ = ["transport"]

_COST_AND_MASSES = "Tensor cost, Tensor? row_mass, Tensor? col_mass, "
_GRADS = "Tensor? grad_plan, Tensor? grad_f, Tensor? grad_g, "
_THREE = " -> (Tensor, Tensor, Tensor)"


def transport(
    cost: Tensor,
    row_mass: Tensor | None,
    col_mass: Tensor | None,
    init: Tensor | None,
    *,
    epsilon: float,
    n_iters: int,
    tol: float | None,
    method: str,
    gradient: str,
    backend: str,
) -> Solution:
    """Gives the plan of cost (... n k), differentiable as gradient says: "unrolled", "implicit" or "none"."""
    return Solution(*_transport(cost, row_mass, col_mass, init, epsilon, n_iters, tol, method, gradient, backend))


@torch.library.custom_op(
    "protoad::transport",
    mutates_args=(),
    schema=f"({_COST_AND_MASSES}Tensor? init, float epsilon, int n_iters, float? tol, str method, str gradient, "
    "str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _transport(
    cost: Tensor,
    row_mass: Tensor | None,
    col_mass: Tensor | None,
    init: Tensor | None,
    epsilon: float,
    n_iters: int,
    tol: float | None,
    method: str,
    gradient: str,
    backend: str,
) -> tuple[Tensor, ...]:
    problem = cost, row_mass, col_mass, init, epsilon, n_iters, tol
    if backend == "triton":
        from protoad.ops import _triton

        return tuple(_triton.solve(*problem, method, gradient == "unrolled"))
    if method == "newton":
        return tuple(_newton.solve(*problem))
    return tuple(_sinkhorn_solver.solve(*problem, gradient == "unrolled"))


@_transport.register_fake
def _(
    cost: Tensor,
    row_mass: Tensor | None,
    col_mass: Tensor | None,
    init: Tensor | None,
    epsilon: float,
    n_iters: int,
    tol: float | None,
    method: str,
    gradient: str,
    backend: str,
) -> tuple[Tensor, ...]:
    k = cost.shape[-1]
    width = (k if backend == "triton" else 2 * k + 1) if gradient == "unrolled" else 0
    return tuple(empty_solution(cost, n_iters, width))


@torch.library.custom_op(
    "protoad::unrolled_backward",
    mutates_args=(),
    schema=f"({_GRADS}{_COST_AND_MASSES}Tensor? init, Tensor iterations, Tensor history, float epsilon, "
    "bool of_masses, str backend)" + _THREE,
)
def _unrolled_backward(
    grad_plan: Tensor | None, grad_f: Tensor | None, grad_g: Tensor | None, cost: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *problem, backend = rest
    if backend == "triton":
        from protoad.ops import _triton

        return _triton.adjoint((grad_plan, grad_f, grad_g), cost, *problem)
    return _sinkhorn_adjoint.adjoint((grad_plan, grad_f, grad_g), cost, *problem)


@torch.library.custom_op(
    "protoad::implicit_backward",
    mutates_args=(),
    schema=f"({_GRADS}{_COST_AND_MASSES}Tensor plan, Tensor g, float epsilon, bool of_masses, str backend)" + _THREE,
)
def _implicit_backward(
    grad_plan: Tensor | None, grad_f: Tensor | None, grad_g: Tensor | None, cost: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *problem, backend = rest
    if backend == "triton":
        from protoad.ops import _triton

        return _triton.implicit_adjoint((grad_plan, grad_f, grad_g), cost, *problem)
    return _sinkhorn_implicit.implicit_adjoint((grad_plan, grad_f, grad_g), cost, *problem)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cost, row_mass, col_mass, init, ctx.epsilon, _, _, _, ctx.gradient, ctx.backend = inputs
    plan, _, g, error, iterations, history = output
    if ctx.gradient == "unrolled":
        ctx.save_for_backward(cost, row_mass, col_mass, init, iterations, history)
    else:
        ctx.save_for_backward(cost, row_mass, col_mass, plan, g)
    ctx.mark_non_differentiable(error, iterations, history)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    of_cost, of_rows, of_cols = ctx.needs_input_grad[:3]
    backward = _unrolled_backward if ctx.gradient == "unrolled" else _implicit_backward
    of_masses = of_rows or of_cols
    grad_cost, grad_a, grad_b = backward(*grads[:3], *ctx.saved_tensors, ctx.epsilon, of_masses, ctx.backend)
    return grad_cost if of_cost else None, grad_a if of_rows else None, grad_b if of_cols else None, *[None] * 7


def _refuse_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError(
        "sinkhorn: expected first derivatives only, got a derivative of its gradient; "
        "sinkhorn_reference of protoad.ops.sinkhorn_reference can be differentiated as often as needed"
    )


_transport.register_autograd(_differentiate, setup_context=_setup_context)
for _backward in (_unrolled_backward, _implicit_backward):
    _backward.register_fake(lambda grad_plan, grad_f, grad_g, cost, *rest: empty_gradients(cost, rest[-2]))
    _backward.register_autograd(_refuse_second_derivative)
