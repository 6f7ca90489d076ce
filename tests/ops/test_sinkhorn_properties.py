"""What must hold for every problem, found by hypothesis."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protoad.ops import sinkhorn, sinkhorn_from_cost, transport_context, transport_reconstruct

sizes = st.tuples(st.integers(1, 3), st.integers(1, 24), st.integers(1, 8))
seeds = st.integers(0, 2**31)
epsilons = st.sampled_from([0.02, 0.05, 0.1, 0.5, 2.0])
iterations = st.integers(1, 40)
# Sums of up to 24 float64 numbers, each off by the exponential of a rounded logit.
TIGHT = {"rtol": 1e-9, "atol": 1e-12}


def _cost(size: tuple[int, int, int], seed: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.rand(*size, generator=generator, dtype=torch.float64)


def _vectors(size: tuple[int, int, int], seed: int, d: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    b, n, k = size
    tokens = torch.randn(b, n, d, generator=generator, dtype=torch.float64)
    return tokens, torch.randn(k, d, generator=generator, dtype=torch.float64)


@given(sizes, seeds, epsilons, iterations)
def test_rows_are_exact_at_any_iteration_count(size, seed, epsilon, n_iters):
    plan = sinkhorn_from_cost(_cost(size, seed), epsilon=epsilon, n_iters=n_iters).plan
    torch.testing.assert_close(plan.sum(-1), torch.ones_like(plan[..., 0]), **TIGHT)


@given(sizes, seeds, epsilons)
def test_columns_converge_to_equal_shares(size, seed, epsilon):
    cost = _cost(size, seed, scale=10 * epsilon)
    plan = sinkhorn_from_cost(cost, epsilon=epsilon, n_iters=2000).plan
    torch.testing.assert_close(plan.sum(-2), torch.full_like(plan[:, 0], size[1] / size[2]), rtol=1e-4, atol=0)


@given(sizes, seeds, epsilons, iterations)
def test_total_mass_is_the_number_of_tokens(size, seed, epsilon, n_iters):
    plan = sinkhorn_from_cost(_cost(size, seed), epsilon=epsilon, n_iters=n_iters).plan
    torch.testing.assert_close(plan.sum((-2, -1)), torch.full((size[0],), float(size[1]), dtype=torch.float64), **TIGHT)


@given(sizes, seeds, epsilons, iterations)
def test_plan_is_a_share(size, seed, epsilon, n_iters):
    plan = sinkhorn_from_cost(_cost(size, seed), epsilon=epsilon, n_iters=n_iters).plan
    assert (plan >= 0).all()
    assert (plan <= 1 + 1e-9).all()


@given(sizes, seeds, epsilons)
def test_marginal_error_is_that_of_the_columns_and_falls(size, seed, epsilon):
    cost = _cost(size, seed)
    share = size[1] / size[2]
    few, more = (sinkhorn_from_cost(cost, epsilon=epsilon, n_iters=n) for n in (5, 25))
    torch.testing.assert_close(few.marginal_error, ((few.plan.sum(-2) - share).abs() / share).amax(-1), **TIGHT)
    # The l1 error never rises; the largest one is at most k times its mean.
    assert ((more.plan.sum(-2) - share).abs().sum(-1) <= (few.plan.sum(-2) - share).abs().sum(-1) + 1e-9).all()


@given(sizes, seeds, epsilons, iterations)
def test_order_of_tokens_does_not_matter(size, seed, epsilon, n_iters):
    tokens, prototypes = _vectors(size, seed)
    order = torch.randperm(size[1], generator=torch.Generator().manual_seed(seed))
    plan = sinkhorn(tokens, prototypes, epsilon=epsilon, n_iters=n_iters).plan
    permuted = sinkhorn(tokens[:, order], prototypes, epsilon=epsilon, n_iters=n_iters).plan
    torch.testing.assert_close(permuted, plan[:, order], **TIGHT)


@given(sizes, seeds, epsilons, iterations)
def test_order_of_prototypes_does_not_matter(size, seed, epsilon, n_iters):
    tokens, prototypes = _vectors(size, seed)
    order = torch.randperm(size[2], generator=torch.Generator().manual_seed(seed))
    plan = sinkhorn(tokens, prototypes, epsilon=epsilon, n_iters=n_iters).plan
    permuted = sinkhorn(tokens, prototypes[order], epsilon=epsilon, n_iters=n_iters).plan
    torch.testing.assert_close(permuted, plan[..., order], **TIGHT)


@given(sizes, seeds, epsilons, iterations)
def test_batch_equals_loop(size, seed, epsilon, n_iters):
    tokens, prototypes = _vectors(size, seed)
    together = sinkhorn(tokens, prototypes, epsilon=epsilon, n_iters=n_iters).plan
    alone = torch.stack([sinkhorn(one, prototypes, epsilon=epsilon, n_iters=n_iters).plan for one in tokens])
    torch.testing.assert_close(together, alone, **TIGHT)


@given(sizes, seeds, epsilons, iterations, st.integers(0, 23))
def test_masked_equals_removed(size, seed, epsilon, n_iters, removed):
    tokens, prototypes = _vectors(size, seed)
    kept = torch.arange(size[1]) != removed % size[1]
    if not kept.any():
        return
    masked = sinkhorn(tokens, prototypes, epsilon=epsilon, n_iters=n_iters, token_mask=kept.expand(size[0], -1)).plan
    torch.testing.assert_close(
        masked[:, kept], sinkhorn(tokens[:, kept], prototypes, epsilon=epsilon, n_iters=n_iters).plan, **TIGHT
    )
    assert (masked[:, ~kept] == 0).all()


@given(sizes, seeds, epsilons, iterations, st.floats(0.01, 100))
def test_cosine_ignores_the_scale_of_vectors(size, seed, epsilon, n_iters, scale):
    tokens, prototypes = _vectors(size, seed)
    plan = sinkhorn(tokens, prototypes, epsilon=epsilon, n_iters=n_iters).plan
    scaled = sinkhorn(scale * tokens, prototypes / scale, epsilon=epsilon, n_iters=n_iters).plan
    torch.testing.assert_close(scaled, plan, rtol=1e-7, atol=1e-10)


@given(sizes, seeds, epsilons, iterations, st.floats(-3, 3))
def test_a_constant_on_a_column_changes_nothing(size, seed, epsilon, n_iters, shift):
    cost = _cost(size, seed)
    shifted = cost.clone()
    shifted[..., 0] += shift
    plan = sinkhorn_from_cost(cost, epsilon=epsilon, n_iters=n_iters).plan
    torch.testing.assert_close(
        sinkhorn_from_cost(shifted, epsilon=epsilon, n_iters=n_iters).plan, plan, rtol=1e-7, atol=1e-10
    )


@given(sizes, seeds)
def test_large_epsilon_shares_every_token_equally(size, seed):
    plan = sinkhorn_from_cost(_cost(size, seed), epsilon=1e6).plan
    torch.testing.assert_close(plan, torch.full_like(plan, 1 / size[2]), rtol=1e-5, atol=0)


@given(sizes, seeds, st.sampled_from([1.0, 1e2, 1e4]))
def test_hostile_costs_stay_finite_in_float32(size, seed, scale):
    transport = sinkhorn_from_cost(_cost(size, seed, scale).float(), epsilon=0.05)
    assert torch.isfinite(transport.plan).all()
    torch.testing.assert_close(transport.plan.sum(-1), torch.ones_like(transport.plan[..., 0]), rtol=5e-2, atol=0)


@given(sizes, seeds, epsilons, iterations)
def test_reconstruction_stays_within_the_prototypes(size, seed, epsilon, n_iters):
    tokens, prototypes = _vectors(size, seed)
    rebuilt = transport_reconstruct(sinkhorn(tokens, prototypes, epsilon=epsilon, n_iters=n_iters).plan, prototypes)
    assert (rebuilt <= prototypes.amax(0) + 1e-9).all()
    assert (rebuilt >= prototypes.amin(0) - 1e-9).all()


@given(sizes, seeds, epsilons, iterations)
def test_context_stays_within_the_tokens(size, seed, epsilon, n_iters):
    tokens, prototypes = _vectors(size, seed)
    context = transport_context(sinkhorn(tokens, prototypes, epsilon=epsilon, n_iters=n_iters).plan, tokens)
    assert (context <= tokens.amax(1, keepdim=True) + 1e-9).all()
    assert (context >= tokens.amin(1, keepdim=True) - 1e-9).all()


methods = st.sampled_from(["sinkhorn", "newton"])


def _balanced(size: tuple[int, int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Random masses of tokens and prototypes with the same sum in each item."""
    generator = torch.Generator().manual_seed(seed)
    rows = 0.1 + torch.rand(size[:2], generator=generator, dtype=torch.float64)
    cols = 0.1 + torch.rand(size[0], size[2], generator=generator, dtype=torch.float64)
    return rows, cols * rows.sum(-1, keepdim=True) / cols.sum(-1, keepdim=True)


