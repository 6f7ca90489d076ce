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
