"""Figures of who belongs to whom: patches to prototypes, prototypes of one modality to those of the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from protoad._lazy import require
from protoad.errors import ShapeError
from protoad.viz._style import COLORS, Array, checked, panels
from protoad.viz.images import _check_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["graph_edges", "transport_overlay"]


def transport_overlay(rgb: np.ndarray, plan: Array, grid: tuple[int, int], *, mask: np.ndarray | None = None) -> Figure:
    """Which prototype each patch of a part belongs to most, and how decided that is.

    Args:
        rgb: (y x 3) uint8.
        plan: (n k) shares of each patch, row by row; those of a masked patch are 0, and it stays blank.
        grid: patches per column and row; n is their product.
        mask: (y x) bool ground truth, outlined.

    Returns:
        Figure; left the largest share's prototype by colour and number (colours repeat, numbers do not), right
        1 - entropy / log k of the shares: 1 for one prototype alone, 0 for all alike.

    Raises:
        ShapeError: if shapes disagree, or k is below 2.
        DataError: if a share is NaN or infinite, or rgb is not uint8.
        ValueError: if a share is negative.
    """
    _check_rgb("rgb", rgb)
    shares = checked("plan", plan, "n k")
    if len(shares) != grid[0] * grid[1] or shares.shape[1] < 2:
        raise ShapeError(f"plan: expected (n k) with n={grid[0]} * {grid[1]} and k of 2 or more, got {shares.shape}")
    if (shares < 0).any():
        raise ValueError(f"plan: expected shares of 0 or more, got {shares.min()}")
    if mask is not None and mask.shape != rgb.shape[:2]:
        raise ShapeError(f"mask: expected (y x) = {rgb.shape[:2]} as rgb has, got {mask.shape}")
    owners, decided = (values.reshape(grid) for values in _owners(shares))

    figure, (left, right) = panels(2, width=4.4, height=4.2)
    extent = (0, rgb.shape[1], rgb.shape[0], 0)
    for axis in (left, right):
        axis.imshow(np.repeat(rgb.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1), extent=extent)
        axis.set_axis_off()
    palette = require("matplotlib.colors", extra="viz").ListedColormap(COLORS[:-1])
    shown = np.ma.masked_less(owners, 0)
    left.imshow(shown % len(COLORS[:-1]), palette, vmin=0, vmax=len(COLORS) - 2, alpha=0.5, extent=extent)
    step = rgb.shape[0] / grid[0], rgb.shape[1] / grid[1]
    points = figure.get_size_inches()[1] * 72 * 0.8 / grid[0]  # what one patch is high
    for (row, column), owner in np.ndenumerate(owners):
        if owner >= 0:
            place = (column + 0.5) * step[1], (row + 0.5) * step[0]
            left.text(*place, str(owner), ha="center", va="center", fontsize=min(9, 0.5 * points), color="black")
    drawn = right.imshow(np.ma.masked_invalid(decided), "cividis", vmin=0, vmax=1, alpha=0.85, extent=extent)
    figure.colorbar(drawn, ax=right, shrink=0.8, label="1 - entropy / log k")
    left.set_title("prototype with the largest share")
    right.set_title("how decided")
    if mask is not None and mask.any():
        for axis in (left, right):
            _outline(axis, mask)
    return figure


def graph_edges(attention: Array, *, names: tuple[str, str] = ("rgb", "normals")) -> Figure:
    """The graph between the prototypes of two modalities: a line for each edge, as wide as its attention.

    Args:
        attention: (2k 2k) as `CrossModalPrototypeGAT.attention` gives it, averaged over its heads, or (h 2k 2k),
            averaged here; 0 is no edge. Of one item.
        names: of the modalities, first and second.

    Returns:
        Figure; left what the first modality's prototypes attend to, right the second's. What a prototype keeps for
        itself is written beside it.

    Raises:
        ShapeError: if attention is not square, or of an odd number of nodes.
        DataError: if a weight is NaN or infinite.
        ValueError: if a weight is negative.
    """
    weights = checked("attention", attention, "h n n" if getattr(attention, "ndim", 0) == 3 else "n n")
    weights = weights.mean(0) if weights.ndim == 3 else weights
    nodes = len(weights)
    if weights.shape != (nodes, nodes) or nodes % 2:
        raise ShapeError(f"attention: expected (2k 2k) or (h 2k 2k), got {weights.shape} after the heads")
    if (weights < 0).any():
        raise ValueError(f"attention: expected weights of 0 or more, got {weights.min()}")
    count = nodes // 2
    ways = (weights[:count, count:], weights[count:, :count].T)  # (first second) both
    own = np.diagonal(weights)[:count], np.diagonal(weights)[count:]

    figure, axes = panels(2, width=4.0, height=max(3.0, 0.19 * count + 1.4))
    for side, (axis, way) in enumerate(zip(axes, ways, strict=True)):
        _edges(axis, way, widest=max(w.max() for w in ways), color=COLORS[side])
        for place, shares in enumerate(own):
            for index in range(count):
                kept = f"  {shares[index]:.2f}" if place == side else ""
                label = f"{index}{kept}" if place else f"{kept.strip()}  {index}".strip()
                axis.text(-0.06 if place == 0 else 1.06, index, label, ha="left" if place else "right", va="center",
                          fontsize=7)  # fmt: skip
        axis.plot([0] * count + [1] * count, [*range(count)] * 2, "o", color="black", markersize=4, zorder=3)
        axis.set(xlim=(-0.35, 1.35), ylim=(count - 0.4, -1.4))
        axis.text(0, -1, names[0], ha="center", va="center")
        axis.text(1, -1, names[1], ha="center", va="center")
        axis.set_axis_off()
        axis.set_title(f"what {names[side]} attends to", fontsize=10)
    return figure


def _edges(axis: Any, way: np.ndarray, *, widest: float, color: str) -> None:
    """A line from each row at x = 0 to each column at x = 1 with a weight."""
    collections = require("matplotlib.collections", extra="viz")
    ends = np.argwhere(way > 0)
    weights = way[way > 0]
    lines = [[(0, first), (1, second)] for first, second in ends]
    shares = weights / widest if widest else weights
    axis.add_collection(collections.LineCollection(lines, linewidths=0.3 + 3.2 * shares, colors=color, alpha=0.75))


def _owners(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n) index of the largest share, -1 for a patch without any, and (n) how decided, NaN there."""
    mass = shares.sum(1, keepdims=True)
    parts = shares / np.where(mass > 0, mass, 1)
    entropy = -(parts * np.log(np.where(parts > 0, parts, 1))).sum(1)
    counts = mass[:, 0] > 0
    return np.where(counts, shares.argmax(1), -1), np.where(counts, 1 - entropy / np.log(shares.shape[1]), np.nan)


def _outline(axis: Any, mask: np.ndarray) -> None:
    """White under black: seen on any colour."""
    for color, width in (("white", 3.0), ("black", 1.4)):
        y, x = np.arange(mask.shape[0]) + 0.5, np.arange(mask.shape[1]) + 0.5
        axis.contour(x, y, mask.astype(float), levels=[0.5], colors=color, linewidths=width)
