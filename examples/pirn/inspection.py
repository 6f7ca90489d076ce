"""Scores, tables and overlays for parts nobody has labelled."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch.nn.functional import interpolate

from pirn.detector import PIRNDetector
from pirn.pictures import to_picture
from protoad.data import Prepared, Sample, prepare, write_rgb
from protoad.detection import Prediction
from protoad.encoders import FeatureCache
from protoad.report import write_csv, write_json
from protoad.viz import heatmap_overlay, with_color_bar

__all__ = ["inspect_parts"]

_OVERLAY_SIZE = 448  # pixels


def inspect_parts(pirn: PIRNDetector, parts: Iterable[tuple[str, Sample]], out: Path) -> list[dict[str, object]]:
    """Writes scores.csv, scores.json and overlays/NAME.png, and prints a line per part.

    All overlays share the detector's one scale, so a part's colours do not depend on what else is in the folder.
    A broken file ends in its error, and nothing is written.

    Args:
        pirn: a trained detector.
        parts: (name, sample), taken one at a time.
        out: folder to write.

    Returns:
        One row per part: name and scores.
    """
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as staging:
        for name, sample in parts:
            prepared = prepare(sample, **asdict(pirn.config.preparation(pirn.category)))
            pirn.extractor.cache = FeatureCache()  # a part is looked at once: its features need no keeping
            prediction = pirn.detector(pirn.extractor([prepared])).cpu()
            write_rgb(Path(staging) / f"{name}.png", _overlay(pirn, prepared, prediction))
            rows.append({"name": name, **_figures(pirn, prediction)})
            print(f"{name}: {_in_words(rows[-1])}")
        # Moved when all parts are through: a broken file among them leaves nothing half done.
        (out / "overlays").mkdir(parents=True, exist_ok=True)
        for overlay in sorted(Path(staging).iterdir()):
            shutil.move(overlay, out / "overlays" / overlay.name)
    write_csv(out / "scores.csv", rows)
    write_json(out / "scores.json", {"category": pirn.category, "image_size": pirn.config.image_size, "parts": rows})
    return rows


def _in_words(row: Mapping[str, object]) -> str:
    text = f"score {row['score']:.2f}"
    if "reject" in row:
        text += f", p-value {row['p_value']:.3g}, {'REJECT' if row['reject'] else 'accept'}"
    return text


def _figures(pirn: PIRNDetector, prediction: Prediction) -> dict[str, float]:
    """Scores of the part and of each branch, and where the heatmap peaks, pixels of the square image."""
    peak_y, peak_x = divmod(int(prediction.maps["fused"][0].argmax()), pirn.config.image_size)
    branches = {f"score_{m}": float(prediction.maps[m].max()) for m in pirn.config.modalities}
    score = float(prediction.score[0])
    calibration = pirn.calibrations.get("+".join(pirn.config.modalities))
    verdict = {} if calibration is None else asdict(calibration(score))
    return {"score": score, **verdict, **branches, "peak_x": peak_x, "peak_y": peak_y}


def _overlay(pirn: PIRNDetector, part: Prepared, prediction: Prediction) -> np.ndarray:
    """The picture with its heatmap and a colour bar, enlarged to be seen."""
    size = max(_OVERLAY_SIZE, pirn.config.image_size)
    rgb = interpolate(part.rgb[None], size=(size, size), mode="bicubic").clamp(0, 1)[0]
    heatmap = interpolate(prediction.maps["fused"][None, :1], size=(size, size), mode="bilinear")[0, 0]
    low, high = pirn.detector.heatmap_range()
    overlay = heatmap_overlay(to_picture(rgb), heatmap.numpy(), vmin=low, vmax=high)
    return with_color_bar(overlay, vmin=low, vmax=high)
