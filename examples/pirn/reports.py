"""HTML reports of what `pirn detect` and `pirn evaluate` have seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

import protoad
from pirn.detector import PIRNDetector
from pirn.experiment import Seen
from pirn.inspection import marked
from pirn.inspector import Inspection, Inspector
from pirn.pictures import to_picture
from protoad.calibration import Calibration
from protoad.html_report import Curve, HTMLReport
from protoad.metrics import DetectionMetrics, MetricsAccumulator, roc_curve
from protoad.scoring import FUSED
from protoad.viz import foreground_overlay, heatmap_overlay

__all__ = ["DetectionReport", "EvaluationReport"]

_MAX_POINTS = 400  # of a curve; no eye sees more
_PRO_LIMIT = 0.3
_METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO", "f1_max": "F1-max"}


class DetectionReport:
    """Parts that nobody labelled, as an inspector judged them, in the order of their scores.

    Args:
        inspector: that judges.
    """

    def __init__(self, inspector: Inspector) -> None:
        self.inspector = inspector
        # a line that decides nothing: parts of other conditions have thresholds of their own
        self._report = _report(inspector.pirn, f"{inspector.pirn.category}: inspected parts", decides=False)

    def add(self, found: Inspection) -> None:
        """Takes in a part."""
        low, high = self.inspector.pirn.heatmap_range()
        pictures = {"part": found.picture, "where": marked(self.inspector, found)}
        for modality in found.condition.modalities:
            heatmap = found.maps[modality]
            pictures[f"by {modality}"] = heatmap_overlay(found.picture, heatmap, vmin=low, vmax=high)
        verdict = found.verdict
        self._report.add_part(
            found.name,
            found.score,
            pictures=pictures,
            p_value=None if verdict is None else verdict.p_value,
            reject=None if verdict is None else verdict.reject,
            details={"condition": found.condition.name, "regions": len(found.regions)},
        )

    def write(self, path: Path) -> None:
        """Writes the file."""
        self._report.write(path)


class EvaluationReport:
    """Labelled test parts as they pass an evaluation; this is what `evaluate` calls.

    Args:
        pirn: the detector that is evaluated.
    """

    def __init__(self, pirn: PIRNDetector) -> None:
        self.pirn = pirn
        calibration = _usual(pirn)
        # a cross calibration asks other detectors, which are not evaluated
        decides = calibration is not None and calibration.method == "split"
        self._report = _report(pirn, f"{pirn.category}: test parts", decides=decides)
        self._accumulator = MetricsAccumulator()
        self._scores: list[float] = []
        self._labels: list[int] = []
        self._rejected: dict[bool, list[bool]] = {True: [], False: []}  # by defective

    def __call__(self, seen: Seen) -> None:
        """Takes in a part."""
        maps, mask = seen.prediction.maps[FUSED].numpy(), seen.part.mask[None].numpy()
        self._accumulator.update(seen.prediction.score.numpy(), np.array([seen.label]), maps, mask)
        picture, score = to_picture(seen.part.rgb), float(seen.prediction.score[0])
        pictures = {"colour": picture, "normals": to_picture(seen.part.normals)}
        for name, heatmap in seen.prediction.maps.items():
            if name == FUSED or len(seen.prediction.maps) > 2:  # of one modality, both are the same
                low, high = self.pirn.heatmap_range(name)
                pictures[f"{name} scores"] = heatmap_overlay(picture, heatmap[0].numpy(), vmin=low, vmax=high)
        if seen.label:
            pictures["truth"] = foreground_overlay(picture, seen.part.mask.numpy())
        self._scores.append(score)
        self._labels.append(seen.label)
        calibration = _usual(self.pirn)
        verdict = None if calibration is None or calibration.method == "cross" else calibration(score)
        if verdict is not None:
            self._rejected[bool(seen.label)].append(verdict.reject)
        self._report.add_part(
            seen.name,
            score,
            pictures=pictures,
            label=seen.label,
            defect=seen.defect,
            p_value=None if verdict is None else verdict.p_value,
            reject=None if verdict is None else verdict.reject,
        )

    def write(self, path: Path, metrics: Mapping[str, DetectionMetrics]) -> None:
        """Writes the file.

        Args:
            path: of the file.
            metrics: method -> what it reached.
        """
        reached = metrics[self.pirn.config.detector]
        curves = [self._roc(reached.image_auroc)] if np.isfinite(reached.image_auroc) else []
        if np.isfinite(reached.aupro):
            curves.append(self._pro(reached.aupro))
        table = {
            method: {heading: getattr(values, name) for name, heading in _METRICS.items()}
            for method, values in metrics.items()
        }
        self._report.write(path, metrics=table, curves=curves)

    def _roc(self, area: float) -> Curve:
        roc = roc_curve(np.array(self._scores), np.array(self._labels), max_points=_MAX_POINTS)
        rates = [float(np.mean(self._rejected[kind])) for kind in (False, True) if self._rejected[kind]]
        return Curve(
            "ROC",
            roc.fpr,
            roc.tpr,
            "good parts rejected",
            "defective parts rejected",
            area=area,
            point=(rates[0], rates[1]) if len(rates) == 2 else None,
        )

    def _pro(self, area: float) -> Curve:
        pro = self._accumulator.pro_curve(max_points=_MAX_POINTS)
        return Curve("PRO", pro.fpr, pro.pro, "good surface marked", "defects covered", area=area, x_limit=_PRO_LIMIT)


def _report(pirn: PIRNDetector, title: str, *, decides: bool) -> HTMLReport:
    config, calibration = pirn.config, _usual(pirn)
    facts = {
        "category": pirn.category,
        "shots": str(len(pirn.shots)),
        "encoder": config.encoder,
        "modalities": " and ".join(config.modalities),
        "score": config.score,
        "image size": f"{config.image_size} px",
        "protoad": protoad.__version__,
    }
    if calibration is None:
        return HTMLReport(title, facts={**facts, "threshold": "none; not calibrated"})
    facts["good parts rejected"] = f"at most {calibration.guaranteed_rate:.3g} of them"
    facts["calibrated with"] = f"{len(calibration.scores)} good parts ({calibration.method})"
    if decides:
        return HTMLReport(title, facts=facts, threshold=calibration.threshold)
    return HTMLReport(title, facts=facts, other_thresholds={"threshold": calibration.threshold})


def _usual(pirn: PIRNDetector) -> Calibration | None:
    """Of parts that come with everything."""
    return pirn.calibrations.get("+".join(pirn.config.modalities))
