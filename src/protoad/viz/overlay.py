"""Which prototype owns which patch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from protoad.errors import ShapeError
from protoad.viz._arrays import as_plan
from protoad.viz.images import check_rgb, to_grey
from protoad.viz.style import INK, REGIONS, SMALL, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["transport_overlay"]

_WIDTH = 3.7  # inches of a panel
_SMALLEST = 5.0  # points of a legible number
_FEWEST = 3  # tokens of a piece that gets a number where a number is larger than a token


@styled
def transport_overlay(rgb: np.ndarray, plan: Any, grid: tuple[int, int], *, mask: np.ndarray | None = None) -> Figure:
    """The picture with the prototype that has the largest share of each token, and how decided that is.

    Left: a colour per prototype, a line where the owner changes, and the number of the prototype in every piece that
    has room for it; colours repeat, numbers do not. Right: among how many prototypes a token is shared, exp(H) of its
    row of the plan: 1 is decided, k is anybody's. The picture is cut to a square around the tokens that count.

    Args:
        rgb: (y x 3) uint8.
        plan: (n k) shares of the tokens of this picture; rows of 0 are masked tokens, and stay grey.
        grid: tokens (down, across), row by row.
        mask: (y x) bool ground truth, outlined.

    Returns:
        A matplotlib figure.

    Raises:
        ShapeError: if plan and grid, or rgb and mask, do not fit.
        DataError: for shares that are negative, infinite or all 0, or rgb that is not uint8.
        MissingExtraError: without matplotlib.
    """
    check_rgb("rgb", rgb)
    shares = as_plan("plan", plan)
    if np.ndim(plan) != 2 or len(shares) != grid[0] * grid[1]:
        raise ShapeError(f"plan: expected (n k) with n = {grid[0]} x {grid[1]} as in grid, got {tuple(np.shape(plan))}")
    if mask is not None and mask.shape != rgb.shape[:2]:
        raise ShapeError(f"mask: expected (y x) = {rgb.shape[:2]} as rgb has, got {mask.shape}")
    owner = np.where(shares.sum(1) > 0, shares.argmax(1), -1).reshape(grid)
    among = np.exp(_entropy(shares)).reshape(grid)
    height, width = rgb.shape[:2]
    left, right, top, foot = _window(owner, (height, width))
    figure, axes = new_figure(1, 2, size=(8.6, 0.5 + _WIDTH * (foot - top) / (right - left)))
    for axis in axes[0]:
        axis.imshow(to_grey(rgb), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    _draw_owners(axes[0, 0], owner, (height, width), letter=0.45 * 72 * _WIDTH / (right - left) * width / grid[1])
    shown = axes[0, 1].imshow(
        np.ma.masked_where(owner < 0, among),
        cmap="cividis",
        vmin=1,
        vmax=max(2.0, among[owner >= 0].max()),
        extent=(0, width, height, 0),
        interpolation="nearest",
    )
    bar = figure.colorbar(shown, ax=axes[0, 1], shrink=0.85)
    bar.set_label("prototypes a token\nis shared among, exp(H)")
    for axis in axes[0]:
        axis.set(xlim=(left, right), ylim=(foot, top))
        if mask is not None and mask.any():
            at = (np.arange(width) + 0.5, np.arange(height) + 0.5, mask.astype(float))
            axis.contour(*at, levels=[0.5], colors="white", linewidths=2.6)
            axis.contour(*at, levels=[0.5], colors=INK, linewidths=1.2, linestyles="--")
    owners = len(np.unique(owner[owner >= 0]))
    outlined = "; dashed: ground truth" if mask is not None and mask.any() else ""
    axes[0, 0].set_title(f"Owner: {owners} of {shares.shape[1]} prototypes{outlined}", loc="left")
    axes[0, 1].set_title(f"Shared among {among[owner >= 0].mean():.1f} on average", loc="left")
    return figure


def _window(owner: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, right, top and foot, in pixels, of a square around the tokens that count, as far as there is picture."""
    cells = np.argwhere(owner >= 0)
    pitch = np.array(size) / owner.shape
    low, high = (cells.min(0) - 1) * pitch, (cells.max(0) + 2) * pitch
    middle, half = (low + high) / 2, (high - low).max() / 2
    (top, left), (foot, right) = np.maximum(middle - half, 0), np.minimum(middle + half, size)
    return left, right, top, foot


