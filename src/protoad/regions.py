"""Where on a part it is anomalous: the spots of a heatmap above a threshold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from protoad.errors import DataError, ShapeError

__all__ = ["Region", "find_regions"]


class Region(NamedTuple):
    """A connected spot of a heatmap, in pixels of that heatmap.

    Attributes:
        x: left edge of its box.
        y: top edge.
        width: of the box.
        height: of the box.
        area: number of its pixels.
        peak: largest score in it.
        peak_x: where that is.
        peak_y: where that is.
    """

    x: int
    y: int
    width: int
    height: int
    area: int
    peak: float
    peak_x: int
    peak_y: int


def find_regions(heatmap: np.ndarray, threshold: float) -> list[Region]:
    """Gives the 8-connected regions of pixels with scores above the threshold, the one with the highest peak first.

    Args:
        heatmap: (y x) finite scores.
        threshold: such as `Calibration.threshold` for a detector whose score is the maximum of its heatmap: then a part
            has a region if and only if it is rejected. Infinity finds none.

    Raises:
        ShapeError: if the heatmap isn't (y x).
        DataError: if a score or the threshold is not a number.

    Examples:
        >>> spot = np.zeros((5, 6)); spot[1:3, 2:5] = [[1, 3, 1], [2, 0, 0]]
        >>> find_regions(spot, 0.5)
        [Region(x=2, y=1, width=3, height=2, area=4, peak=3.0, peak_x=3, peak_y=1)]
    """
    from scipy.ndimage import find_objects, label

    if heatmap.ndim != 2:
        raise ShapeError(f"heatmap: expected (y x), got {heatmap.shape}")
    if not np.isfinite(heatmap).all() or np.isnan(threshold):
        raise DataError("heatmap, threshold: expected finite scores and a number, found NaN or infinity")
    numbers, _ = label(heatmap > threshold, structure=np.ones((3, 3), dtype=int))
    regions = []
    for number, (rows, columns) in enumerate(find_objects(numbers), start=1):
        inside = numbers[rows, columns] == number
        scores = np.where(inside, heatmap[rows, columns], -np.inf)
        y, x = np.unravel_index(int(scores.argmax()), scores.shape)
        regions.append(
            Region(
                x=columns.start,
                y=rows.start,
                width=columns.stop - columns.start,
                height=rows.stop - rows.start,
                area=int(inside.sum()),
                peak=float(scores[y, x]),
                peak_x=columns.start + int(x),
                peak_y=rows.start + int(y),
            )
        )
    return sorted(regions, key=lambda region: (-region.peak, region.y, region.x))