@given(sizes, seeds, epsilons)
def test_newton_meets_both_marginals(size, seed, epsilon):
    rows, cols = _balanced(size, seed)
    transport = sinkhorn_from_cost(
        _cost(size, seed), epsilon=epsilon, method="newton", row_mass=rows, col_mass=cols, n_iters=50
    )
    torch.testing.assert_close(transport.plan.sum(-1), rows, **TIGHT)
    torch.testing.assert_close(transport.plan.sum(-2), cols, rtol=2e-6, atol=0)
    assert (transport.marginal_error <= 1e-6).all()


@given(sizes, seeds, st.sampled_from([0.1, 0.5, 2.0]))
def test_both_methods_find_the_same_plan(size, seed, epsilon):
    rows, cols = _balanced(size, seed)
    masses = {"row_mass": rows, "col_mass": cols}
    cost = _cost(size, seed)
    exact = sinkhorn_from_cost(cost, epsilon=epsilon, method="newton", tol=1e-10, n_iters=50, **masses)
    slow = sinkhorn_from_cost(cost, epsilon=epsilon, tol=1e-10, n_iters=20_000, **masses)
    if (slow.marginal_error <= 1e-10).all():
        # The plan is as far off as the columns, times the condition of the problem.
        torch.testing.assert_close(slow.plan, exact.plan, rtol=0, atol=1e-5)


