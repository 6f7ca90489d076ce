"""Newton's method: converged plans, where Sinkhorn's iteration would need hundreds of steps."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from protoad.ops import cosine_cost, sinkhorn, sinkhorn_from_cost

DTYPES = {"float32": (torch.float32, 1e-5), "float64": (torch.float64, 1e-6)}


def clusters(n: int, k: int, seed: int = 0) -> Tensor:
    """Costs from prototypes to unequal clusters of tokens: far from balanced, slow for Sinkhorn."""
    generator = torch.Generator().manual_seed(seed)
    centres, weights = torch.randn(12, 64, generator=generator), torch.rand(12, generator=generator) ** 3
    nearest = centres[torch.multinomial(weights, n, replacement=True, generator=generator)]
    tokens = torch.randn(64, generator=generator) + nearest + 0.6 * torch.randn(n, 64, generator=generator)
    return cosine_cost(tokens, tokens[torch.randperm(n, generator=generator)[:k]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epsilon", [0.5, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001])
@pytest.mark.parametrize("size", [(256, 10), (300, 30), (784, 100)])
def test_converges_in_a_few_steps(dtype: str, epsilon: float, size: tuple[int, int]) -> None:
    kind, tolerance = DTYPES[dtype]
    cost = torch.stack([clusters(*size, seed=seed) for seed in range(3)]).to(kind)
    transport = sinkhorn_from_cost(cost, epsilon=epsilon, method="newton")
    sums = transport.plan.double().sum(-2)
    share = size[0] / size[1]
    # Counted in float64 here, the sums differ from those the solver saw by float32's rounding of n terms.
    assert ((sums - share).abs() / share).max() < tolerance + (2e-6 if kind == torch.float32 else 0)
    torch.testing.assert_close(transport.plan.sum(-1), torch.ones_like(transport.f), rtol=0, atol=1e-5)
    assert transport.iterations <= 20


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_equals_pot_at_convergence(epsilon: float) -> None:
    rng = np.random.default_rng(0)
    cost = rng.uniform(0, 2, (23, 7))
    a, b = rng.uniform(0.5, 1.5, 23), rng.uniform(0.5, 1.5, 7)
    b *= a.sum() / b.sum()
    expected = ot.bregman.sinkhorn_log(a, b, cost, epsilon, numItermax=100_000, stopThr=1e-14)
    plan = sinkhorn_from_cost(
        torch.from_numpy(cost),
        epsilon=epsilon,
        method="newton",
        tol=1e-12,
        row_mass=torch.from_numpy(a),
        col_mass=torch.from_numpy(b),
    ).plan
    np.testing.assert_allclose(plan.numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_hostile_costs_converge(scale: float) -> None:
    cost = scale * torch.randn(4, 60, 7, dtype=torch.float64)
    transport = sinkhorn_from_cost(cost, epsilon=0.01 * scale, method="newton")
    assert (transport.marginal_error < 1e-6).all()


def test_masks_masses_and_forbidden_pairs() -> None:
    cost = clusters(64, 6).double().expand(3, -1, -1).clone()
    cost[0, :40, 2] = torch.inf
    rows, cols = torch.rand(3, 64, dtype=torch.float64), torch.rand(3, 6, dtype=torch.float64) + 0.1
    rows[:, 50:] = 0
    cols[1, 3] = 0
    cols *= rows.sum(-1, keepdim=True) / cols.sum(-1, keepdim=True)
    plan = sinkhorn_from_cost(cost, method="newton", row_mass=rows, col_mass=cols).plan
    torch.testing.assert_close(plan.sum(-1), rows)
    torch.testing.assert_close(plan.sum(-2), cols, rtol=2e-6, atol=1e-12)
    assert (plan[0, :40, 2] == 0).all()


def test_an_item_without_tokens_has_a_zero_plan() -> None:
    mask = torch.tensor([[False] * 9, [True] * 9])
    transport = sinkhorn(torch.randn(2, 9, 4), torch.randn(3, 4), token_mask=mask, method="newton")
    assert (transport.plan[0] == 0).all()
    assert transport.marginal_error[1] < 1e-5


def test_an_item_does_not_see_its_neighbours() -> None:
    cost = torch.stack([clusters(100, 8, seed=seed) for seed in range(4)]).double()
    for method, options in (("newton", {}), ("sinkhorn", {"tol": 1e-3, "n_iters": 2000})):
        together = sinkhorn_from_cost(cost, epsilon=0.01, method=method, **options).plan
        for item in range(4):
            alone = sinkhorn_from_cost(cost[item], epsilon=0.01, method=method, **options).plan
            torch.testing.assert_close(together[item], alone, rtol=0, atol=1e-9)


def test_starts_from_an_earlier_solution() -> None:
    cost = clusters(256, 10)
    first = sinkhorn_from_cost(cost, method="newton")
    moved = cost + 0.01 * torch.rand_like(cost)
    cold, warm = (sinkhorn_from_cost(moved, method="newton", init=init) for init in (None, first))
    assert warm.iterations < cold.iterations
    torch.testing.assert_close(warm.plan, cold.plan, rtol=0, atol=1e-4)


def test_nan_stays_in_its_item() -> None:
    cost = torch.stack([clusters(64, 6, seed=seed) for seed in range(3)])
    cost[1, 5, 2] = torch.nan
    plan = sinkhorn_from_cost(cost, method="newton").plan
    assert plan[1].isnan().any()
    assert torch.isfinite(plan[[0, 2]]).all()


def test_stops_at_the_number_of_steps_and_says_how_far_it_came() -> None:
    transport = sinkhorn_from_cost(clusters(256, 10), epsilon=0.01, method="newton", n_iters=1)
    assert transport.iterations <= 2  # one at each of at most two epsilons
    assert transport.marginal_error > 1e-4


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (3, 9)])
def test_extreme_sizes(size: tuple[int, int]) -> None:
    plan = sinkhorn_from_cost(torch.rand(*size, dtype=torch.float64), method="newton").plan
    torch.testing.assert_close(plan.sum(-1), torch.ones(size[0], dtype=torch.float64))
    torch.testing.assert_close(
        plan.sum(-2), torch.full((size[1],), size[0] / size[1], dtype=torch.float64), rtol=2e-6, atol=0
    )


@pytest.mark.parametrize("size", [(256, 10), (64, 30)])
def test_a_start_far_off_at_a_small_epsilon_stays_in_range(size: tuple[int, int]) -> None:
    cost = torch.stack([clusters(*size, seed=seed) for seed in range(3)])
    far = 1000 * torch.randn(3, size[1], generator=torch.Generator().manual_seed(0))
    for items in (slice(0, 1), slice(None)):
        transport = sinkhorn_from_cost(cost[items], epsilon=1e-3, method="newton", init=far[items], n_iters=100)
        assert (transport.marginal_error < 1e-4).all()