def _draw_owners(axes: Axes, owner: np.ndarray, size: tuple[int, int], *, letter: float) -> None:
    """Colours, borders and numbers of the pieces; a letter that fits into a token has so many points."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba_array
    from matplotlib.patheffects import Normal, Stroke

    down, across = size[0] / owner.shape[0], size[1] / owner.shape[1]
    colours = to_rgba_array(REGIONS, 0.55)
    layer = np.where(owner[..., None] >= 0, colours[_colouring(owner)[owner]], 0.0)
    axes.imshow(layer, extent=(0, size[1], size[0], 0), interpolation="nearest")
    borders = [((x * across, y * down), (x * across, (y + 1) * down)) for y, x in _changes(owner)]
    borders += [((x * across, y * down), ((x + 1) * across, y * down)) for x, y in _changes(owner.T)]
    axes.add_collection(LineCollection(borders, colors=INK, linewidths=0.7))
    fits = letter >= _SMALLEST
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": min(SMALL, max(letter, _SMALLEST))}
    for number, (y, x) in _numbers(owner, 1 if fits else _FEWEST):
        text = axes.text((x + 0.5) * across, (y + 0.5) * down, str(number), **look)
        text.set_path_effects([Stroke(linewidth=1.8, foreground="white"), Normal()])


def _entropy(shares: np.ndarray) -> np.ndarray:
    """(n) of each row of a plan, in nats; 0 for rows of 0."""
    rows = shares / np.maximum(shares.sum(1, keepdims=True), 1e-300)
    entropy: np.ndarray = -(rows * np.log(np.maximum(rows, 1e-300))).sum(1)
    return entropy


def _changes(owner: np.ndarray) -> list[tuple[int, int]]:
    """(row, column) of the cells whose owner is another than that of the cell before them in the row."""
    framed = np.pad(owner, ((0, 0), (1, 1)), constant_values=-1)
    return [(int(y), int(x)) for y, x in np.argwhere(framed[:, 1:] != framed[:, :-1])]


def _colouring(owner: np.ndarray) -> np.ndarray:
    """(k) index of a colour per prototype: of those that its neighbours have least of."""
    count = int(owner.max()) + 1
    touching = np.zeros((count, count), dtype=np.int64)
    for one, other in ((owner[1:], owner[:-1]), (owner[:, 1:], owner[:, :-1])):
        both = (one >= 0) & (other >= 0)
        np.add.at(touching, (one[both], other[both]), 1)
    touching += touching.T
    chosen = np.full(count, -1)
    for prototype in np.argsort(-touching.sum(1), kind="stable"):
        clashes = [touching[prototype][chosen == colour].sum() for colour in range(len(REGIONS))]
        used = [(chosen == colour).sum() for colour in range(len(REGIONS))]
        chosen[prototype] = min(range(len(REGIONS)), key=lambda colour: (clashes[colour], used[colour]))
    return chosen


def _numbers(owner: np.ndarray, fewest: int) -> list[tuple[int, tuple[int, int]]]:
    """A prototype's number and the innermost cell, for each connected piece that is large enough."""
    from scipy.ndimage import distance_transform_cdt, label

    found = []
    for prototype in np.unique(owner[owner >= 0]):
        pieces, count = label(owner == prototype)
        for piece in range(1, count + 1):
            inside = pieces == piece
            if inside.sum() >= fewest:
                depth = distance_transform_cdt(np.pad(inside, 1))[1:-1, 1:-1]
                cells = np.argwhere(depth == depth.max())
                middle = ((cells - cells.mean(0)) ** 2).sum(1).argmin()  # of equally deep ones, the central one
                found.append((int(prototype), (int(cells[middle][0]), int(cells[middle][1]))))
    return found
