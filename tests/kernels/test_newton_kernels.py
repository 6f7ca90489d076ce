"""Newton's method and the implicit gradient in a kernel each, against the same in float64 on plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from protoad_kernels import newton
from torch import Tensor

from protoad.ops import cosine_cost, sinkhorn_from_cost
from protoad.ops._sinkhorn_implicit import implicit_adjoint

SIZES = [(2, 1, 1), (1, 1, 5), (2, 33, 3), (1, 256, 10), (2, 120, 17), (1, 60, 50)]
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
settings = pytest.mark.parametrize(("masses", "epsilon"), [(False, 0.5), (True, 0.02), (False, 0.001)])


def _problem(size: tuple[int, int, int], device: str, *, masses: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Costs (b k n) of clustered tokens, masses of the tokens, some without any, and of the prototypes."""
    b, n, k = size
    generator = torch.Generator().manual_seed(n * k)
    centres = torch.randn(6, 16, generator=generator)
    tokens = centres[torch.randint(6, (b, n), generator=generator) ** 2 // 6] + 0.5 * torch.randn(
        b, n, 16, generator=generator
    )
    prototypes = centres.repeat(k // 6 + 1, 1)[:k] + 0.5 * torch.randn(k, 16, generator=generator)
    cost = cosine_cost(tokens, prototypes).mT.contiguous()
    rows = 0.2 + torch.rand(b, n, generator=generator)
    rows[:, : n // 4] = 0
    cols = 0.2 + torch.rand(b, k, generator=generator)
    cols = cols * rows.sum(-1, keepdim=True) / cols.sum(-1, keepdim=True)
    if not masses:
        return cost.to(device), None, torch.full((b, k), n / k, device=device)
    return cost.to(device), rows.to(device), cols.to(device)


@sizes
@settings
def test_newton_converges_to_the_plan(size, masses, epsilon, device) -> None:
    cost, rows, cols = _problem(size, device, masses=masses)
    result = newton.newton_forward(cost, rows, cols, None, epsilon, 20, 1e-5)
    exact = sinkhorn_from_cost(
        cost.mT.double(), epsilon=epsilon, method="newton", tol=1e-10, n_iters=100, row_mass=rows, col_mass=cols
    )
    assert (result.error <= 1e-5).all()
    assert (result.iterations <= 25).all()
    # As far off as the columns are, and as costs rounded to float32 move a logarithm.
    torch.testing.assert_close(
        result.plan.mT.double(), exact.plan, rtol=0, atol=1e-4 + 2**-21 / epsilon * exact.plan.max().item()
    )
    torch.testing.assert_close(result.plan.sum(1), torch.ones_like(result.f) if rows is None else rows)
    potential = (result.f.unsqueeze(1) + result.g.unsqueeze(2) - cost / epsilon).exp()
    torch.testing.assert_close(potential, result.plan, rtol=0, atol=2e-6 + 2**-21 / epsilon)


@sizes
@pytest.mark.parametrize(("masses", "epsilon"), [(False, 0.5), (True, 0.02)])
def test_implicit_gradient(size, masses, epsilon, device) -> None:
    cost, rows, cols = _problem(size, device, masses=masses)
    solved = sinkhorn_from_cost(
        cost.mT, epsilon=epsilon, method="newton", row_mass=rows, col_mass=cols, backend="torch"
    )
    generator = torch.Generator().manual_seed(1)
    grads = [
        torch.randn(shape, generator=generator).to(device) for shape in (cost.shape, solved.f.shape, solved.g.shape)
    ]
    for given in (grads, [grads[0], None, None], [None, grads[1], grads[2]]):
        result = newton.implicit_backward(*given, cost, solved.g, rows, epsilon, True)
        doubles = [None if one is None else one.double() for one in given]
        doubles[0] = None if doubles[0] is None else doubles[0].mT
        exact = implicit_adjoint(
            tuple(doubles),
            cost.mT.double(),
            None if rows is None else rows.double(),
            cols.double(),
            solved.plan.double(),
            solved.g.double(),
            epsilon,
            True,
        )
        expected = (exact[0].mT, *exact[1:])
        for name, one, other in zip(("cost", "row_mass", "col_mass"), result, expected, strict=True):
            if name == "col_mass" and size[2] == 1:
                continue  # one column has no potential of its own
            scale = other.abs().max().clamp_min(0.01).item()  # not below what cancels where it is 0
            torch.testing.assert_close(
                one.double(), other, rtol=0, atol=2e-4 * scale, msg=lambda m, name=name: name + m
            )


def test_a_start_saves_steps(device) -> None:
    cost, _, cols = _problem((2, 100, 10), device, masses=False)
    first = newton.newton_forward(cost, None, cols, None, 0.02, 20, 1e-5)
    again = newton.newton_forward(cost, None, cols, first.g, 0.02, 20, 1e-5)
    assert (again.iterations < first.iterations).all()
    assert (again.error <= 1e-5).all()


def test_two_runs_agree_to_the_bit_and_items_do_not_meet(device) -> None:
    cost, rows, cols = _problem((3, 100, 10), device, masses=True)
    together = newton.newton_forward(cost, rows, cols, None, 0.01, 20, 1e-5)
    alone = [
        newton.newton_forward(cost[i : i + 1], rows[i : i + 1], cols[i : i + 1], None, 0.01, 20, 1e-5) for i in range(3)
    ]
    for part in range(5):
        assert torch.equal(together[part], torch.cat([one[part] for one in alone]))


def test_nan_ends(device) -> None:
    cost, _, cols = _problem((2, 33, 3), device, masses=False)
    cost[0, 1, 5] = torch.nan
    result = newton.newton_forward(cost, None, cols, None, 0.05, 20, 1e-5)
    assert result.plan[0].isnan().any()
    assert torch.isfinite(result.plan[1]).all()
    assert result.error[0].isnan()


def test_a_start_far_off_at_a_small_epsilon_stays_in_range(device) -> None:
    cost, _, cols = _problem((1, 60, 5), device, masses=False)
    far = 1000 * torch.randn(1, 5, generator=torch.Generator().manual_seed(0)).to(device)
    result = newton.newton_forward(cost, None, cols, far, 1e-3, 100, 1e-5)
    assert (result.error < 1e-4).all()
