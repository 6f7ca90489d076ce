"""Which prototypes of one modality listen to which of the other (paper section 3.4, stage 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from protoad.errors import DataError, ShapeError
from protoad.viz._arrays import as_array
from protoad.viz._pca import principal_plane
from protoad.viz.style import INK, LINE, SMALL, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["graph_edges"]

_WIDEST = 4.0  # points, of an edge with all the attention
_SAMPLES = (0.1, 0.3, 0.6)


@styled
def graph_edges(first: Any, second: Any, attention: Any, *, names: tuple[str, str] = ("RGB", "normals")) -> Figure:
    """The graph between the prototypes of two modalities: what each listens to in the other, a panel per direction.

    The prototypes of either modality stand in a column, both ordered along the first principal component of all, so
    that near ones stand near. An edge is as wide as its attention; where there is none there is no edge. What is left
    of 1 a prototype pays to itself: the area of its disc.

    Args:
        first: (k d) prototypes of one modality.
        second: (k d) of the other.
        attention: (2k 2k), or (h 2k 2k) of which the mean over the heads is drawn, such as one item of
            `CrossModalPrototypeGAT.attention`: rows listen to columns, rows sum to 1.
        names: of the modalities.

    Returns:
        A matplotlib figure.

    Raises:
        ShapeError: if the shapes do not fit.
        DataError: for attention that is negative or whose rows do not sum to 1.
        MissingExtraError: without matplotlib.
    """
    one, other = as_array("first", first, "k d"), as_array("second", second, "k d")
    if one.shape != other.shape:
        raise ShapeError(f"second: expected (k d) = {one.shape} as first has, got {other.shape}")
    k = len(one)
    weights = as_array("attention", attention, "i j" if np.ndim(attention) < 3 else "h i j")
    if weights.shape[-2:] != (2 * k, 2 * k):
        raise ShapeError(f"attention: expected (2k 2k) or (h 2k 2k) with k={k}, got {weights.shape}")
    if weights.min() < 0 or np.abs(weights.sum(-1) - 1).max() > 1e-3:
        raise DataError("attention: expected rows of 0 or more that sum to 1, got others")
    weights = weights.reshape(-1, 2 * k, 2 * k).mean(0)
    along = principal_plane(np.concatenate([one, other])).project(np.concatenate([one, other]))[:, 0]
    places = np.concatenate([along[:k].argsort(kind="stable").argsort(), along[k:].argsort(kind="stable").argsort()])
    figure, grid = new_figure(1, 2, size=(6.6, 1.3 + max(2.0, 0.13 * k)), sharey=True)
    blocks = ((slice(0, k), slice(k, 2 * k)), (slice(k, 2 * k), slice(0, k)))
    for axes, (listening, heard), turned in zip(grid[0], blocks, (False, True), strict=True):
        block = weights[listening, heard]
        edges = [
            (place, at, width)
            for place, row in zip(places[listening], block, strict=True)
            for at, width in zip(places[heard], row, strict=True)
            if width > 0
        ]
        own = np.diagonal(weights)[listening]
        _draw_edges(axes, [(at, place, width) if turned else (place, at, width) for place, at, width in edges])
        for column, part in ((0, slice(0, k)), (1, slice(k, 2 * k))):
            _draw_column(axes, column, places[part], np.diagonal(weights)[part] if part == listening else None)
        heads = names[::-1] if turned else names
        axes.set_title(
            f"Attention of {heads[0]} to {heads[1]}: {block.sum() / k:.0%}\n(to itself: {own.mean():.0%})", loc="center"
        )
        axes.set(xlim=(-0.22, 1.22), ylim=(-0.9, k - 0.1), xticks=(0, 1), xticklabels=names, yticks=())
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=9)
    _draw_legend(figure, grid[0, 0])
    return figure


def _draw_edges(axes: Axes, edges: list[tuple[int, int, float]]) -> None:
    """Lines from the first column to the second, as wide as their attention."""
    from matplotlib.collections import LineCollection

    lines = [((0, left), (1, right)) for left, right, _ in edges]
    axes.add_collection(LineCollection(lines, colors=LINE, alpha=0.65, linewidths=[_WIDEST * w for *_, w in edges]))


def _draw_column(axes: Axes, column: int, places: np.ndarray, own: np.ndarray | None) -> None:
    """Discs of the listening modality by what they pay to themselves, points of the other; numbers outside."""
    sizes = np.full(len(places), 8.0) if own is None else 4 + 110 * own
    face = INK if own is None else "white"
    axes.scatter(np.full(len(places), column), places, s=sizes, color=face, edgecolors=INK, linewidths=0.9, zorder=3)
    for number, place in enumerate(places):
        side = "right" if column == 0 else "left"
        axes.text(column + (0.07 if column else -0.07), place, str(number), ha=side, va="center", fontsize=SMALL - 1)


def _draw_legend(figure: Figure, axes: Axes) -> None:
    for width in _SAMPLES:
        axes.plot([], [], color=LINE, alpha=0.65, linewidth=_WIDEST * width, label=f"attention {width:g}")
    axes.scatter([], [], s=4 + 110 * 0.5, color="white", edgecolors=INK, label="0.5 to itself")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
