"""A report of forty made-up parts: `python examples/html_report.py` writes report.html."""

from __future__ import annotations

import numpy as np

from protoad.html_report import Curve, HTMLReport
from protoad.metrics import image_auroc
from protoad.viz import heatmap_overlay

SIZE, THRESHOLD = 160, 3.0


def main() -> None:
    """Writes the report."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    report = HTMLReport(
        "Washers, line 3",
        facts={"detector": "nearest neighbours", "shots": "10", "threshold": f"{THRESHOLD}", "date": "2026-01-15"},
        threshold=THRESHOLD,
    )
    scores, labels = [], []
    for index in range(40):
        defect = ("good", "good", "dent", "scratch")[index % 4]
        radius = np.hypot(y - SIZE / 2, x - SIZE / 2)
        washer = np.where((radius > 25) & (radius < 65), 170, 60)[..., None] + rng.normal(0, 8, (SIZE, SIZE, 3))
        height = rng.uniform(1, 2.6) if defect == "good" else rng.uniform(2, 8)
        at_y, at_x = SIZE / 2 + 45 * np.array([np.sin(index), np.cos(index)])
        heatmap = height * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / 300)
        rgb = np.clip(washer - 12 * heatmap[..., None] * (defect != "good"), 0, 255).astype(np.uint8)
        report.add_part(
            f"{defect}/{index:03}",
            heatmap.max(),
            pictures={"colour": rgb, "scores": heatmap_overlay(rgb, heatmap, vmax=2 * THRESHOLD)},
            label=defect != "good",
            defect=defect,
            details={"peak": f"{at_x:.0f}, {at_y:.0f}"},
        )
        scores.append(heatmap.max())
        labels.append(defect != "good")

    found = np.array(labels)[np.argsort(scores)[::-1]]  # from the highest score down
    rates = [np.insert(np.cumsum(kind) / kind.sum(), 0, 0.0) for kind in (~found, found)]
    report.write("report.html", curves=[Curve("ROC", *rates, area=image_auroc(np.array(scores), np.array(labels)))])


if __name__ == "__main__":
    main()
