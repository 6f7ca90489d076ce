"""How far the scores of normal and anomalous parts lie apart (paper Fig. 3, right)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from protoad.errors import DataError
from protoad.viz._arrays import as_array, as_flags
from protoad.viz.style import INK, draw_groups, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["score_distributions", "score_overlap"]

_ACROSS = 3  # panels at most


def score_overlap(scores: Any, labels: Any) -> float:
    """How much normal and anomalous scores overlap, without bins: the least error that a threshold can leave.

    min_t P(normal > t) + P(anomalous <= t) = 1 - max_t [F_normal(t) - F_anomalous(t)], in [0, 1]: 0 if a threshold
    separates the two, 1 if none does better than chance.

    Args:
        scores: (m), larger is more anomalous.
        labels: (m), 0 for normal, 1 for anomalous.

    Returns:
        The overlap.

    Raises:
        ShapeError: for other shapes.
        DataError: for scores that are not finite, labels other than 0 and 1, or only one of the two.

    Examples:
        >>> from protoad.viz import score_overlap
        >>> score_overlap([1, 2, 3, 4], [0, 0, 1, 1])
        0.0
        >>> score_overlap([1, 3, 2, 4], [0, 0, 1, 1])
        0.5
    """
    array = as_array("scores", scores, "m")
    anomalous = as_flags("labels", labels, len(array))
    if anomalous.all() or not anomalous.any():
        raise DataError(f"labels: expected both 0 and 1, got {int(anomalous[0])} alone")
    normal, other = (np.sort(array[group]) for group in (~anomalous, anomalous))
    below = [np.searchsorted(group, array, side="right") / len(group) for group in (normal, other)]
    return float(1 - max(0.0, (below[0] - below[1]).max()))


@styled
def score_distributions(
    scores: Mapping[str, Any] | Any,
    labels: Any,
    *,
    threshold: Mapping[str, float] | float | None = None,
    bins: int = 16,
) -> Figure:
    """Histograms of the scores of normal and anomalous parts, a panel per detector (paper Fig. 3, right).

    Each group is shown in percent of its own parts, in the same bins, on an axis that holds all scores and starts
    at 0. Every panel states the `score_overlap`, and what the threshold rejects.

    Args:
        scores: (m), larger is more anomalous; or detector -> (m).
        labels: (m), 0 for normal, 1 for anomalous.
        threshold: parts above it are rejected; or detector -> threshold. Infinite: nothing is.
        bins: of each histogram.

    Returns:
        A matplotlib figure.

    Raises:
        ShapeError: if scores and labels differ in length.
        DataError: for scores that are not finite, or labels other than 0 and 1, or only one of the two.
        ValueError: for no detectors, a threshold that is NaN or of an unknown detector, or bins below 1.
        MissingExtraError: without matplotlib.
    """
    panels = dict(scores) if isinstance(scores, Mapping) else {"": scores}
    thresholds = _thresholds(threshold, panels)
    if not panels or bins < 1:
        raise ValueError(f"expected one detector or more in scores, and bins of 1 or more, got {len(panels)}, {bins}")
    down = math.ceil(len(panels) / _ACROSS)
    across = math.ceil(len(panels) / down)
    size = (max(4.8, 1.0 + 2.5 * across), 0.5 + 2.7 * down)  # the legend needs as much
    figure, grid = new_figure(down, across, size=size, sharey=True)
    for axes, (name, values) in zip(grid.flat, panels.items(), strict=False):
        array = as_array(f"scores of {name}" if name else "scores", values, "m")
        anomalous = as_flags("labels", labels, len(array))
        low, high = array.min(), array.max()
        pad = 0.0 if high > low else max(abs(low), 1.0) * 1e-3
        draw_groups(axes, array, anomalous, np.linspace(low - pad, high + pad, bins + 1))
        notes = [f"{name}: " * bool(name) + f"overlap {score_overlap(array, anomalous):.2f}"]
        if name in thresholds:
            limit = thresholds[name]
            if math.isfinite(limit):
                axes.axvline(limit, color=INK, linestyle="--", linewidth=1.1, label="threshold")
            rejected = [np.mean(array[group] > limit) for group in (~anomalous, anomalous)]
            notes.append(f"rejected: {rejected[0]:.0%} of the normal,\n{rejected[1]:.0%} of the anomalous parts")
            notes[-1] += ", threshold infinite" * (limit == math.inf)
        axes.set_title("\n".join(notes), loc="left")
        axes.set_xlabel("anomaly score")
    for axes in grid[:, 0]:
        axes.set_ylabel("parts of the group, %")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    handles, names = grid.flat[0].get_legend_handles_labels()
    counts = {"normal": (~anomalous).sum(), "anomalous": anomalous.sum()}
    names = [f"{name}, {counts[name]} parts" if name in counts else name for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def _thresholds(threshold: Mapping[str, float] | float | None, panels: Mapping[str, Any]) -> dict[str, float]:
    if threshold is None:
        return {}
    found = dict(threshold) if isinstance(threshold, Mapping) else dict.fromkeys(panels, threshold)
    unknown = sorted(found.keys() - panels.keys())
    if unknown:
        raise ValueError(f"threshold: expected detectors out of {', '.join(panels)}, got {unknown[0]!r}")
    if any(math.isnan(value) for value in found.values()):
        raise ValueError("threshold: expected numbers, got NaN")
    return found
