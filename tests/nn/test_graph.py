"""Graph attention between prototypes, against an edge-by-edge loop."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity, leaky_relu

from protoad import ShapeError
from protoad.nn import CrossModalPrototypeGAT


def _loop(gat: CrossModalPrototypeGAT, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """One item, node by node, neighbour by neighbour."""
    nodes, k = torch.cat([first, second]), len(first)
    updated = []
    for i, node in enumerate(nodes):
        others = list(range(k, 2 * k)) if i < k else list(range(k))
        others.sort(key=lambda j: -cosine_similarity(node, nodes[j], dim=0).item())
        neighbours = [*others[: gat.num_neighbors], i]
        heads = []
        for h, (source, target) in enumerate(zip(gat.attend_from, gat.attend_to, strict=True)):
            width = gat.dim // gat.num_heads
            w = gat.project.weight[h * width : (h + 1) * width]
            scores = torch.stack([leaky_relu(target @ (w @ node) + source @ (w @ nodes[j]), 0.2) for j in neighbours])
            heads.append(sum(a * (w @ nodes[j]) for a, j in zip(scores.softmax(0), neighbours, strict=True)))
        updated.append(node + torch.cat(heads))
    return torch.stack(updated)


def test_equals_a_loop_over_edges() -> None:
    gat = CrossModalPrototypeGAT(8, num_heads=2).double()
    first, second = torch.randn(2, 6, 8, dtype=torch.float64), torch.randn(2, 6, 8, dtype=torch.float64)
    aligned = gat(first, second)
    for item in range(2):
        expected = _loop(gat, first[item], second[item])
        torch.testing.assert_close(aligned.first[item], expected[:6])
        torch.testing.assert_close(aligned.second[item], expected[6:])


def test_edges_cross_and_are_few() -> None:
    edges = CrossModalPrototypeGAT(8, num_neighbors=2).edges(torch.randn(3, 5, 8), torch.randn(3, 5, 8))
    assert edges.shape == (3, 10, 10)
    assert (edges.sum(-1) == 3).all()  # two neighbours and itself
    own = edges[:, :5, :5], edges[:, 5:, 5:]
    assert all(torch.equal(block, torch.eye(5, dtype=torch.bool).expand(3, -1, -1)) for block in own)


def test_attention_is_that_of_the_exchange() -> None:
    """Edge by edge: shares sum to 1, lie on edges alone, and the weighted sum of what they say is the update."""
    gat = CrossModalPrototypeGAT(8, num_heads=2, num_neighbors=2).double()
    first, second = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)
    attention, edges = gat.attention(first, second), gat.edges(first, second)
    assert attention.shape == (2, 2, 10, 10)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, 10, dtype=torch.float64))
    assert torch.equal(attention > 0, edges[:, None].expand_as(attention))
    nodes = torch.cat([first, second], dim=1)
    for head in range(2):
        said = nodes @ gat.project.weight[4 * head : 4 * head + 4].T
        update = torch.cat(gat(first, second), dim=1) - nodes
        torch.testing.assert_close(update[..., 4 * head : 4 * head + 4], attention[:, head] @ said)
    with pytest.raises(ShapeError, match="first, second"):
        gat.attention(first, second[:, :4])


def test_ties_go_to_the_first() -> None:
    first, second = torch.ones(1, 4, 8), torch.ones(1, 4, 8)
    edges = CrossModalPrototypeGAT(8, num_neighbors=2, self_loop=False).edges(first, second)
    assert edges[0, :4, 4:].nonzero()[:, 1].tolist() == [0, 1] * 4


def test_more_neighbours_than_prototypes_takes_all() -> None:
    gat = CrossModalPrototypeGAT(8, num_neighbors=50)
    assert gat.edges(torch.randn(1, 2, 8), torch.randn(1, 2, 8)).all(-1).sum() == 0
    assert torch.isfinite(gat(torch.randn(1, 2, 8), torch.randn(1, 2, 8)).first).all()


def test_without_residual_and_self_loop_only_the_other_modality_speaks() -> None:
    gat = CrossModalPrototypeGAT(8, residual=False, self_loop=False, num_neighbors=5)
    first, second = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    silent = gat(first, torch.zeros_like(second)).first
    torch.testing.assert_close(silent, torch.zeros_like(silent))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="num_heads: expected a divisor of dim=10, got 4"):
        CrossModalPrototypeGAT(10)
    with pytest.raises(ValueError, match="num_neighbors: expected at least 1, got 0"):
        CrossModalPrototypeGAT(8, num_neighbors=0)
    with pytest.raises(ShapeError, match=r"first, second: expected the same \(b k d\) with d=8"):
        CrossModalPrototypeGAT(8)(torch.randn(1, 5, 8), torch.randn(1, 4, 8))
