"""One part at a time: what its images say, whether it is rejected, and where."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from pirn.conditions import NO_DEPTH, Condition, condition_of
from pirn.detector import PIRNDetector, find_checkpoint, load_members
from pirn.pictures import to_picture
from protoad.calibration import Verdict
from protoad.data import EmptyCloudError, Prepared, Sample, SquareMap, prepare, prepare_colour
from protoad.detection import Prediction
from protoad.encoders import FeatureCache
from protoad.errors import DataError
from protoad.regions import Region, find_regions
from protoad.scoring import FUSED

__all__ = ["Inspection", "Inspector"]


@dataclass(frozen=True, eq=False)
class Inspection:
    """What an inspector says of one part; positions and sizes are pixels of the frame as the camera took it.

    Attributes:
        name: of the part.
        score: larger is more anomalous.
        verdict: p-value and decision; None for a detector that was not calibrated for the condition.
        condition: what of the part could be looked at.
        lost: share of the part without depth, 0 for parts with no more holes than the shots; 1 without any.
        maps: "rgb", "normals" and "fused", those there are -> (y x) float32 heatmap.
        regions: spots above the threshold, the worst first; above the worst spot of any shot where there is none.
        peaks: modality -> largest score of its own heatmap.
        note: what was missing, in words; empty for a part that came with everything.
        picture: (y x 3) uint8, what heatmaps are drawn on: the image, or the normals in colours.
        seconds: it took.
    """

    name: str
    score: float
    verdict: Verdict | None
    condition: Condition
    lost: float
    maps: dict[str, np.ndarray]
    regions: list[Region]
    peaks: dict[str, float]
    note: str
    picture: np.ndarray
    seconds: float


class Inspector:
    """A detector ready to look at parts: nothing of one part is kept for the next.

    Without an image, or with some or all of its depth missing, a part is judged by what there is, against good parts
    that lacked the same.

    Args:
        pirn: a trained detector; calibrated, or there is no decision.
        members: those of a cross calibration.

    Examples:
        inspector = Inspector.load("runs/cookie")
        found = inspector(rgb, xyz)                  # (y x 3) uint8, and (y x 3) metres, NaN or 0 where invalid
        found.score, found.verdict.reject, found.regions
    """

    def __init__(self, pirn: PIRNDetector, members: Sequence[PIRNDetector] = ()) -> None:
        self.pirn, self.members = pirn, list(members)

    @classmethod
    def load(cls, folder: str | Path, *, category: str | None = None, weights: str | None = None) -> Inspector:
        """Reads what `pirn train` wrote.

        Args:
            folder: with the checkpoint, or above several.
            category: which of several.
            weights: weight file of the encoder, if it has moved since.

        Raises:
            CheckpointError: if there is none, or it is damaged.
            ConfigError: if there are several and none was chosen.
        """
        found = find_checkpoint(folder, category)
        pirn = PIRNDetector.load(found, weights=weights)
        return cls(pirn, load_members(found, pirn, weights=weights))

    def to(self, device: torch.device | str) -> Inspector:
        """Moves everything to a device; what it gives is on the CPU."""
        for detector in (self.pirn, *self.members):
            detector.to(device)
        return self

    def __call__(
        self, rgb: np.ndarray | None = None, xyz: np.ndarray | None = None, *, name: str = "part"
    ) -> Inspection:
        """Inspects a part.

        Args:
            rgb: (y x 3) uint8; None if there is no image.
            xyz: (y x 3) metres on the same pixels, camera axes x right, y down, z away, (0, 0, 0) or not finite
                where invalid; None if there is no point cloud. One without a valid point counts as none.
            name: of the part, for errors.

        Raises:
            DataError: if an array is of another kind, or what there is of the part is not enough.
        """
        return self._inspect(_as_sample(rgb, xyz, name), rgb)

    def inspect_sample(self, sample: Sample) -> Inspection:
        """Inspects a part as a data set reads it, with the normals it may bring; its mask and label do not matter."""
        return self._inspect(sample, sample.rgb)

    def _inspect(self, sample: Sample, rgb: np.ndarray | None) -> Inspection:
        start, name = time.perf_counter(), sample.name
        part, condition, lost = self._look(rgb, sample, name)
        prediction, verdict = self._judge(part, condition)
        for detector in (self.pirn, *self.members):
            detector.extractor.cache = FeatureCache()  # a part is looked at once: its features need no keeping
        height, width = sample.mask.shape
        frame = SquareMap(height, width, self.pirn.config.image_size)
        return Inspection(
            name=name,
            score=float(prediction.score[0]),
            verdict=verdict,
            condition=condition,
            lost=lost,
            maps={m: frame.restore(heatmap[0]).numpy() for m, heatmap in prediction.maps.items()},
            regions=self._regions(prediction, condition, verdict, frame),
            peaks={m: float(prediction.maps[m].max()) for m in condition.modalities},
            note=_note(self.pirn.config.modalities, condition, lost),
            picture=_picture(part, frame) if rgb is None else rgb,
            seconds=time.perf_counter() - start,
        )

    def _look(self, rgb: np.ndarray | None, sample: Sample, name: str) -> tuple[Prepared, Condition, float]:
        """The part prepared by what there is of it, the condition it comes under, and how much depth it lacks."""
        config, extractor = self.pirn.config, self.pirn.extractor
        there = [m for m in config.modalities if m != "rgb" or rgb is not None]
        part = by_colour = prepare_colour(sample.rgb, config.image_size)
        lost = NO_DEPTH
        if there:
            with contextlib.suppress(EmptyCloudError):
                seen = prepare(sample, **asdict(config.preparation(self.pirn.category)))
                part, lost = seen, float(extractor([seen], there).lost[0])
        condition = condition_of(config, name, colour=rgb is not None, lost=lost)
        return by_colour if condition.lost == NO_DEPTH else part, condition, lost

    def _judge(self, part: Prepared, condition: Condition) -> tuple[Prediction, Verdict | None]:
        """Score and maps, and the verdict if the detector is calibrated for the condition."""
        pirn = self.pirn
        prediction = pirn.detector(pirn.extractor([part], condition.modalities)).cpu()
        calibration = pirn.calibrations.get(condition.name)
        if calibration is None:
            return prediction, None
        judges = self.members if calibration.method == "cross" else []
        others = [float(m.detector(m.extractor([part], condition.modalities)).score[0]) for m in judges]
        return prediction, calibration(others or float(prediction.score[0]))

    def _regions(
        self, prediction: Prediction, condition: Condition, verdict: Verdict | None, frame: SquareMap
    ) -> list[Region]:
        """Spots above the threshold, found on the square map whose maximum is the score, laid over the frame."""
        typical, top = self.pirn.detector.heatmap_range()
        threshold = (typical + top) / 2  # the worst spot of any shot
        if verdict is not None:
            threshold = self.pirn.calibrations[condition.name].threshold
            score = float(prediction.score[0])
            if verdict.reject and score <= threshold:  # by the others of a cross calibration: halfway up the peak
                threshold = (typical + score) / 2
        inside = frame.nearest(np.ones((frame.height, frame.width), dtype=bool))
        heatmap = np.where(inside, prediction.maps[FUSED][0].numpy(), min(threshold, typical))
        return [_on_frame(region, frame) for region in find_regions(heatmap, threshold)]


def _note(wanted: Sequence[str], condition: Condition, lost: float) -> str:
    missing = ["no image"] if "rgb" in wanted and "rgb" not in condition.modalities else []
    if lost == NO_DEPTH:
        missing.append("no depth")
    elif lost:
        missing.append(f"{lost:.0%} of the part without depth")
    alone = ", judged by its image alone" if condition.lost == NO_DEPTH else ""
    return " and ".join(missing) + alone


def _as_sample(rgb: np.ndarray | None, xyz: np.ndarray | None, name: str) -> Sample:
    """What there is, checked; black where there is no image, NaN where there is no point."""
    shape = next((np.shape(array) for array in (rgb, xyz) if array is not None), None)
    if shape is None:
        raise DataError(f"{name}: neither an image nor a point cloud; give at least one of them")
    if rgb is None:
        rgb = np.zeros(shape, dtype=np.uint8)
    points = np.full(shape, np.nan, dtype=np.float32)
    if xyz is not None:
        points = np.array(xyz, dtype=np.float32)
        points[~np.isfinite(points).all(axis=-1) | (points == 0).all(axis=-1)] = np.nan
    return Sample(rgb=rgb, xyz=points, mask=np.zeros(rgb.shape[:2], dtype=bool), label=0, defect="good", name=name)


def _on_frame(region: Region, frame: SquareMap) -> Region:
    """A region of the square in pixels of the frame, cut where the frame ends."""
    limits = np.array([frame.height, frame.width])
    corners = np.array([[region.y, region.x], [region.y + region.height, region.x + region.width]])
    top_left, bottom_right = frame.to_source(corners)
    y, x = np.clip(np.floor(top_left), 0, limits).astype(int).tolist()
    bottom, right = np.clip(np.ceil(bottom_right), 0, limits).astype(int).tolist()
    peak = frame.to_source(np.array([region.peak_y, region.peak_x]) + 0.5)
    peak_y, peak_x = np.clip(np.floor(peak), 0, limits - 1).astype(int).tolist()
    area = max(1, round(region.area * (frame.side / frame.size) ** 2))
    return Region(x, y, right - x, bottom - y, area, region.peak, peak_x, peak_y)


def _picture(part: Prepared, frame: SquareMap) -> np.ndarray:
    """The normals in colours, at the size of the frame, for parts without an image."""
    return to_picture(frame.restore(part.normals))
