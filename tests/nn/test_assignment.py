"""Assignments and aggregations: the plan they use, and both averages that follow."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity, elu

from protoad.nn import (
    AttentionAssign,
    GlobalMeanAggregate,
    LinearAssign,
    SigmoidAssign,
    SinkhornAssign,
    SoftmaxAssign,
    TopKAggregate,
    TransportAggregate,
)
from protoad.ops import sinkhorn

ASSIGNMENTS = [SinkhornAssign(), SoftmaxAssign(), LinearAssign(), SigmoidAssign(), SigmoidAssign(normalise=False)]
AGGREGATES = [TransportAggregate(), TopKAggregate(), GlobalMeanAggregate()]


def _cosines(tokens: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    return cosine_similarity(tokens.unsqueeze(-2), prototypes, dim=-1)


def test_plans_against_their_formulas() -> None:
    tokens, prototypes = torch.randn(2, 9, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    s = _cosines(tokens, prototypes) / 0.2
    phi = (elu(tokens) + 1) @ (elu(prototypes) + 1).T
    expected = {
        SoftmaxAssign(epsilon=0.2): s.exp() / s.exp().sum(-1, keepdim=True),
        SigmoidAssign(epsilon=0.2, normalise=False): 1 / (1 + (-s).exp()),
        SigmoidAssign(epsilon=0.2): (1 / (1 + (-s).exp())) / (1 / (1 + (-s).exp())).sum(-1, keepdim=True),
        LinearAssign(): phi / phi.sum(-1, keepdim=True),
        SinkhornAssign(epsilon=0.2, n_iters=7): sinkhorn(tokens, prototypes, epsilon=0.2, n_iters=7).plan,
    }
    for assign, plan in expected.items():
        torch.testing.assert_close(assign(tokens, prototypes).plan, plan)


@pytest.mark.parametrize("assign", ASSIGNMENTS, ids=repr)
def test_reconstruction_and_context_follow_from_the_plan(assign: torch.nn.Module) -> None:
    tokens, prototypes = torch.randn(2, 9, 5), torch.randn(4, 5)
    plan, rebuilt, context = assign(tokens, prototypes)
    torch.testing.assert_close(rebuilt, torch.einsum("bnk,kd->bnd", plan, prototypes))
    weights = plan / plan.sum(1, keepdim=True)
    torch.testing.assert_close(context, torch.einsum("bnk,bnd->bkd", weights, tokens))


@pytest.mark.parametrize("assign", ASSIGNMENTS, ids=repr)
def test_masked_tokens_have_no_say(assign: torch.nn.Module) -> None:
    tokens, prototypes = torch.randn(2, 9, 5), torch.randn(4, 5)
    mask = torch.arange(9).expand(2, -1) < 6
    changed = tokens.clone()
    changed[:, 6:] = 100.0
    one, other = assign(tokens, prototypes, mask), assign(changed, prototypes, mask)
    torch.testing.assert_close(one.context, other.context)
    assert (one.plan[:, 6:] == 0).all()
    assert (one.reconstruction[:, 6:] == 0).all()


def test_learned_attention_against_torch() -> None:
    """One head of torch's attention, with the same projections and no others."""
    assign, tokens, prototypes = AttentionAssign(6), torch.randn(2, 9, 6), torch.randn(2, 4, 6)
    oracle = torch.nn.MultiheadAttention(6, 1, bias=False, batch_first=True)
    with torch.no_grad():
        weights = [assign.query.weight, assign.key.weight, assign.value.weight]
        oracle.in_proj_weight.copy_(torch.cat(weights))
        oracle.out_proj.weight.copy_(torch.eye(6))
    rebuilt, plan = oracle(tokens, prototypes, prototypes)
    found = assign(tokens, prototypes)
    torch.testing.assert_close(found.plan, plan)
    torch.testing.assert_close(found.reconstruction, rebuilt)
    masked = assign(tokens, prototypes, torch.arange(9).expand(2, -1) < 6)
    assert (masked.reconstruction[:, 6:] == 0).all()
    torch.testing.assert_close(masked.reconstruction[:, :6], rebuilt[:, :6])
    weights = masked.plan / masked.plan.sum(1, keepdim=True)
    torch.testing.assert_close(masked.context, torch.einsum("bnk,bnd->bkd", weights, tokens))


def test_only_transport_uses_every_prototype_equally() -> None:
    """All tokens near one prototype: softmax starves the others, transport does not (the paper's reason for it)."""
    prototypes = torch.eye(4, 8)
    tokens = prototypes[0] + 0.3 * torch.randn(1, 64, 8)
    balanced = SinkhornAssign(n_iters=200)(tokens, prototypes).plan.sum(1)
    starved = SoftmaxAssign()(tokens, prototypes).plan.sum(1)
    torch.testing.assert_close(balanced, torch.full((1, 4), 16.0), rtol=0.02, atol=0)
    assert starved.min() < 2


def test_top_k_is_the_mean_of_the_nearest_share() -> None:
    tokens, prototypes = torch.randn(1, 9, 5), torch.randn(3, 5)
    nearest = _cosines(tokens, prototypes)[0].topk(3, dim=0).indices  # n / k = 3 tokens each
    expected = torch.stack([tokens[0, nearest[:, k]].mean(0) for k in range(3)])
    torch.testing.assert_close(TopKAggregate()(tokens, prototypes)[0], expected)


def test_global_mean_is_the_mean() -> None:
    tokens = torch.randn(2, 9, 5)
    context = GlobalMeanAggregate()(tokens, torch.randn(3, 5))
    torch.testing.assert_close(context, tokens.mean(1, keepdim=True).expand(-1, 3, -1))


@pytest.mark.parametrize("aggregate", AGGREGATES, ids=lambda a: type(a).__name__)
def test_aggregates_ignore_masked_tokens(aggregate: torch.nn.Module) -> None:
    tokens, prototypes = torch.randn(2, 9, 5), torch.randn(3, 5)
    mask = torch.arange(9).expand(2, -1) < 6
    torch.testing.assert_close(aggregate(tokens, prototypes, mask), aggregate(tokens[:, :6], prototypes))


@pytest.mark.parametrize("aggregate", AGGREGATES, ids=lambda a: type(a).__name__)
def test_an_item_without_tokens_has_a_zero_context(aggregate: torch.nn.Module) -> None:
    context = aggregate(torch.randn(1, 9, 5), torch.randn(3, 5), torch.zeros(1, 9, dtype=torch.bool))
    torch.testing.assert_close(context, torch.zeros(1, 3, 5))
