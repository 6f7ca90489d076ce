"""Thresholds for a trained detector from good parts alone, one for each condition a part may come under."""

from __future__ import annotations

from pathlib import Path

from pirn.conditions import Condition, conditions, imitate
from pirn.detector import PIRNDetector
from pirn.experiment import find_shots, open_split, prepared_parts
from protoad.calibration import Method, calibrate
from protoad.data import Dataset, MissingSplitError, PreparedSet, random_copies
from protoad.encoders import FeatureCache
from protoad.errors import DataError

__all__ = ["calibrate_category", "cross_calibrate_category", "held_out"]

_Scores = dict[Condition, list[float]]


def calibrate_category(
    pirn: PIRNDetector, root: str | Path, false_reject_rate: float, *, force: bool
) -> tuple[list[str], list[PIRNDetector]]:
    """Calibrates a detector on all good parts it has not learnt from (split conformal).

    These are the good parts of the validation split, and of the training split those that were no shots. They are
    scored as they are, and as they would come under each other condition. Which holes a shiny surface tears is not
    known: of the kinds imitated, the higher score counts. A prepared cache knows no holes but its own: from one,
    these conditions are left out.

    Args:
        pirn: a trained detector; gets its `calibrations`.
        root: folder that holds the categories, or a cache.
        false_reject_rate: share of good parts that may be rejected.
        force: whether to go on with too few parts.

    Returns:
        Names of the parts used, and no further detectors.

    Raises:
        DataError: for missing or damaged data.
        CalibrationError: for too few parts for the rate.
    """
    unseen = held_out(pirn, root)
    calibrate([0.0] * len(unseen), false_reject_rate=false_reject_rate, force=force)  # says so at once if too few
    scores: _Scores = {}
    for parts, index in unseen:
        _add_scores(scores, pirn, parts, index)
    _keep(pirn, scores, false_reject_rate, "split", force=force)
    return [parts.names[index] for parts, index in unseen], []


def held_out(pirn: PIRNDetector, root: str | Path) -> list[tuple[Dataset | PreparedSet, int]]:
    """The good parts that are no shots: split and position."""
    found: list[tuple[Dataset | PreparedSet, int]] = []
    for split in ("train", "validation"):
        try:
            parts = open_split(pirn.config, root, pirn.category, split, pirn.source)
        except MissingSplitError:  # not every data set has a validation split
            continue
        labels = zip(parts.names, parts.labels, strict=True)
        found += [(parts, i) for i, (name, label) in enumerate(labels) if label == 0 and name not in pirn.shots]
    if not found:
        raise DataError(
            f"{root}: holds no good part of {pirn.category} beyond the shots; add some to train or validation, or "
            "calibrate by leaving out one shot after the other with --method cross"
        )
    return found


def cross_calibrate_category(
    pirn: PIRNDetector, root: str | Path, false_reject_rate: float, *, force: bool
) -> tuple[list[str], list[PIRNDetector]]:
    """Calibrates a detector on its own shots: each is scored by a detector that learnt from the others only.

    For where there are no good parts to hold out. A new part has to be scored by all of these detectors, and the
    promise is weaker: twice the rate.

    Args:
        pirn: a trained detector; gets its `calibrations`.
        root: folder that holds the categories, or a cache.
        false_reject_rate: share of good parts that may be rejected, half of what is promised.
        force: whether to go on with too few shots.

    Returns:
        Names of the shots, and the detectors in the same order; detector i has not seen shot i.

    Raises:
        DataError: for missing or damaged data, or fewer than three shots.
        CalibrationError: for too few shots for the rate.
    """
    calibrate([0.0] * len(pirn.shots), false_reject_rate=false_reject_rate, method="cross", force=force)
    if len(pirn.shots) < 3:
        raise DataError(f"{pirn.category}: {len(pirn.shots)} shots are too few to leave one out; give three or more")
    train_set = open_split(pirn.config, root, pirn.category, "train", pirn.source)
    indices = find_shots(pirn, train_set)
    shots = list(prepared_parts(train_set, indices, pirn.config))
    scores: _Scores = {}
    members = []
    for left_out, index in enumerate(indices):
        others = [i for i in range(len(shots)) if i != left_out]
        member = PIRNDetector(
            pirn.config, category=pirn.category, source=pirn.source, unit=pirn.unit, camera=pirn.camera
        )
        member.to(pirn.extractor.device)
        parts = [shots[i] for i in others]
        copies = random_copies(parts, pirn.config.augment, seed=pirn.config.seed)
        member.fit(parts, [pirn.shots[i] for i in others], copies=copies)
        _add_scores(scores, member, train_set, index)
        members.append(member)
    _keep(pirn, scores, false_reject_rate, "cross", force=force)
    return pirn.shots, members


def _keep(pirn: PIRNDetector, scores: _Scores, rate: float, method: Method, *, force: bool) -> None:
    calibrated = {
        condition.name: calibrate(values, false_reject_rate=rate, method=method, force=force)
        for condition, values in scores.items()
    }
    pirn.calibrations = calibrated


def _add_scores(scores: _Scores, pirn: PIRNDetector, parts: Dataset | PreparedSet, index: int) -> None:
    """Adds the scores of one good part under every condition."""
    part = parts[index]
    pirn.extractor.cache = FeatureCache(
        pirn.extractor.cache.folder
    )  # shared by the conditions, and no longer than for one part
    by_loss: dict[float, list[Condition]] = {}
    for condition in conditions(pirn.config):
        by_loss.setdefault(condition.lost, []).append(condition)
    for lost, similar in by_loss.items():
        imitations = imitate(part, lost, pirn.config.preparation(pirn.category), seed=index)
        for condition in similar if imitations else []:
            features = pirn.extractor(imitations, condition.modalities)
            if condition == Condition(condition.modalities) and features.lost is not None and features.lost.any():
                continue  # with more holes than the shots had, it does not come under the usual condition
            scores.setdefault(condition, []).append(float(pirn.detector(features).score.max()))
