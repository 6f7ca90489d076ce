"""Grids of what PIRN saw and said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from pirn.detector import PIRNDetector
from pirn.experiment import Seen
from protoad.data import write_rgb
from protoad.detection import Detector
from protoad.viz import GridRow, sample_grid

__all__ = ["Gallery", "Highlight", "highlight", "to_picture", "write_grid", "write_overview"]

_COLUMNS = {"rgb_map": "rgb", "normals_map": "normals", "fused_map": "fused"}


class Gallery:
    """Keeps the first test part of each kind of defect, and the first good one, as they pass an evaluation."""

    def __init__(self) -> None:
        self.first: dict[str, Seen] = {}

    def __call__(self, seen: Seen) -> None:
        """Looks at a part; this is what `evaluate` calls."""
        self.first.setdefault(seen.defect, seen)


def write_grid(path: Path, detector: Detector | PIRNDetector, gallery: Gallery) -> None:
    """Writes a grid: a row per part, from each kind of defect and from the good ones, heatmaps on the global scale.

    Args:
        path: of the PNG.
        detector: whose scale the heatmaps are drawn on.
        gallery: that observed the evaluation.
    """
    parts = list(gallery.first.values())
    rows = [_row(f"{seen.defect} {float(seen.prediction.score):.1f}", seen) for seen in parts]
    present = [column for column, name in _COLUMNS.items() if name in parts[0].prediction.maps]
    limits = {column: detector.heatmap_range(_COLUMNS[column]) for column in present}
    write_rgb(path, sample_grid(rows, columns=["rgb", "normals", *present, "mask"], limits=limits))


class Highlight(NamedTuple):
    """One defective part for the overview: its row, and the scale of each of its heatmaps."""

    row: GridRow
    limits: dict[str, tuple[float, float]]


def highlight(detector: Detector, gallery: Gallery, *, defect: str) -> Highlight:
    """Gives the first part with a kind of defect as a row of the overview."""
    seen = gallery.first[defect]
    limits = {column: detector.heatmap_range(name) for column, name in _COLUMNS.items() if name in seen.prediction.maps}
    return Highlight(_row(defect, seen), limits)


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


def _row(label: str, seen: Seen) -> GridRow:
    part, heatmaps = seen.part, seen.prediction.maps
    maps: dict[str, Any] = {column: heatmaps[name][0].numpy() for column, name in _COLUMNS.items() if name in heatmaps}
    return GridRow(
        label=label, rgb=to_picture(part.rgb), normals=to_picture(part.normals), mask=part.mask.numpy(), **maps
    )


def to_picture(image: Tensor) -> np.ndarray:
    """(3 y x) in [0, 1] -> (y x 3) uint8."""
    return np.rint(255 * image.clamp(0, 1).permute(1, 2, 0).numpy()).astype(np.uint8)
