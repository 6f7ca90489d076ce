from __future__ import annotations

import numpy as np
import pytest
import torch

from protoad.errors import DataError, ShapeError
from protoad.nn import CrossModalPrototypeGAT
from protoad.viz import graph_edges
from protoad.viz.graph import _WIDEST

LineCollection = pytest.importorskip("matplotlib.collections").LineCollection
K = 7


@pytest.fixture
def graph() -> tuple[CrossModalPrototypeGAT, torch.Tensor, torch.Tensor, torch.Tensor]:
    align = CrossModalPrototypeGAT(8, num_heads=2, num_neighbors=3)
    first, second = torch.randn(1, K, 8), torch.randn(1, K, 8)
    return align, first, second, align.attention(first, second)


def _drawn(axes) -> dict[tuple[str, str], float]:
    """(number on the left, number on the right) -> width of the edge between them."""
    numbers = {(round(text.get_position()[0]), text.get_position()[1]): text.get_text() for text in axes.texts}
    collection = next(c for c in axes.collections if isinstance(c, LineCollection))
    found = {}
    for (left, right), width in zip(collection.get_segments(), collection.get_linewidths(), strict=True):
        found[numbers[0, left[1]], numbers[1, right[1]]] = float(width)
    return found


def test_edges_are_the_nearest_neighbours_and_as_wide_as_their_attention(graph) -> None:
    align, first, second, attention = graph
    figure = graph_edges(first[0], second[0], attention[0])
    edges, mean = align.edges(first, second)[0], attention[0].detach().mean(0)
    for direction, axes in enumerate(figure.axes):
        expected = {}
        for i in range(K):
            for j in range(K):
                listening, heard = (i, K + j) if direction == 0 else (K + j, i)
                if edges[listening, heard]:
                    expected[str(i), str(j)] = _WIDEST * float(mean[listening, heard])
        assert _drawn(axes) == pytest.approx(expected)
        assert len(expected) == 3 * K


def test_heads_are_averaged_and_a_matrix_is_taken(graph) -> None:
    _, first, second, attention = graph
    one, other = (graph_edges(first[0], second[0], a) for a in (attention[0], attention[0].mean(0)))
    assert _drawn(one.axes[1]) == pytest.approx(_drawn(other.axes[1]))


def test_what_goes_to_itself_is_said(graph) -> None:
    _, first, second, attention = graph
    figure = graph_edges(first[0], second[0], attention[0], names=("colour", "shape"))
    own = attention[0].detach().mean(0).diagonal()
    for axes, title, share in zip(
        figure.axes, ("colour to shape", "shape to colour"), (own[:K].mean(), own[K:].mean()), strict=True
    ):
        assert axes.get_title() == f"Attention of {title}: {1 - share:.0%}\n(to itself: {share:.0%})"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["colour", "shape"]


def test_near_prototypes_stand_near() -> None:
    along = np.array([3.0, 0.0, 2.0, 1.0])
    first = np.outer(along, [1.0, 2.0])
    axes = graph_edges(first, first + 0.1, np.eye(8)).axes[0]
    for column in (0, 1):
        texts = [text for text in axes.texts if round(text.get_position()[0]) == column]
        order = [int(t.get_text()) for t in sorted(texts, key=lambda text: text.get_position()[1])]
        assert order in ([1, 3, 2, 0], [0, 2, 3, 1])
    assert not _drawn(axes)


def test_bad_input_is_named() -> None:
    prototypes, even = np.zeros((3, 4)), np.full((6, 6), 1 / 6)
    with pytest.raises(ShapeError, match=r"second: expected \(k d\) = \(3, 4\)"):
        graph_edges(prototypes, prototypes[:2], even)
    with pytest.raises(ShapeError, match=r"first: expected \(k d\)"):
        graph_edges(prototypes[0], prototypes, even)
    for shape in ((5, 5), (2, 2, 6, 6)):
        with pytest.raises(ShapeError, match=r"attention: expected"):
            graph_edges(prototypes, prototypes, np.full(shape, 0.2))
    for wrong in (even * 2, even - 2 * np.eye(6)):
        with pytest.raises(DataError, match="attention: expected rows"):
            graph_edges(prototypes, prototypes, wrong)
