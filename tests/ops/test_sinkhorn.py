"""Balanced transport: hand-computed cases, POT as oracle, gradients, and bad input."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from protoad.errors import ShapeError
from protoad.nn import SinkhornAssign
from protoad.ops import cosine_cost, sinkhorn, sinkhorn_from_cost


def test_one_iteration_by_hand() -> None:
    # n = k = 2, epsilon = 1, C = [[0, ln 2], [0, 0]]: exp(-C) = [[1, 1/2], [1, 1]], a = b = 1.
    # Columns first: v = 1 / (2, 3/2) = (1/2, 2/3). Rows: u = 1 / (1/2 + 1/3, 1/2 + 2/3) = (6/5, 6/7).
    cost = torch.tensor([[0.0, math.log(2)], [0.0, 0.0]], dtype=torch.float64)
    transport = sinkhorn_from_cost(cost, epsilon=1.0, n_iters=1)
    expected = torch.tensor([[3 / 5, 2 / 5], [3 / 7, 4 / 7]], dtype=torch.float64)
    torch.testing.assert_close(transport.plan, expected)
    torch.testing.assert_close(transport.g, torch.tensor([1 / 2, 2 / 3], dtype=torch.float64).log())
    torch.testing.assert_close(transport.f, torch.tensor([6 / 5, 6 / 7], dtype=torch.float64).log())
    assert transport.iterations == 1
    torch.testing.assert_close(transport.marginal_error.item(), abs(3 / 5 + 3 / 7 - 1))


@pytest.mark.parametrize("block", range(10))
def test_equals_pot_at_the_same_iteration_count(block: int) -> None:
    """500 random problems of any size and mass; epsilon from 0.01 to 1."""
    rng = np.random.default_rng(block)
    for _ in range(50):
        n, k, n_iters = rng.integers(1, 60), rng.integers(1, 20), int(rng.integers(1, 40))
        epsilon = float(10 ** rng.uniform(-2, 0))
        cost = rng.uniform(0, 2, (n, k))
        a, b = rng.uniform(0.5, 1.5, n), rng.uniform(0.5, 1.5, k)
        b *= a.sum() / b.sum()
        expected = ot.bregman.sinkhorn_log(a, b, cost, epsilon, numItermax=n_iters, stopThr=0, warn=False)
        masses = {"row_mass": torch.from_numpy(a), "col_mass": torch.from_numpy(b)}
        plan = sinkhorn_from_cost(torch.from_numpy(cost), epsilon=epsilon, n_iters=n_iters, **masses).plan
        np.testing.assert_allclose(plan.numpy(), expected, rtol=0, atol=1e-12)
        single = sinkhorn_from_cost(torch.from_numpy(cost).float(), epsilon=epsilon, n_iters=n_iters, **masses).plan
        # A cost up to 2, rounded to float32 and divided by epsilon, moves a logarithm by 2^-24 * 2 / epsilon.
        np.testing.assert_allclose(single.numpy(), expected, rtol=0, atol=2e-6 + 2**-22 / epsilon)


@pytest.mark.parametrize("method", ["sinkhorn", "newton"])
@pytest.mark.parametrize("seed", range(5))
def test_small_epsilon_is_the_optimal_matching(method: str, seed: int) -> None:
    cost = torch.rand(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    plan = sinkhorn_from_cost(cost, epsilon=0.001, n_iters=20_000, method=method).plan
    rows, columns = linear_sum_assignment(cost.numpy())
    # Entropy is worth at most epsilon log k for each token.
    best = cost[rows, columns].sum()
    missed = (plan.sum(-2) - 1).abs().sum()
    assert best - missed <= (plan * cost).sum() <= best + 8 * 0.001 * math.log(8) + missed
    assert (plan[rows, columns] > 0.5).all()


@pytest.mark.parametrize("cost", ["cosine", "sqeuclidean"])
def test_costs_against_scipy(cost: str) -> None:
    from scipy.spatial.distance import cdist

    tokens, prototypes = torch.randn(9, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    expected = sinkhorn_from_cost(torch.from_numpy(cdist(tokens, prototypes, cost)), epsilon=0.3).plan
    torch.testing.assert_close(sinkhorn(tokens, prototypes, cost=cost, epsilon=0.3).plan, expected)


def test_masked_tokens_are_as_good_as_absent() -> None:
    tokens, prototypes = torch.randn(2, 12, 5), torch.randn(3, 5)
    mask = torch.arange(12).expand(2, -1) < torch.tensor([[7], [12]])
    transport = sinkhorn(tokens, prototypes, token_mask=mask)
    torch.testing.assert_close(transport.plan[0, :7], sinkhorn(tokens[0, :7], prototypes).plan)
    assert (transport.plan[0, 7:] == 0).all()
    assert (transport.f[0, 7:] == -torch.inf).all()


def test_an_item_without_tokens_has_a_zero_plan_and_no_nan() -> None:
    tokens = torch.randn(2, 6, 5, requires_grad=True)
    mask = torch.tensor([[False] * 6, [True] * 6])
    transport = sinkhorn(tokens, torch.randn(3, 5), token_mask=mask)
    assert (transport.plan[0] == 0).all()
    transport.plan.square().sum().backward()
    assert torch.isfinite(tokens.grad).all()
    assert (tokens.grad[0] == 0).all()


def test_zero_tokens_are_spread_and_get_no_gradient() -> None:
    tokens = torch.randn(6, 5)
    tokens[2] = 0
    tokens.requires_grad_()
    cost = cosine_cost(tokens, torch.randn(3, 5))
    assert (cost[2] == 1).all()
    cost.square().sum().backward()
    assert (tokens.grad[2] == 0).all()
    assert torch.isfinite(tokens.grad).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 1), (3, 7)])
def test_extreme_sizes(shape: tuple[int, int]) -> None:
    plan = sinkhorn(torch.randn(2, shape[0], 6), torch.randn(shape[1], 6), n_iters=100).plan
    torch.testing.assert_close(plan.sum(-1), torch.ones(2, shape[0]))
    torch.testing.assert_close(plan.sum(-2), torch.full((2, shape[1]), shape[0] / shape[1]), rtol=1e-3, atol=0)


def test_shared_and_own_prototypes_agree() -> None:
    tokens, prototypes = torch.randn(2, 3, 12, 5), torch.randn(4, 5)
    shared = sinkhorn(tokens, prototypes)
    own = sinkhorn(tokens, prototypes.expand(2, 3, 4, 5))
    for one, other in zip(shared, own, strict=True):
        torch.testing.assert_close(one, other)
    assert shared.plan.shape == (2, 3, 12, 4)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_exact(masked: bool) -> None:
    tokens = torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True)
    prototypes = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 5 + [False] * 2, [True] * 7]) if masked else None
    assert torch.autograd.gradcheck(
        lambda z, p: sinkhorn(z, p, epsilon=0.2, n_iters=6, token_mask=mask).plan, (tokens, prototypes)
    )


def test_detached_lets_no_gradient_through() -> None:
    tokens = torch.randn(7, 4, requires_grad=True)
    assert not sinkhorn(tokens, torch.randn(3, 4), gradient="detached").plan.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_solved_in_full_precision(dtype: torch.dtype, device: str) -> None:
    tokens, prototypes = (
        torch.randn(2, 30, 8, device=device, dtype=dtype),
        torch.randn(4, 8, device=device, dtype=dtype),
    )
    with torch.autocast(device, dtype=torch.bfloat16):
        transport = sinkhorn(tokens, prototypes)
    assert transport.plan.dtype == dtype
    exact = sinkhorn(tokens.double(), prototypes.double()).plan
    # The plan is rounded once, at the end: half a unit in the last place of a number up to 1.
    torch.testing.assert_close(
        transport.plan.double(),
        exact,
        rtol=0,
        atol=max(torch.finfo(dtype).eps / 2, 2e-6 if dtype != torch.float64 else 0),
    )


def test_compiles_without_a_break() -> None:
    compiled = torch.compile(lambda z, p: sinkhorn(z, p, n_iters=3).plan, fullgraph=True, backend="aot_eager")
    tokens, prototypes = torch.randn(2, 9, 4), torch.randn(3, 4)
    torch.testing.assert_close(compiled(tokens, prototypes), sinkhorn(tokens, prototypes, n_iters=3).plan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sinkhorn(torch.randn(2, 5, 8), torch.randn(3, 4)), r"prototypes: expected d=8 .*got \(3, 4\)"),
        (lambda: sinkhorn(torch.randn(5), torch.randn(3, 5)), r"tokens: expected \(\.\.\. n d\)"),
        (lambda: sinkhorn(torch.randn(2, 5, 8), torch.randn(3, 4, 8)), r"leading axes \(2,\)"),
        (lambda: sinkhorn(torch.randn(5, 8), torch.randn(0, 8)), r"k >= 1"),
        (
            lambda: sinkhorn(torch.randn(5, 8), torch.randn(3, 8), token_mask=torch.ones(5)),
            r"token_mask: expected bool \(5,\)",
        ),
        (lambda: sinkhorn_from_cost(torch.rand(5, 3), row_mass=torch.ones(4)), r"row_mass: expected \(5,\)"),
        (lambda: sinkhorn_from_cost(torch.rand(5, 3), col_mass=torch.ones(5)), r"col_mass: expected \(3,\)"),
        (lambda: sinkhorn_from_cost(torch.rand(3)), r"cost: expected \(\.\.\. n k\)"),
    ],
)
def test_wrong_shapes_are_named(call: object, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon: expected a value above 0, got 0.0"),
        ({"n_iters": 0}, "n_iters: expected a value above 0, got 0"),
        ({"cost": "l1"}, "cost: expected one of cosine, sqeuclidean, got 'l1'"),
        ({"gradient": "none"}, "gradient: expected one of unrolled, implicit, detached, got 'none'"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sinkhorn(torch.randn(5, 8), torch.randn(3, 8), **options)


def test_init_of_another_shape_is_named() -> None:
    with pytest.raises(ShapeError, match=r"init: expected \(3,\)"):
        sinkhorn(torch.randn(5, 8), torch.randn(3, 8), init=torch.zeros(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tol": 0.0}, "tol: expected a value above 0, got 0.0"),
        ({"method": "lp"}, "method: expected one of sinkhorn, newton, got 'lp'"),
        ({"backend": "cuda"}, "backend: expected one of auto, torch, triton, got 'cuda'"),
    ],
)
def test_more_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sinkhorn(torch.randn(5, 8), torch.randn(3, 8), **options)
    with pytest.raises(ValueError, match=message):
        SinkhornAssign(**options)


def test_triton_raises_where_it_cannot_serve_and_auto_does_not() -> None:
    tokens, prototypes = torch.randn(5, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"backend: expected what the Triton kernels can serve, got .*; use backend='torch'"
    ):
        sinkhorn(tokens, prototypes, backend="triton")
    torch.testing.assert_close(
        sinkhorn(tokens, prototypes).plan, sinkhorn(tokens, prototypes, backend="torch").plan, rtol=0, atol=0
    )


def test_a_mask_and_a_mass_go_together() -> None:
    tokens, prototypes = torch.randn(2, 6, 5), torch.randn(3, 5)
    mask, mass = torch.tensor([True, True, False, True, True, True]).expand(2, -1), torch.rand(6)
    plan = sinkhorn(tokens, prototypes, token_mask=mask, row_mass=mass).plan
    torch.testing.assert_close(plan.sum(-1), (mass * mask))
