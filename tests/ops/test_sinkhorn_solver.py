"""The fast solver against the readable one: plans, gradients, small epsilon, memory, and the compiler's demands."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protoad.ops import _sinkhorn_kernel, _sinkhorn_op, _sinkhorn_solver, cosine_cost, sinkhorn, sinkhorn_from_cost
from protoad.ops.sinkhorn_reference import sinkhorn_reference


def _problem(shape: tuple[int, ...], seed: int = 0, *, masses: bool = True) -> list[Tensor | None]:
    """Cost, row_mass and col_mass in float64, all with gradient."""
    generator = torch.Generator().manual_seed(seed)
    cost = 2 * torch.rand(*shape, generator=generator, dtype=torch.float64)
    rows = 0.5 + torch.rand(*shape[:-1], generator=generator, dtype=torch.float64)
    cols = 0.5 + torch.rand(*shape[:-2], shape[-1], generator=generator, dtype=torch.float64)
    return [cost.requires_grad_(), *((rows.requires_grad_(), cols.requires_grad_()) if masses else (None, None))]


def _clusters(n: int, k: int, seed: int = 0) -> Tensor:
    """Costs from prototypes to unequal clusters of tokens: far from balanced, so that potentials grow."""
    generator = torch.Generator().manual_seed(seed)
    centres, weights = torch.randn(12, 64, generator=generator), torch.rand(12, generator=generator) ** 3
    nearest = centres[torch.multinomial(weights, n, replacement=True, generator=generator)]
    tokens = torch.randn(64, generator=generator) + nearest + 0.6 * torch.randn(n, 64, generator=generator)
    return cosine_cost(tokens, tokens[torch.randperm(n, generator=generator)[:k]])


def _solution(*problem: Tensor | None, **changed: object) -> _sinkhorn_solver.Solution:
    """What the operator gives, history included."""
    options = {"epsilon": 0.05, "n_iters": 20, "tol": None, "method": "sinkhorn", "gradient": "unrolled"}
    return _sinkhorn_op.transport(*problem, None, **(options | {"backend": "torch"} | changed))


Values = tuple[list[Tensor], list[Tensor]]


def _solve_both(problem: list[Tensor | None], seed: int = 1, **options: float) -> list[Values]:
    """For the fast and the readable solver: plan, f, g, error; and all gradients of a random sum of the first three."""
    cost, rows, cols = problem
    results = []
    for function in (sinkhorn_from_cost, sinkhorn_reference):
        generator = torch.Generator().manual_seed(seed)
        plan, f, g, _, error = function(cost, row_mass=rows, col_mass=cols, **options)
        total = sum(
            (torch.randn(part.shape, generator=generator, dtype=part.dtype) * part.masked_fill(part.isinf(), 0)).sum()
            for part in (plan, f, g)
        )
        inputs = [one for one in problem if one is not None and one.requires_grad]
        results.append(([plan, f, g, error], list(torch.autograd.grad(total, inputs))))
    return results


def _assert_equal(results: list[Values], *, rtol: float = 1e-10) -> None:
    (values, grads), (expected_values, expected_grads) = results
    for one, other in zip([*values, *grads], [*expected_values, *expected_grads], strict=True):
        scale = other.masked_fill(other.isinf(), 0).abs().max().clamp_min(1).item()
        torch.testing.assert_close(one, other, rtol=0, atol=rtol * scale)


@pytest.mark.parametrize(("epsilon", "spread"), [(0.2, 30.0), (0.2, 0.3)], ids=["one segment", "absorbing"])
def test_gradcheck_of_cost_and_both_masses(epsilon: float, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sinkhorn_solver, "SPREAD", spread)
    assert torch.autograd.gradcheck(
        lambda *problem: _solution(*problem, epsilon=epsilon, n_iters=5)[:3], _problem((2, 6, 3))
    )


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 12)),
    st.integers(0, 2**31),
    st.sampled_from([0.005, 0.02, 0.05, 0.5]),
    st.integers(1, 25),
    st.booleans(),
)
def test_equals_the_reference_with_all_gradients(shape, seed, epsilon, n_iters, masses):
    _assert_equal(_solve_both(_problem(shape, seed, masses=masses), epsilon=epsilon, n_iters=n_iters))


@given(st.tuples(st.integers(1, 3), st.integers(2, 20), st.integers(1, 8)), st.integers(0, 2**31), st.integers(1, 10))
def test_equals_the_reference_under_a_mask(shape, seed, n_iters):
    cost, _, cols = _problem(shape, seed)
    kept = torch.rand(shape[:-1], generator=torch.Generator().manual_seed(seed)) < 0.6
    # Some item without any token, and its neighbours none the worse for it.
    kept[0] = False
    results = _solve_both([cost, kept.double(), cols], epsilon=0.05, n_iters=n_iters)
    _assert_equal(results)
    assert (results[0][0][0][~kept] == 0).all()


def test_default_columns_pass_the_gradient_on_to_the_rows() -> None:
    cost, rows, _ = _problem((2, 9, 4))
    _assert_equal(_solve_both([cost, rows, None], n_iters=6))


def test_mass_of_an_item_without_tokens_and_of_a_token_without_mass_has_a_finite_gradient() -> None:
    cost, rows, cols = _problem((3, 6, 3))
    empty = torch.tensor([True, False, False]).unsqueeze(-1)
    absent = empty | (torch.arange(6) == 2)
    rows = rows.detach().masked_fill(absent, 0).requires_grad_()
    plan, f, g, _, _ = sinkhorn_from_cost(cost, row_mass=rows, col_mass=cols)
    grads = torch.autograd.grad(plan.square().sum() + f[f.isfinite()].sum() + g.sum(), [cost, rows, cols])
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert all((grad[0] == 0).all() for grad in grads[1:])
    assert (grads[1][1:, 2] != 0).all()


def test_a_token_without_mass_does_not_set_the_scale() -> None:
    # It alone is close to the first prototype: all that counts is exp(-400) beside it.
    cost = 1 + 0.1 * torch.rand(40, 3)
    cost[7, 0] = 0
    kept = torch.arange(40) != 7
    plan = sinkhorn_from_cost(cost, epsilon=0.0025, row_mass=kept.float()).plan
    torch.testing.assert_close(plan[kept], sinkhorn_from_cost(cost[kept], epsilon=0.0025).plan, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(300, 30), (4, 256, 10)])
@pytest.mark.parametrize("epsilon", [0.005, 0.002])
def test_absorption_is_exact_with_its_gradient(shape: tuple[int, ...], epsilon: float) -> None:
    cost = torch.stack([_clusters(*shape[-2:], seed=seed) for seed in range(4)]).reshape(-1, *shape[-2:])
    cost = cost[: shape[0]] if len(shape) == 3 else cost[1]
    problem = [cost.double().requires_grad_(), *_problem(shape)[1:]]
    history = _solution(*problem, epsilon=epsilon, n_iters=60).history
    assert (history[..., -1].sum(-1) >= 2).all()
    _assert_equal(_solve_both(problem, epsilon=epsilon, n_iters=60))


@pytest.mark.parametrize(
    ("small", "together"),
    [(1, 1), (1 << 13, 64 * 3), (1 << 13, 1 << 18)],
    ids=["one by one in torch", "some together in numpy", "all together in numpy"],
)
@pytest.mark.parametrize("spread", [30.0, 0.5])
def test_items_do_not_meet(small: int, together: int, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sinkhorn_kernel, "SMALL", small)
    monkeypatch.setattr(_sinkhorn_kernel, "TOGETHER", together)
    monkeypatch.setattr(_sinkhorn_solver, "SPREAD", spread)
    _assert_equal(_solve_both(_problem((3, 3, 16, 4)), epsilon=0.05, n_iters=12))


@pytest.mark.parametrize("n_iters", [20, 200])
@pytest.mark.parametrize("epsilon", [0.05, 0.01, 0.005, 0.002, 0.001])
def test_float32_is_right_for_small_epsilon(epsilon: float, n_iters: int) -> None:
    for cost in (2 * torch.rand(200, 10), _clusters(256, 30), _clusters(256, 10, seed=1)):
        exact = sinkhorn_reference(cost.double(), epsilon=epsilon, n_iters=n_iters)
        fast = sinkhorn_from_cost(cost, epsilon=epsilon, n_iters=n_iters)
        assert (fast.plan - exact.plan).abs().max() < 2e-5
        torch.testing.assert_close(fast.f.double(), exact.f, rtol=1e-6, atol=1e-4)


def test_float32_gradient_is_right_for_small_epsilon() -> None:
    grads = []
    for dtype, function in ((torch.float32, sinkhorn_from_cost), (torch.float64, sinkhorn_reference)):
        cost = _clusters(256, 30).to(dtype).requires_grad_()
        weights = torch.randn(256, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
        plan = function(cost, epsilon=0.002, n_iters=50).plan
        grads.append(torch.autograd.grad((plan * weights).sum(), cost)[0].double())
    assert (grads[0] - grads[1]).abs().max() < 1e-4 * grads[1].abs().max()


def test_forbidden_pairs_carry_nothing() -> None:
    cost, _, _ = _problem((12, 4), masses=False)
    forbidden = torch.rand(12, 4) < 0.3
    forbidden[:, 0] = forbidden[0] = False
    cost = cost.detach().masked_fill(forbidden, torch.inf).requires_grad_()
    plan = sinkhorn_from_cost(cost).plan
    torch.testing.assert_close(plan, sinkhorn_reference(cost).plan)
    assert (plan[forbidden] == 0).all()
    plan.square().sum().backward()
    assert torch.isfinite(cost.grad).all()


def test_nan_comes_out_where_it_went_in() -> None:
    cost = torch.stack([_clusters(256, 10, seed=seed) for seed in range(4)])
    cost[1, 2, 0] = torch.nan
    solution = _solution(cost, None, None, epsilon=0.002, n_iters=60)
    assert solution.plan[1].isnan().all()
    assert torch.isfinite(solution.plan[[0, 2, 3]]).all()
    # The neighbours are absorbed all the same.
    assert (solution.history[..., -1].sum(-1) >= 2).all()


def test_keeps_a_history_of_vectors_for_the_gradient() -> None:
    n, k, n_iters = 512, 16, 40
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    cost = torch.rand(n, k, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        plan = sinkhorn_from_cost(cost, n_iters=n_iters).plan
    assert plan.requires_grad
    # The cost itself, and per iteration the k numbers of v, those of its gauge, and a flag; one count of iterations.
    assert sum(saved.values()) <= 4 * (n * k + n_iters * (2 * k + 1)) + 8


def test_autocast_does_not_reach_the_gradient() -> None:
    tokens, prototypes = torch.randn(2, 40, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    inputs = tokens, prototypes
    expected = torch.autograd.grad(sinkhorn(*inputs).plan.square().sum(), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grads = torch.autograd.grad(sinkhorn(*inputs).plan.square().sum(), inputs)
    torch.testing.assert_close(grads, expected, rtol=0, atol=0)


@pytest.mark.parametrize("epsilon", [0.05, 0.001])
def test_a_start_far_off_is_followed_as_the_reference_does(epsilon: float) -> None:
    cost = torch.stack([_clusters(64, 7, seed=seed) for seed in range(3)])
    far = 1000 * torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.randn(cost.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plans, grads = [], []
    for function in (sinkhorn_from_cost, sinkhorn_reference):
        inputs = cost.double().requires_grad_()
        plans.append(function(inputs, epsilon=epsilon, n_iters=12, init=far).plan)
        grads.append(torch.autograd.grad((plans[-1] * weights).sum(), inputs)[0])
    torch.testing.assert_close(*plans, rtol=0, atol=1e-9)
    torch.testing.assert_close(*grads, rtol=0, atol=1e-7 * grads[1].abs().max().item())
    assert torch.isfinite(sinkhorn_from_cost(cost, epsilon=epsilon, n_iters=12, init=far.float()).plan).all()