@given(sizes, seeds, epsilons, st.floats(-3, 3))
def test_a_constant_on_a_row_changes_nothing_at_convergence(size, seed, epsilon, shift):
    cost = _cost(size, seed)
    shifted = cost.clone()
    shifted[:, 0] += shift
    plan, other = (
        sinkhorn_from_cost(one, epsilon=epsilon, method="newton", tol=1e-11, n_iters=50).plan for one in (cost, shifted)
    )
    torch.testing.assert_close(other, plan, rtol=0, atol=1e-6)


@given(sizes, seeds, epsilons, st.integers(1, 20), st.integers(1, 20))
def test_a_warm_start_goes_on_where_it_was(size, seed, epsilon, first, more):
    cost = _cost(size, seed)
    start = sinkhorn_from_cost(cost, epsilon=epsilon, n_iters=first)
    expected = sinkhorn_from_cost(cost, epsilon=epsilon, n_iters=first + more).plan
    for init in (start, (start.f, start.g), start.g):
        plan = sinkhorn_from_cost(cost, epsilon=epsilon, n_iters=more, init=init).plan
        torch.testing.assert_close(plan, expected, rtol=1e-7, atol=1e-10)


@given(sizes, seeds, epsilons, st.sampled_from([1e-1, 1e-2, 1e-4]))
def test_a_tolerance_is_met_or_all_iterations_were_run(size, seed, epsilon, tol):
    transport = sinkhorn_from_cost(_cost(size, seed), epsilon=epsilon, tol=tol, n_iters=300)
    assert transport.iterations <= 300
    assert (transport.marginal_error <= tol * (1 + 1e-9)).all() or transport.iterations == 300


@given(sizes, seeds, epsilons, methods)
def test_a_prototype_without_mass_is_as_good_as_absent(size, seed, epsilon, method):
    cost = _cost((size[0], size[1], size[2] + 1), seed)
    cols = torch.full((size[2] + 1,), size[1] / size[2], dtype=torch.float64)
    cols[0] = 0
    plan = sinkhorn_from_cost(cost, epsilon=epsilon, method=method, n_iters=50, col_mass=cols).plan
    assert (plan[..., 0] == 0).all()
    without = sinkhorn_from_cost(cost[..., 1:], epsilon=epsilon, method=method, n_iters=50).plan
    torch.testing.assert_close(plan[..., 1:], without, rtol=1e-5, atol=1e-6)


@given(sizes, seeds, epsilons, methods, st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_dtype_and_device_are_kept(size, seed, epsilon, method, dtype):
    tokens, prototypes = (one.to(dtype) for one in _vectors(size, seed))
    transport = sinkhorn(tokens, prototypes, epsilon=epsilon, method=method)
    assert transport.plan.dtype == dtype
    assert transport.f.dtype == transport.g.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert {part.device for part in transport} == {tokens.device}
    assert torch.isfinite(transport.plan).all()


@given(sizes, seeds, epsilons, iterations)
def test_plan_is_that_of_its_potentials(size, seed, epsilon, n_iters):
    cost = _cost(size, seed)
    plan, f, g, _, _ = sinkhorn_from_cost(cost, epsilon=epsilon, n_iters=n_iters)
    torch.testing.assert_close((f.unsqueeze(-1) + g.unsqueeze(-2) - cost / epsilon).exp(), plan, rtol=1e-7, atol=1e-12)


@given(sizes, seeds, epsilons, st.sampled_from(["unrolled", "implicit"]), methods)
def test_gradients_are_finite_and_blind_to_a_constant_on_a_column(size, seed, epsilon, gradient, method):
    cost = _cost(size, seed).requires_grad_()
    weights = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    plan = sinkhorn_from_cost(cost, epsilon=epsilon, gradient=gradient, method=method, n_iters=30).plan
    (grad,) = torch.autograd.grad((plan * weights).sum(), cost)
    assert torch.isfinite(grad).all()
    scale = weights.abs().sum((-2, -1)).max() / epsilon
    torch.testing.assert_close(
        grad.sum(-2) / scale, torch.zeros(size[0], size[2], dtype=torch.float64), rtol=0, atol=1e-7
    )
