"""A report of inspected parts as one HTML file, for any detector.

The file holds everything it shows: it opens offline in any browser, can be printed or attached to an e-mail, and asks
no network for anything. Parts can be sorted, filtered and enlarged; without JavaScript they stand from the highest
score down.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protoad._atomic import write_atomically
from protoad._lazy import require
from protoad._report_page import Part, Picture, page
from protoad._svg import curve_chart
from protoad.errors import DataError, ShapeError

__all__ = ["Curve", "HTMLReport"]

_LARGEST = 1e300  # so that the difference of two scores is a number as well


@dataclass(frozen=True)
class Curve:
    """A curve of rates, such as ROC or PRO, drawn as given.

    Args:
        title: heading of the chart.
        x: (m) in [0, 1], never falling.
        y: (m) in [0, 1].
        x_label: what x measures.
        y_label: what y measures.
        area: shown beside the title; None or NaN leaves it out.
        x_limit: where the axis ends, in (0, 1]: 0.3 for the stretch of a PRO curve that AUPRO is the area of.
        point: (x, y) that the threshold leads to.

    Raises:
        ShapeError: if x and y are not of one length, 2 or more.
        DataError: if a rate is outside [0, 1] or NaN, or x falls.
    """

    title: str
    x: np.ndarray
    y: np.ndarray
    x_label: str = "false-positive rate"
    y_label: str = "true-positive rate"
    area: float | None = None
    x_limit: float = 1.0
    point: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        x, y = np.asarray(self.x, dtype=np.float64), np.asarray(self.y, dtype=np.float64)
        if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
            raise ShapeError(
                f"{self.title}: expected x and y of one length (m), 2 or more, got {x.shape} and {y.shape}"
            )
        for name, rates in {"x": x, "y": y, "point": np.asarray(self.point or (0, 0))}.items():
            bad = rates[~((rates >= 0) & (rates <= 1))]
            if bad.size:
                raise DataError(f"{self.title}: {name}: expected rates in [0, 1], got {bad[0]}")
        if (np.diff(x) < 0).any():
            raise DataError(f"{self.title}: x: expected rates that never fall; sort the points by x")
        if not 0 < self.x_limit <= 1:
            raise DataError(f"{self.title}: x_limit: expected a rate above 0 and at most 1, got {self.x_limit}")
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)


class HTMLReport:
    """Takes in parts one by one, keeps no more of their pictures than thumbnails, and writes one HTML file.

    The same input gives the same bytes under one version of Pillow. So there is no clock: a date, like the version of
    the detector, belongs to the facts.

    Args:
        title: heading.
        facts: what is known of detector and run, shown as given: {"category": "bolt", "shots": "10", ...}.
        threshold: a part with a score above it is rejected. Infinity rejects none; None decides nothing.
        other_thresholds: further lines in the histogram, by name; they decide nothing.
        picture_size: longest side of the pictures in the file, pixels; larger ones are reduced.
        quality: of JPEG, 1 to 95. Pictures of few colours, such as masks, become PNG where that is smaller.

    Raises:
        DataError: if a threshold is NaN or minus infinity.

    Examples:
        >>> report = HTMLReport("Bolts", facts={"shots": "10"}, threshold=1.0)
        >>> report.add_part("000", 1.7, pictures={"colour": np.zeros((64, 64, 3), np.uint8)})
        >>> report.write("bolts.html")  # doctest: +SKIP
    """

    def __init__(
        self,
        title: str,
        *,
        facts: Mapping[str, str] | None = None,
        threshold: float | None = None,
        other_thresholds: Mapping[str, float] | None = None,
        picture_size: int = 224,
        quality: int = 80,
    ) -> None:
        self.title, self.facts = title, dict(facts or {})
        self.threshold, self.other_thresholds = threshold, dict(other_thresholds or {})
        for name, value in {"threshold": threshold, **self.other_thresholds}.items():
            if value is not None and not (abs(value) <= _LARGEST or value == math.inf):
                raise DataError(f"{name}: expected a number, or infinity to reject nothing, got {value}")
        self.picture_size, self.quality = picture_size, quality
        self._parts: list[Part] = []

    def add_part(
        self,
        name: str,
        score: float,
        *,
        pictures: Mapping[str, np.ndarray],
        label: int | None = None,
        defect: str | None = None,
        p_value: float | None = None,
        reject: bool | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        """Takes in one part; its pictures are reduced and encoded at once.

        Args:
            name: of the part.
            score: larger is more anomalous.
            pictures: title -> (y x 3) uint8, in the order to show: colour, normals, heatmaps. May be empty.
            label: 1 or True for a defective part, 0 or False for a good one, None if nobody knows.
            defect: kind of a defective part; not looked at for others.
            p_value: in [0, 1].
            reject: the decision; None: whether the score is above the report's threshold, if it has one.
            details: heading -> number or text, in columns of their own.

        Raises:
            DataError: if the score is NaN, infinite or beyond 1e300, label or p-value are none, or a picture is not
                uint8.
            ShapeError: if a picture is not (y x 3).
            MissingExtraError: if Pillow is not installed.
        """
        score = float(score)
        if not abs(score) <= _LARGEST:
            raise DataError(f"score of {name!r}: expected a finite number, got {score}")
        if label is not None and label not in (0, 1):
            raise DataError(f"label of {name!r}: expected 0 (good), 1 (defective) or None, got {label!r}")
        if p_value is not None and not 0 <= p_value <= 1:
            raise DataError(f"p-value of {name!r}: expected a number in [0, 1], got {p_value}")
        if reject is None and self.threshold is not None:
            reject = score > self.threshold
        self._parts.append(
            Part(
                name=name,
                score=score,
                defective=None if label is None else bool(label),
                defect=defect or "defective",
                p_value=None if p_value is None else float(p_value),
                rejected=None if reject is None else bool(reject),
                details=dict(details or {}),
                pictures=[self._encode(name, title, image) for title, image in pictures.items()],
            )
        )

    def write(
        self,
        path: str | os.PathLike[str],
        *,
        metrics: Mapping[str, Mapping[str, float]] | None = None,
        curves: Sequence[Curve] = (),
    ) -> None:
        """Writes the file; it appears whole or not at all.

        Args:
            path: of the HTML file; its folder is made if missing.
            metrics: method -> name of a metric -> number, a table; NaN shows as "-".
            curves: charts beside the histogram of the scores.

        Raises:
            DataError: if the file can't be written.
        """
        thresholds = {"threshold": self.threshold, **self.other_thresholds}
        known = {name: value for name, value in thresholds.items() if value is not None}
        charts = [_drawn(curve) for curve in curves]

        def write_pieces(temporary: Path) -> None:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                file.writelines(page(self.title, self.facts, self._parts, known, metrics or {}, charts))

        write_atomically(path, write_pieces)

    def _encode(self, name: str, title: str, image: np.ndarray) -> Picture:
        """A thumbnail as a data URI, in the format that takes less room."""
        if image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ShapeError(f"{title} of {name!r}: expected a picture (y x 3), got {image.shape}")
        if image.dtype != np.uint8:
            raise DataError(f"{title} of {name!r}: expected a picture of uint8, got {image.dtype}")
        small = require("PIL.Image", extra="data").fromarray(np.ascontiguousarray(image))
        small.thumbnail((self.picture_size, self.picture_size))
        jpeg, png = io.BytesIO(), io.BytesIO()
        small.save(jpeg, "JPEG", quality=self.quality)
        if (
            small.getcolors() is not None
        ):  # 256 or fewer: as PNG perhaps smaller, and sharp; of photos that is never true
            small.save(png, "PNG")
        use_png = 0 < png.tell() < jpeg.tell()
        data = base64.b64encode((png if use_png else jpeg).getvalue()).decode("ascii")
        return Picture(title, f"data:image/{'png' if use_png else 'jpeg'};base64,{data}", small.width, small.height)


def _drawn(curve: Curve) -> tuple[str, str]:
    """Caption and SVG."""
    area = "" if curve.area is None or math.isnan(curve.area) else f" (area {curve.area:.3f})"
    svg = curve_chart(
        curve.x,
        curve.y,
        title=curve.title,
        x_label=curve.x_label,
        y_label=curve.y_label,
        x_limit=curve.x_limit,
        point=curve.point,
    )
    return curve.title + area, svg
