"""The guard against its equation by hand and written out, and what it must never do."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protoad import ShapeError
from protoad.nn import GRUPrototypeRefiner, PrototypeGuard, TransportAggregate

PROTOTYPES = torch.eye(3, dtype=torch.float64)[:2]


def _with_limit(limit: float) -> PrototypeGuard:
    guard = PrototypeGuard().double()
    guard.limit.fill_(limit)
    return guard


def _reference(tokens: Tensor, prototypes: Tensor, limit: float) -> Tensor:
    """The equation for one token at a time, in Python."""
    found = []
    for z in tokens.tolist():
        cosines = [sum(a * b for a, b in zip(z, p, strict=True)) for p in prototypes.tolist()]
        costs = [1 - c / (math.hypot(*z) * math.hypot(*p)) for c, p in zip(cosines, prototypes.tolist(), strict=True)]
        nearest = min(range(len(costs)), key=costs.__getitem__)
        w = min(1.0, max(0.0, 2 - costs[nearest] / limit))
        found.append([w * a + (1 - w) * b for a, b in zip(z, prototypes[nearest].tolist(), strict=True)])
    return torch.tensor(found, dtype=torch.float64)


def test_by_hand() -> None:
    """Costs 0, 0.2, 0.4 and 1 under a limit of 0.25: weights 1, 1, 0.4 and 0."""
    tokens = torch.tensor([[[2.0, 0, 0], [3, 0, 4], [0.6, 0, 0.8], [0, 0.1, 5]]], dtype=torch.float64)
    tokens[0, 1] = torch.tensor([0, 4.0, 3])
    expected = torch.tensor([[[2.0, 0, 0], [0, 4, 3], [0.4 * 0.6 + 0.6, 0, 0.4 * 0.8], [0, 1, 0]]], dtype=torch.float64)
    torch.testing.assert_close(_with_limit(0.25)(tokens, PROTOTYPES), expected)


@given(st.integers(0, 10_000), st.floats(0.05, 2.5))
def test_equals_the_equation_token_by_token(seed: int, limit: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    prototypes = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    found = _with_limit(limit)(tokens, prototypes)
    for item in range(2):
        torch.testing.assert_close(found[item], _reference(tokens[item], prototypes[item], limit))


@given(st.integers(0, 10_000))
def test_scale_and_order_do_not_matter(seed: int) -> None:
    """A cosine knows no length, and a token no neighbours."""
    generator = torch.Generator().manual_seed(seed)
    tokens, prototypes = (torch.randn(1, n, 5, generator=generator, dtype=torch.float64) for n in (7, 3))
    guard, order = _with_limit(0.4), torch.randperm(7, generator=generator)
    found = guard(tokens, prototypes)
    torch.testing.assert_close(guard(tokens[:, order], prototypes.flip(1)), found[:, order])
    torch.testing.assert_close(guard(3 * tokens, 3 * prototypes), 3 * found)


def test_nothing_changes_before_it_is_fitted() -> None:
    tokens = torch.randn(2, 9, 4)
    assert torch.equal(PrototypeGuard()(tokens, torch.randn(3, 4)), tokens)


def test_normal_tokens_leave_refinement_as_it_is() -> None:
    prototypes = torch.randn(4, 8)
    tokens = prototypes[torch.arange(12) % 4].unsqueeze(0) + 0.1 * torch.randn(1, 12, 8)
    guard, aggregate = PrototypeGuard(quantile=1.0).fit(tokens, prototypes), TransportAggregate()
    assert torch.equal(guard(tokens, prototypes), tokens)
    refine = GRUPrototypeRefiner(8)
    batched = prototypes.unsqueeze(0)
    with_it = refine(batched, aggregate(guard(tokens, batched), batched))
    assert torch.equal(with_it, refine(batched, aggregate(tokens, batched)))


def test_of_anomalies_alone_prototypes_hear_only_prototypes() -> None:
    """Whatever the anomaly looks like: the context holds nothing of it."""
    prototypes = torch.eye(8)[:4]
    contexts = []
    for anomaly in (torch.eye(8)[5], torch.eye(8)[6] - 3 * torch.eye(8)[7]):
        tokens = anomaly + 0.05 * prototypes[torch.arange(12) % 4].unsqueeze(0)  # each a little nearer to one of them
        guarded = _with_limit(0.1).float()(tokens, prototypes)
        assert torch.equal(guarded, prototypes[torch.arange(12) % 4].unsqueeze(0))
        contexts.append(TransportAggregate()(guarded, prototypes))
    assert torch.equal(*contexts)
    torch.testing.assert_close(contexts[0][0], prototypes)


def test_the_limit_is_a_quantile_of_the_tokens_that_count() -> None:
    angles = torch.linspace(0, 1, 11).acos()  # cosines 0, 0.1 ... 1: costs 1, 0.9 ... 0
    tokens = torch.stack([angles.cos(), torch.zeros(11), angles.sin()], -1).unsqueeze(0)
    prototypes = PROTOTYPES.float()[:1]
    assert PrototypeGuard().fit(tokens, prototypes).limit.item() == pytest.approx(0.9, abs=1e-6)
    counts = torch.arange(11).unsqueeze(0) >= 5  # costs 0.5 to 0
    assert PrototypeGuard(quantile=0.8).fit(tokens, prototypes, counts).limit.item() == pytest.approx(0.4, abs=1e-6)


def test_fitted_to_the_prototypes_themselves_it_still_works() -> None:
    guard = PrototypeGuard().fit(PROTOTYPES.float().unsqueeze(0), PROTOTYPES.float())
    tokens = torch.tensor([[[2.0, 0, 0], [0, 1, 1]]])
    assert torch.equal(guard(tokens, PROTOTYPES.float()), torch.tensor([[[2.0, 0, 0], [0, 1, 0]]]))


def test_gradients_reach_tokens_and_prototypes() -> None:
    tokens = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    prototypes = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_with_limit(0.3), (tokens, prototypes))


def test_exports_as_plain_operators() -> None:
    guard, inputs = _with_limit(0.3).float(), (torch.randn(2, 9, 4), torch.randn(2, 3, 4))
    exported = torch.export.export(guard, inputs)
    assert not [node for node in exported.graph.nodes if "protoad" in str(node.target)]
    torch.testing.assert_close(exported.module()(*inputs), guard(*inputs))


def test_what_is_wrong_is_named() -> None:
    for quantile in (0.0, 1.5):
        with pytest.raises(ValueError, match="quantile: expected a share in"):
            PrototypeGuard(quantile=quantile)
    tokens = torch.randn(1, 3, 4)
    with pytest.raises(ShapeError, match="at least one token that counts"):
        PrototypeGuard().fit(tokens, torch.randn(2, 4), torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(ShapeError, match="expected d=4"):
        PrototypeGuard()(tokens, torch.randn(2, 5))
