"""How far reconstruction moves tokens (paper Fig. 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from protoad.viz._arrays import as_array, as_flags, check_axis
from protoad.viz._pca import principal_plane
from protoad.viz.style import ANOMALOUS, INK, LINE, NORMAL, draw_groups, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["displacement"]

_PROTOTYPE: dict[str, Any] = {
    "linestyle": "none",
    "marker": "^",
    "markersize": 5.5,
    "color": INK,
    "markeredgecolor": "white",
    "markeredgewidth": 0.6,
    "zorder": 3,
}
_ARROW: dict[str, Any] = {
    "arrowstyle": "-|>,head_length=6,head_width=4",
    "shrinkA": 0,
    "shrinkB": 0,
    "zorder": 4,
}


@styled
def displacement(before: Any, after: Any, prototypes: Any, anomalous: Any, *, bins: int = 30) -> Figure:
    """How tokens move when they are rebuilt (paper Fig. 4): in the plane, and by how much.

    Left: a thin line from each token to its reconstruction in the plane of the largest variance of both and the
    prototypes; bold arrows are the mean movements of normal (thick) and anomalous tokens. Right: the lengths
    |after - before| in the full space, not in the plane, each group in percent of its own tokens.

    Args:
        before: (n d) tokens, z_pre in the paper.
        after: (n d) their reconstructions, z_post.
        prototypes: (k d).
        anomalous: (n), whether each token is.
        bins: of the histogram.

    Returns:
        A matplotlib figure.

    Raises:
        ShapeError: if n or d differ.
        DataError: for what is not finite, or flags that are none.
        ValueError: for bins below 1.
        MissingExtraError: without matplotlib.
    """
    start, end = as_array("before", before, "n d"), as_array("after", after, "n d")
    anchors = as_array("prototypes", prototypes, "k d")
    check_axis("after", end, 0, len(start))
    check_axis("after", end, 1, start.shape[1])
    check_axis("prototypes", anchors, 1, start.shape[1])
    flags = as_flags("anomalous", anomalous, len(start))
    if bins < 1:
        raise ValueError(f"bins: expected 1 or more, got {bins}")
    figure, grid = new_figure(1, 2, size=(8.0, 3.9), width_ratios=(1.25, 1))
    plane = principal_plane(np.concatenate([start, end, anchors]))
    _draw_movements(grid[0, 0], plane.project(start), plane.project(end), plane.project(anchors), flags)
    grid[0, 0].set(xlabel=plane.labels()[0], ylabel=plane.labels()[1])
    _draw_lengths(grid[0, 1], np.linalg.norm(end - start, axis=1), flags, bins)
    entries = [axes.get_legend_handles_labels() for axes in grid[0]]
    handles, names = ([*left, *right] for left, right in zip(*entries, strict=True))
    figure.legend(handles, names, loc="outside lower center", ncols=5)
    return figure


def _groups(anomalous: np.ndarray) -> list[tuple[str, np.ndarray, str, str]]:
    """Name, members, colour and colour of the rim of the groups that have members."""
    groups = [("normal", ~anomalous, NORMAL, INK), ("anomalous", anomalous, ANOMALOUS, "white")]
    return [group for group in groups if group[1].any()]


def _draw_movements(
    axes: Axes, start: np.ndarray, end: np.ndarray, prototypes: np.ndarray, anomalous: np.ndarray
) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.patheffects import Normal, Stroke

    for _, group, colour, _ in _groups(anomalous):
        lines = np.stack([start[group], end[group]], axis=1)
        opacity = min(0.5, max(0.08, 200 / len(lines)))  # so that thousands do not run into one
        axes.add_collection(LineCollection(list(lines), colors=colour, linewidths=0.7, alpha=opacity))
    axes.plot(*prototypes.T, **_PROTOTYPE, label="prototype")
    for name, group, colour, rim in _groups(anomalous):
        width = 4.5 if name == "normal" else 2.0  # so that one shows under the other where they coincide
        ends = tuple(start[group].mean(0)), tuple(end[group].mean(0))
        arrow = FancyArrowPatch(*ends, color=colour, linewidth=width, **_ARROW)
        arrow.set_path_effects([Stroke(linewidth=width + 2, foreground=rim), Normal()])
        axes.add_patch(arrow)
    axes.autoscale_view()
    axes.set_title("Tokens to their reconstructions, in the plane;\narrows: means (thick: normal)", loc="left")


def _draw_lengths(axes: Axes, lengths: np.ndarray, anomalous: np.ndarray, bins: int) -> None:
    draw_groups(axes, lengths, anomalous, np.linspace(0, max(lengths.max(), 1e-12), bins + 1))
    means = []
    for name, group, _, _ in _groups(anomalous):
        means.append(f"{name} {lengths[group].mean():.3g}")
        style: dict[str, Any] = {
            "linestyle": ":" if name == "normal" else "--",
            "color": LINE if name == "normal" else ANOMALOUS,
        }
        axes.axvline(lengths[group].mean(), linewidth=1.6, label=f"mean of {name}", **style)
    axes.set(xlabel="length in the full space", ylabel="tokens of the group, %", xlim=(0, None))
    axes.set_title("How far, on average:\n" + ", ".join(means), loc="left")
