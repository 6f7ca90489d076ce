"""Figures against what numpy says must stand in them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from protoad.errors import ShapeError
from protoad.nn import CrossModalPrototypeGAT
from protoad.viz import (
    displacement,
    effective_prototypes,
    graph_edges,
    prototype_usage,
    score_distributions,
    token_projection,
    transport_overlay,
)

pytest.importorskip("matplotlib")
RNG = np.random.default_rng(0)


def lightness(color: str) -> float:
    """CIE L* of an sRGB colour."""
    srgb = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return 116 * float(linear @ [0.2126, 0.7152, 0.0722]) ** (1 / 3) - 16


def test_normal_and_anomalous_differ_in_grey() -> None:
    figure = score_distributions({"a": RNG.normal(size=8)}, np.arange(8) % 2)
    from matplotlib.colors import to_hex

    colors = [to_hex(patch.get_facecolor()) for patch in figure.axes[0].patches[:2]]
    assert abs(lightness(colors[0]) - lightness(colors[1])) >= 25


def test_score_panels_name_their_auroc() -> None:
    figure = score_distributions({"a": [1.0, 2, 3, 4], "b": [1.0, 4, 3, 2]}, np.array([0, 0, 1, 1]), threshold={"a": 2})
    assert [axis.get_title() for axis in figure.axes] == ["a\nimage AUROC 1.000", "b\nimage AUROC 0.500"]


def test_usage_equals_a_loop() -> None:
    plan = torch.rand(2, 5, 4)
    shares = [sum(float(plan[b, n, k]) for b in range(2) for n in range(5)) for k in range(4)]
    shares = sorted((share / sum(shares) for share in shares), reverse=True)
    axis = prototype_usage({"m": plan}).axes[0]
    assert axis.lines[0].get_ydata() == pytest.approx([100 * share for share in shares])
    assert effective_prototypes(plan) == pytest.approx(np.exp(-sum(share * np.log(share) for share in shares)))


def test_projection_is_pca() -> None:
    tokens, book = RNG.normal(size=(40, 5)) * [5, 1, 3, 1, 1], RNG.normal(size=(3, 5))
    found = token_projection(tokens, {"m": book}).axes[0].collections
    _, vectors = np.linalg.eigh(np.cov(tokens.T))
    for cloud, drawn in zip((tokens, book), found, strict=True):
        expected = (cloud - tokens.mean(0)) @ vectors[:, :-3:-1]
        np.testing.assert_allclose(np.abs(drawn.get_offsets()), np.abs(expected), atol=1e-9)


def test_displacement_is_measured_in_all_channels() -> None:
    before, after = RNG.normal(size=(2, 30, 6))
    bad = np.arange(30) < 10
    histogram = displacement(before, after, RNG.normal(size=(4, 6)), bad).axes[1]
    lengths = np.sqrt(((after - before) ** 2).sum(1))
    said = [text.get_text() for text in histogram.get_legend().get_texts()]
    assert said == [f"normal, mean {lengths[~bad].mean():.3g}", f"anomalous, mean {lengths[bad].mean():.3g}"]


def test_owners_are_the_largest_shares() -> None:
    plan = RNG.random((6, 4))
    plan[2] = 0  # masked
    figure = transport_overlay(np.full((20, 30, 3), 90, np.uint8), plan, (2, 3), mask=np.eye(20, 30, dtype=bool))
    assert [text.get_text() for text in figure.axes[0].texts] == [str(plan[n].argmax()) for n in (0, 1, 3, 4, 5)]


def test_edges_are_those_of_the_graph() -> None:
    gat = CrossModalPrototypeGAT(8, num_heads=2, num_neighbors=2)
    first, second = torch.randn(2, 1, 5, 8)
    weights, edges = gat.attention(first, second)[0], gat.edges(first, second)[0]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 10))
    axes = graph_edges(weights).axes
    for axis, block in zip(axes, (edges[:5, 5:], edges[5:, :5].T), strict=True):
        drawn = {(int(line[0][1]), int(line[1][1])) for line in axis.collections[0].get_segments()}
        assert drawn == {(int(i), int(j)) for i, j in block.nonzero()}


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ShapeError, match="plans"):
        prototype_usage({"m": np.ones((2, 3))})
    with pytest.raises(ShapeError, match="prototypes"):
        token_projection(np.ones((4, 3)), {"m": np.ones((2, 4))})
    with pytest.raises(ShapeError, match="after"):
        displacement(np.ones((4, 3)), np.ones((5, 3)), np.ones((2, 3)), np.arange(4) % 2)
    with pytest.raises(ShapeError, match="plan"):
        transport_overlay(np.zeros((4, 4, 3), np.uint8), np.ones((3, 2)), (2, 2))
    with pytest.raises(ShapeError, match="attention"):
        graph_edges(np.ones((3, 3)))
    with pytest.raises(ValueError, match="labels"):
        score_distributions({"a": [1.0, 2]}, np.zeros(2))
    assert "matplotlib.pyplot" not in sys.modules
