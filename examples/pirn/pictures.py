"""Grids of what PIRN saw and said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pirn.experiment import EvaluationSet
from protoad.data import Prepared, write_rgb
from protoad.detection import Detector, Prediction
from protoad.viz import GridRow, sample_grid

__all__ = ["Highlight", "highlight", "to_picture", "write_grid", "write_overview"]

_COLUMNS = {"rgb_map": "rgb", "normals_map": "normals", "fused_map": "fused"}


def write_grid(
    path: Path, detector: Detector, test: EvaluationSet, prediction: Prediction, *, per_defect: int = 1
) -> None:
    """Writes a grid: a row per part, from each kind of defect and from the good ones, heatmaps on the global scale.

    Args:
        path: of the PNG.
        detector: whose scale the heatmaps are drawn on.
        test: the parts.
        prediction: for them.
        per_defect: rows for each kind of defect, the first ones of the test split.
    """
    chosen = [index for kind in dict.fromkeys(test.defects) for index in _first(test.defects, kind, per_defect)]
    rows = [_row(f"{test.defects[i]} {float(prediction.score[i]):.1f}", test.parts[i], prediction, i) for i in chosen]
    present = [column for column, name in _COLUMNS.items() if name in prediction.maps]
    limits = {column: detector.heatmap_range(_COLUMNS[column]) for column in present}
    write_rgb(path, sample_grid(rows, columns=["rgb", "normals", *present, "mask"], limits=limits))


class Highlight(NamedTuple):
    """One defective part for the overview: its row, and the scale of each of its heatmaps."""

    row: GridRow
    limits: dict[str, tuple[float, float]]


def highlight(detector: Detector, test: EvaluationSet, prediction: Prediction, *, defect: str) -> Highlight:
    """Gives the first part with a kind of defect as a row of the overview."""
    (index,) = _first(test.defects, defect, 1)
    limits = {column: detector.heatmap_range(name) for column, name in _COLUMNS.items() if name in prediction.maps}
    return Highlight(_row(defect, test.parts[index], prediction, index), limits)


def write_overview(path: Path, highlights: Mapping[str, Highlight]) -> None:
    """Writes a grid of one part per product; a heatmap is scaled to its detector: 0 is a typical good surface, 0.5 the
    worst spot of any good part.

    Args:
        path: of the PNG.
        highlights: product -> its row.
    """
    rows = []
    for name, (row, limits) in highlights.items():
        scaled = {c: (getattr(row, c) - low) / (high - low) for c, (low, high) in limits.items()}
        rows.append(replace(row, label=f"{name}\n{row.label}", **scaled))
    limits = dict.fromkeys(next(iter(highlights.values())).limits, (0.0, 1.0))
    write_rgb(path, sample_grid(rows, columns=["rgb", "normals", *limits, "mask"], limits=limits))


def _first(defects: Sequence[str], kind: str, count: int) -> list[int]:
    return [index for index, defect in enumerate(defects) if defect == kind][:count]


def _row(label: str, part: Prepared, prediction: Prediction, index: int) -> GridRow:
    maps = {
        column: prediction.maps[name][index].numpy() for column, name in _COLUMNS.items() if name in prediction.maps
    }
    return GridRow(
        label=label, rgb=to_picture(part.rgb), normals=to_picture(part.normals), mask=part.mask.numpy(), **maps
    )


def to_picture(image: Tensor) -> np.ndarray:
    """(3 y x) in [0, 1] -> (y x 3) uint8."""
    return np.rint(255 * image.clamp(0, 1).permute(1, 2, 0).numpy()).astype(np.uint8)
