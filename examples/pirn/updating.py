"""`pirn update`: teaches a trained detector further good parts, and says what that changed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pirn.calibrating import calibrate_category, held_out
from pirn.detector import PIRNDetector
from pirn.experiment import find_shots, open_split, prepared_parts
from pirn.inspector import Inspector
from pirn.model import PIRN
from protoad.calibration import Calibration, calibrate
from protoad.data import Dataset, PreparedSet, random_copies
from protoad.errors import ConfigError, DataError

__all__ = ["Change", "update_category"]


class Change(NamedTuple):
    """What an update changed.

    Attributes:
        added: names of the new shots.
        forced: those among them that looked anomalous.
        before: calibrations, by condition.
        after: the same, anew.
        moved: mean of |P' - P| / |P| over the prototypes.
    """

    added: list[str]
    forced: list[str]
    before: dict[str, Calibration]
    after: dict[str, Calibration]
    moved: float


def update_category(
    pirn: PIRNDetector, root: str | Path, names: Sequence[str] | None, *, epochs: int, force: bool
) -> Change:
    """Adds good parts of the training split to the shots, trains on for a few epochs, and calibrates anew.

    Encoders keep their statistics: prototypes are only moved, not learnt again. A part that the detector as it is
    rejects is not taken, for what is learnt by mistake is not found any more.

    Args:
        pirn: a trained and calibrated detector; gets changed.
        root: folder that holds the categories, or a cache.
        names: of the new parts, such as "train/good/012"; None takes all of the training split that are no shots, also
            those that the detector is calibrated with.
        epochs: to train on.
        force: whether to take parts that look anomalous, and to go on with too few parts to calibrate with.

    Raises:
        ConfigError: if the detector is no PIRN, not calibrated by parts held out, or epochs is below 1.
        DataError: for unknown names, nothing to add, shots that are gone, parts that look anomalous, or no part left.
        CalibrationError: if too few good parts are left to calibrate with.
    """
    model = pirn.model
    if not isinstance(model, PIRN):
        raise ConfigError(f"detector: {pirn.config.detector} does not learn on from where it is; train it anew instead")
    if epochs < 1:
        raise ConfigError(f"epochs: expected at least 1, got {epochs}")
    before = dict(pirn.calibrations)
    usual = before.get("+".join(pirn.config.modalities))
    if not before or any(calibration.method != "split" for calibration in before.values()):
        raise ConfigError(f"{pirn.category}: not calibrated on parts held out; run pirn calibrate first")
    if usual is not None and not usual.enough and not force:
        raise ConfigError(
            f"{pirn.category}: calibrated with {len(usual.scores)} parts, too few to tell what looks anomalous; "
            "calibrate with more, or add --force"
        )
    train_set = open_split(pirn.config, root, pirn.category, "train", pirn.source)
    added = _new_names(pirn, train_set, names)
    forced = [name for name in added if _looks_anomalous(pirn, train_set, train_set.names.index(name))]
    if forced and not force:
        raise DataError(
            f"{pirn.category}: {', '.join(forced)} would be rejected as they are, and what is learnt is not found any "
            "more; look at them (pirn detect), then leave them out or add --force"
        )
    rate = next(iter(before.values())).false_reject_rate
    left = len(held_out(pirn, root)) - len(added)
    if not left:
        raise DataError(
            f"{pirn.category}: no good part would be left to calibrate with; add fewer, or put some in validation"
        )
    calibrate([0.0] * left, false_reject_rate=rate, force=force)  # says so before the work if they are too few
    old = copy.deepcopy(dict(model.prototypes))
    pirn.shots = [*pirn.shots, *added]
    parts = list(prepared_parts(train_set, find_shots(pirn, train_set), pirn.config))
    copies = random_copies(parts, pirn.config.augment, seed=pirn.config.seed)
    features = pirn.extractor.fit(parts, encoders=False).learnt_from(parts, copies)
    model.fine_tune(features, epochs)
    pirn.detector.fit_score(features)
    calibrate_category(pirn, root, rate, force=force)
    moved = [((model.prototypes[m] - p).norm(dim=-1) / p.norm(dim=-1)).mean().item() for m, p in old.items()]
    return Change(added, forced, before, pirn.calibrations, float(np.mean(moved)))


def _new_names(pirn: PIRNDetector, train_set: Dataset | PreparedSet, names: Sequence[str] | None) -> list[str]:
    good = [name for name, label in zip(train_set.names, train_set.labels, strict=True) if label == 0]
    unknown = sorted({*pirn.shots, *(names or ())} - set(good))
    if unknown:
        raise DataError(
            f"{train_set.root}: has no good part {unknown[0]} in the training split of {pirn.category}; found "
            f"{good[0]} to {good[-1]}"
        )
    added = [name for name in (good if names is None else dict.fromkeys(names)) if name not in pirn.shots]
    if not added:
        raise DataError(f"{train_set.root}: all these parts of {pirn.category} are shots already; nothing to add")
    return added


def _looks_anomalous(pirn: PIRNDetector, parts: Dataset | PreparedSet, index: int) -> bool:
    if isinstance(parts, PreparedSet):
        features = pirn.extractor([parts[index]])
        calibration = pirn.calibrations["+".join(pirn.config.modalities)]
        return calibration(float(pirn.detector(features).score[0])).reject
    verdict = Inspector(pirn).inspect_sample(parts[index]).verdict
    return verdict is not None and verdict.reject
