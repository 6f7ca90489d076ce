"""Scores, tables and overlays for parts nobody has labelled."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch.nn.functional import interpolate

from pirn.detector import PIRNDetector
from pirn.pictures import to_picture
from protoad.data import Prepared, Sample, prepare, write_rgb
from protoad.detection import Prediction
from protoad.errors import DataError
from protoad.report import write_csv, write_json
from protoad.viz import heatmap_overlay, with_color_bar

__all__ = ["inspect_parts", "read_folder"]

_OVERLAY_SIZE = 448  # pixels


def read_folder(folder: Path) -> list[tuple[str, Path, Path]]:
    """Gives (name, rgb file, xyz file) of the parts in a folder with rgb/ and xyz/, paired by file name.

    Raises:
        DataError: if a folder or a partner is missing, or there is nothing.
    """
    rgb = {path.stem: path for path in sorted((folder / "rgb").glob("*.png"))}
    xyz = {path.stem: path for path in sorted((folder / "xyz").glob("*.tif*"))}
    if not rgb or not xyz:
        raise DataError(f"{folder}: expected parts as rgb/NAME.png and xyz/NAME.tiff, found {len(rgb)} and {len(xyz)}")
    alone = sorted(rgb.keys() ^ xyz.keys())
    if alone:
        raise DataError(f"{folder}: {alone[0]} has only one of rgb/{alone[0]}.png and xyz/{alone[0]}.tiff")
    return [(name, rgb[name], xyz[name]) for name in rgb]


def inspect_parts(pirn: PIRNDetector, parts: Iterable[tuple[str, Sample]], out: Path) -> list[dict[str, object]]:
    """Writes scores.csv, scores.json and overlays/NAME.png, and prints a line per part.

    All overlays share the detector's one scale, so a good part stays dark whatever else is in the folder.
    A broken file ends in its error, and nothing is written.

    Args:
        pirn: a trained detector.
        parts: (name, sample), taken one at a time.
        out: folder to write.

    Returns:
        One row per part: name and scores.
    """
    rows: list[dict[str, object]] = []
    overlays: dict[str, np.ndarray] = {}
    for name, sample in parts:
        prepared = prepare(sample, pirn.config.image_size, foreground=pirn.config.foreground)
        prediction = pirn.detector(pirn.extractor([prepared]))
        peak = int(prediction.maps["fused"][0].argmax())
        row: dict[str, object] = {
            "name": name,
            "score": float(prediction.score[0]),
            **{f"score_{m}": float(prediction.maps[m].max()) for m in pirn.config.modalities},
            "peak_x": peak % pirn.config.image_size,
            "peak_y": peak // pirn.config.image_size,
        }
        overlays[name] = _overlay(pirn, prepared, prediction)
        print(f"{name}: score {row['score']:.2f}")
        rows.append(row)
    # Written when all parts are through: a broken file among them leaves nothing half done.
    for name, overlay in overlays.items():
        write_rgb(out / "overlays" / f"{name}.png", overlay)
    write_csv(out / "scores.csv", rows)
    write_json(out / "scores.json", {"category": pirn.category, "image_size": pirn.config.image_size, "parts": rows})
    return rows


def _overlay(pirn: PIRNDetector, part: Prepared, prediction: Prediction) -> np.ndarray:
    """The picture with its heatmap and a colour bar, enlarged to be seen."""
    size = max(_OVERLAY_SIZE, pirn.config.image_size)
    rgb = interpolate(part.rgb[None], size=(size, size), mode="bicubic").clamp(0, 1)[0]
    heatmap = interpolate(prediction.maps["fused"][None, :1], size=(size, size), mode="bilinear")[0, 0]
    low, high = pirn.detector.heatmap_range()
    overlay = heatmap_overlay(to_picture(rgb), heatmap.numpy(), vmin=low, vmax=high)
    return with_color_bar(overlay, vmin=low, vmax=high)
