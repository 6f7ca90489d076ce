"""What an inspector said, as overlays, table rows and lines of text."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import from_numpy
from torch.nn.functional import interpolate

from pirn.inspector import Inspection, Inspector
from pirn.pictures import to_picture
from protoad.data import PartFiles, Sample, read_part, write_rgb
from protoad.errors import DataError
from protoad.report import write_csv, write_jsonl
from protoad.scoring import FUSED
from protoad.viz import heatmap_overlay, with_boxes, with_color_bar

__all__ = ["PartSource", "in_cells", "in_words", "inspect_parts", "marked", "overlay", "read_and_inspect", "row"]

_OVERLAY_SIZE = 448  # pixels; smaller frames are enlarged to be seen

PartSource = PartFiles | Sample


def read_and_inspect(inspector: Inspector, name: str, part: PartSource) -> Inspection:
    """Inspects a part from its files, or from a sample of a data set.

    Raises:
        DataError: if a file is damaged, or there is not enough of the part.
    """
    if isinstance(part, Sample):
        return replace(inspector.inspect_sample(part), name=name)
    pirn = inspector.pirn
    return inspector(*read_part(part, unit=pirn.unit, camera=pirn.camera), name=name)


def inspect_parts(
    inspector: Inspector,
    parts: Iterable[tuple[str, PartSource]],
    out: Path,
    observe: Callable[[Inspection], object] = lambda found: None,
) -> list[dict[str, Any]]:
    """Writes scores.csv, scores.jsonl and overlays/NAME.png, and prints a line per part.

    All overlays share the detector's one scale, so a part's colours do not depend on what else is in the folder.
    A broken file ends in its error, and nothing is written.

    Args:
        inspector: to ask.
        parts: (name, part), taken one at a time.
        out: folder to write.
        observe: gets every inspection as it passes.

    Returns:
        A row per part, see `row`.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as staging:
        for name, part in parts:
            found = read_and_inspect(inspector, name, part)
            write_rgb(Path(staging) / f"{name}.png", overlay(inspector, found))
            rows.append(row(found))
            observe(found)
            print(in_words(found), flush=True)
        # Moved when all parts are through: a broken file among them leaves nothing half done.
        try:
            (out / "overlays").mkdir(parents=True, exist_ok=True)
            for path in sorted(Path(staging).iterdir()):
                shutil.move(path, out / "overlays" / path.name)
        except OSError as error:
            raise DataError(f"{out / 'overlays'}: cannot be written ({error.strerror}); choose another --out") from None
    write_csv(out / "scores.csv", [in_cells(one) for one in rows])
    write_jsonl(out / "scores.jsonl", rows)
    return rows


def row(found: Inspection) -> dict[str, Any]:
    """What there is to keep of an inspection: plain data, the same for the same part. Pixels are those of the frame."""
    verdict = {"p_value": None, "reject": None} if found.verdict is None else asdict(found.verdict)
    peak_y, peak_x = np.unravel_index(int(found.maps[FUSED].argmax()), found.maps[FUSED].shape)
    return {
        "name": found.name,
        "score": found.score,
        **verdict,
        "condition": found.condition.name,
        "depth_lost": found.lost,
        **{f"score_{modality}": found.peaks.get(modality) for modality in ("rgb", "normals")},
        "peak_x": int(peak_x),
        "peak_y": int(peak_y),
        "regions": [region._asdict() for region in found.regions],
    }


def in_cells(one: dict[str, Any]) -> dict[str, Any]:
    """A row for a table: regions as their number, nothing where nothing is known."""
    return {
        name: len(value) if name == "regions" else math.nan if value is None else value for name, value in one.items()
    }


def in_words(found: Inspection) -> str:
    """One line for who watches."""
    text = f"{found.name}: score {found.score:.2f}"
    if found.verdict is not None:
        decision = "REJECT" if found.verdict.reject else "accept"
        text += f", p-value {found.verdict.p_value:.3g}, {decision}"
    if found.verdict is not None and found.verdict.reject and found.regions:
        worst = found.regions[0]
        text += f", worst at x {worst.peak_x}, y {worst.peak_y}"
    return f"{text} ({found.note})" if found.note else text


def marked(inspector: Inspector, found: Inspection) -> np.ndarray:
    """The frame with its heatmap and boxes around the regions, enlarged to be seen, (y x 3) uint8."""
    low, high = inspector.pirn.heatmap_range()
    height, width = found.picture.shape[:2]
    scale = max(1.0, _OVERLAY_SIZE / max(height, width))
    size = (round(height * scale), round(width * scale))
    picture = interpolate(from_numpy(found.picture).permute(2, 0, 1)[None].float(), size=size, mode="bicubic")
    heatmap = interpolate(from_numpy(found.maps[FUSED])[None, None], size=size, mode="bilinear")[0, 0].numpy()
    shown = heatmap_overlay(to_picture(picture[0] / 255), heatmap, vmin=low, vmax=high)
    return with_boxes(shown, [(r.x * scale, r.y * scale, r.width * scale, r.height * scale) for r in found.regions])


def overlay(inspector: Inspector, found: Inspection) -> np.ndarray:
    """The same with a colour bar."""
    low, high = inspector.pirn.heatmap_range()
    return with_color_bar(marked(inspector, found), vmin=low, vmax=high)
