"""Gradients of transport, to every input and of every output, against autograd through the plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protoad.ops import sinkhorn, sinkhorn_from_cost, transport_reconstruct
from protoad.ops.sinkhorn_reference import sinkhorn_reference

MODES = {"newton": {"method": "newton", "tol": 1e-12}, "sinkhorn": {"n_iters": 3000, "gradient": "implicit"}}
modes = pytest.mark.parametrize("mode", MODES)


def _problem(seed: int = 0, shape: tuple[int, ...] = (2, 7, 4)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(*shape, generator=generator, dtype=torch.float64)
    rows = 0.5 + torch.rand(shape[:-1], generator=generator, dtype=torch.float64)
    cols = 0.5 + torch.rand(*shape[:-2], shape[-1], generator=generator, dtype=torch.float64)
    cols *= rows.sum(-1, keepdim=True) / cols.sum(-1, keepdim=True)
    return [one.requires_grad_() for one in (cost, rows, cols)]


def _balanced(rows: Tensor, cols: Tensor) -> Tensor:
    """Columns scaled to the mass of the rows: a converged plan exists for no others, nor does its derivative."""
    return cols * rows.sum(-1, keepdim=True) / cols.sum(-1, keepdim=True)


@modes
def test_converged_plan_passes_gradcheck_to_cost_and_masses(mode: str) -> None:
    def plan(cost: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        return sinkhorn_from_cost(cost, epsilon=0.2, row_mass=rows, col_mass=_balanced(rows, cols), **MODES[mode]).plan

    assert torch.autograd.gradcheck(plan, _problem())


@modes
@pytest.mark.parametrize("output", ["plan", "f and g"])
@pytest.mark.parametrize("masses", [False, True])
def test_equals_autograd_through_a_long_loop(mode: str, output: str, masses: bool) -> None:
    cost, rows, cols = _problem()
    inputs = [cost, rows, cols] if masses else [cost]
    grads = []
    for function, options in ((sinkhorn_from_cost, MODES[mode]), (sinkhorn_reference, {"n_iters": 3000})):
        row_mass, col_mass = (rows, _balanced(rows, cols)) if masses else (None, None)
        solved = function(cost, epsilon=0.1, row_mass=row_mass, col_mass=col_mass, **options)
        weights = torch.randn(cost.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        # Of f and g only what their common constant leaves alone: f_n + g_k.
        value = solved.plan if output == "plan" else solved.f.unsqueeze(-1) + solved.g.unsqueeze(-2)
        grads.append(torch.autograd.grad((weights * value).sum(), inputs))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


@modes
def test_masked_tokens_and_items_without_any(mode: str) -> None:
    tokens = torch.randn(3, 8, 4, dtype=torch.float64, requires_grad=True)
    prototypes = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 8, [True] * 5 + [False] * 3, [False] * 8])
    plan = sinkhorn(tokens, prototypes, epsilon=0.2, token_mask=mask, **MODES[mode]).plan
    weights = torch.randn(plan.shape, dtype=torch.float64)
    grads = torch.autograd.grad((plan * weights).sum(), (tokens, prototypes))
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert (grads[0][~mask] == 0).all()
    alone = sinkhorn(tokens[1, :5], prototypes, epsilon=0.2, **MODES[mode]).plan
    (expected,) = torch.autograd.grad((alone * weights[1, :5]).sum(), tokens)
    torch.testing.assert_close(grads[0][1], expected[1], rtol=1e-6, atol=1e-9)


def test_a_token_without_mass_still_tells_what_mass_would_change() -> None:
    cost, rows, cols = (one.detach() for one in _problem(shape=(6, 3)))
    rows[2] = 0
    rows.requires_grad_()
    plan = sinkhorn_from_cost(cost, epsilon=0.2, row_mass=rows, col_mass=_balanced(rows, cols), **MODES["newton"]).plan
    weights = torch.randn(6, 3, dtype=torch.float64)
    (grad,) = torch.autograd.grad((plan * weights).sum(), rows)

    def value(mass: float) -> float:
        with torch.no_grad():
            moved = rows + mass * torch.eye(6, dtype=torch.float64)[2]
            moved_plan = sinkhorn_from_cost(
                cost, epsilon=0.2, row_mass=moved, col_mass=_balanced(moved, cols), **MODES["newton"]
            ).plan
            return (moved_plan * weights).sum().item()

    assert abs(grad[2].item() - (value(1e-6) - value(0.0)) / 1e-6) < 1e-4


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (4, 1), (3, 8)])
def test_extreme_sizes_have_finite_gradients(shape: tuple[int, int]) -> None:
    for gradient in ("unrolled", "implicit"):
        cost = torch.rand(2, *shape, requires_grad=True)
        sinkhorn_from_cost(cost, gradient=gradient).plan.square().sum().backward()
        assert torch.isfinite(cost.grad).all()


def test_implicit_gradient_of_a_truncated_plan_is_close_to_the_exact_one() -> None:
    """The documented price: a few per cent at twenty iterations, nothing at convergence."""
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(200, 10, generator=generator, dtype=torch.float64)
    weights = torch.randn(200, 10, generator=generator, dtype=torch.float64)
    errors = []
    for n_iters in (20, 2000):
        grads = []
        for gradient in ("unrolled", "implicit"):
            cost = base.clone().requires_grad_()
            plan = sinkhorn_from_cost(cost, n_iters=n_iters, gradient=gradient).plan
            grads.append(torch.autograd.grad((plan * weights).sum(), cost)[0])
        errors.append(((grads[0] - grads[1]).norm() / grads[0].norm()).item())
    assert errors[0] < 0.05
    # The regularised k x k matrix: one part in a million.
    assert errors[1] < 1e-5


def test_float32_implicit_gradient() -> None:
    base = torch.rand(300, 20, dtype=torch.float64)
    weights = torch.randn(300, 20, dtype=torch.float64)
    grads = []
    for dtype in (torch.float32, torch.float64):
        cost = base.to(dtype).requires_grad_()
        plan = sinkhorn_from_cost(cost, epsilon=0.02, method="newton").plan
        grads.append(torch.autograd.grad((plan * weights.to(dtype)).sum(), cost)[0].double())
    assert (grads[0] - grads[1]).norm() < 1e-3 * grads[1].norm()


@pytest.mark.parametrize("with_masses", [False, True])
def test_unrolled_gradient_under_a_tolerance_stops_where_each_item_stopped(with_masses: bool) -> None:
    cost, rows, cols = _problem(shape=(3, 9, 4))
    cost = (cost * torch.tensor([0.2, 1.0, 3.0]).view(3, 1, 1)).detach().requires_grad_()
    inputs = [cost, rows, cols] if with_masses else [cost]
    masses = {"row_mass": rows, "col_mass": cols} if with_masses else {}
    weights = torch.randn(cost.shape, dtype=torch.float64)
    plan = sinkhorn_from_cost(cost, epsilon=0.1, n_iters=400, tol=1e-4, **masses).plan
    grads = torch.autograd.grad((plan * weights).sum(), inputs)
    for item in range(3):
        alone = {name: mass[item] for name, mass in masses.items()}
        with torch.no_grad():
            run = int(sinkhorn_from_cost(cost[item], epsilon=0.1, n_iters=400, tol=1e-4, **alone).iterations)
        exact = sinkhorn_reference(cost[item], epsilon=0.1, n_iters=run, **alone).plan
        expected = torch.autograd.grad((exact * weights[item]).sum(), inputs)
        for grad, other in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad[item], other[item], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("epsilon", [0.1, 0.003])
def test_warm_start_gradient_is_that_of_the_iterations_run(epsilon: float) -> None:
    cost, rows, cols = _problem(shape=(2, 12, 4))
    cols = cols.detach().clone()
    cols[1, 2] = 0  # a prototype without mass, to which any start is the same
    cols.requires_grad_()
    start = torch.randn(2, 4, dtype=torch.float64)
    start[1, 2] = -torch.inf
    weights = torch.randn(cost.shape, dtype=torch.float64)
    grads = []
    for function in (sinkhorn_from_cost, sinkhorn_reference):
        plan = function(cost, epsilon=epsilon, n_iters=9, row_mass=rows, col_mass=cols, init=start).plan
        grads.append(torch.autograd.grad((plan * weights).sum(), (cost, rows, cols)))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8 * other.abs().max().item())


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_reconstruction_from_tokens_passes_gradcheck(gradient: str) -> None:
    tokens = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    prototypes = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    n_iters = 6 if gradient == "unrolled" else 2000

    def rebuilt(z: Tensor, p: Tensor) -> Tensor:
        return transport_reconstruct(sinkhorn(z, p, epsilon=0.2, n_iters=n_iters, gradient=gradient).plan, p)

    assert torch.autograd.gradcheck(rebuilt, (tokens, prototypes))


def test_nothing_is_kept_where_no_gradient_can_be_asked_for() -> None:
    from protoad.ops import _sinkhorn_op

    cost = torch.rand(2, 8, 3)
    options = {"epsilon": 0.05, "n_iters": 50, "tol": None, "method": "sinkhorn", "backend": "torch"}
    assert _sinkhorn_op.transport(cost, None, None, None, gradient="none", **options).history.numel() == 0
    assert _sinkhorn_op.transport(cost, None, None, None, gradient="implicit", **options).history.numel() == 0
    with torch.no_grad():
        assert not sinkhorn_from_cost(cost.requires_grad_()).plan.requires_grad
