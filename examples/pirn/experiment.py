"""One category: read the shots, train, evaluate beside the yardsticks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pirn.config import PIRNConfig
from pirn.detector import PIRNDetector, yardsticks
from protoad.calibration import calibrate
from protoad.data import (
    DEFAULT_SOURCE,
    Dataset,
    MissingSplitError,
    Prepared,
    PreparedSet,
    Source,
    list_prepared,
    prepare,
    random_copies,
    select_shots,
)
from protoad.detection import Features, Prediction
from protoad.encoders import FeatureCache
from protoad.errors import DataError
from protoad.metrics import DetectionMetrics, MetricsAccumulator

__all__ = ["EvaluationSet", "Seen", "calibrate_category", "evaluate", "open_test", "read_shots", "train_category"]

_CHUNK = 8


class EvaluationSet(NamedTuple):
    """The test parts of a category, read one by one; `names`, `defects` and `labels` in the same order."""

    parts: Iterable[Prepared]
    names: list[str]
    defects: list[str]
    labels: list[int]


class Seen(NamedTuple):
    """A test part as it passes an evaluation.

    Attributes:
        part: what was looked at.
        name, defect, label: of the part, as in the data set.
        prediction: of PIRN, for this part alone: score (1), maps (1 y x).
    """

    part: Prepared
    name: str
    defect: str
    label: int
    prediction: Prediction


def train_category(
    config: PIRNConfig,
    root: str | Path,
    category: str,
    shots: int | None,
    *,
    source: Source = DEFAULT_SOURCE,
    cache: FeatureCache | None = None,
    folder: Path | None = None,
) -> tuple[PIRNDetector, Features]:
    """Trains PIRN on some good parts of one category; gives it and the features of its shots.

    Args:
        config: settings.
        root: folder that holds the categories, or a cache that `pirn prepare` wrote.
        category: to learn.
        shots: how many good parts; None takes all.
        source: how the parts are read; a cache knows that itself.
        cache: of features.
        folder: where an interrupted training is kept, and taken up again.

    Raises:
        DataError: for missing or damaged data, fewer good parts than asked for, or a cache with other settings.
    """
    train_set = _open(config, root, category, "train", source)
    good = [index for index, label in enumerate(train_set.labels) if label == 0]
    names = [train_set.names[index] for index in good]
    chosen = select_shots([f"{train_set.root / category / name}" for name in names], shots, seed=config.seed)
    pirn = PIRNDetector(config, category=category, source=_source(train_set, source), cache=cache)
    parts = list(_prepared(train_set, [good[index] for index in chosen], config))
    copies = random_copies(parts, config.augment, seed=config.seed)
    features = pirn.fit(parts + copies, [names[index] for index in chosen], folder=folder)
    return pirn, features.pick(torch.arange(len(parts)))


def read_shots(pirn: PIRNDetector, root: str | Path) -> Features:
    """Gives the features of the shots a detector was trained on, read again by their recorded names.

    Raises:
        DataError: if one of them is no longer there.
    """
    train_set = _open(pirn.config, root, pirn.category, "train", pirn.source)
    missing = sorted(set(pirn.shots) - set(train_set.names))
    if missing:
        raise DataError(
            f"{train_set.root / pirn.category}: lacks {missing[0]}, which the detector was trained on; "
            "give the original root, or leave the yardsticks out with --no-yardsticks"
        )
    return pirn.extractor(list(_prepared(train_set, map(train_set.names.index, pirn.shots), pirn.config)))


def open_test(config: PIRNConfig, root: str | Path, category: str, *, source: Source = DEFAULT_SOURCE) -> EvaluationSet:
    """Finds the test split of a category; its parts are read as `evaluate` goes through them, once.

    Raises:
        DataError: for missing data, or parts that nobody labelled; and while they are read, for damaged data.
    """
    test_set = _open(config, root, category, "test", source)
    if not test_set.labelled:
        raise DataError(f"{test_set.root}: nobody sorted these parts, and they have no masks; use pirn detect --root")
    parts = _prepared(test_set, range(len(test_set)), config)
    return EvaluationSet(parts, test_set.names, test_set.defects, test_set.labels)


def calibrate_category(pirn: PIRNDetector, root: str | Path, false_reject_rate: float, *, force: bool) -> list[str]:
    """Calibrates a detector, for both modalities and for each alone, on all good parts it has not learnt from.

    These are the good parts of the validation split, and of the training split those that were no shots.

    Args:
        pirn: a trained detector; gets its `calibrations`.
        root: folder that holds the categories, or a cache.
        false_reject_rate: share of good parts that may be rejected.
        force: whether to go on with too few parts.

    Returns:
        Names of the parts used.

    Raises:
        DataError: for missing or damaged data.
        CalibrationError: for too few parts for the rate.
    """
    parts: Iterable[Prepared] = ()
    names: list[str] = []
    for split in ("train", "validation"):
        try:
            held_out = _open(pirn.config, root, pirn.category, split, pirn.source)
        except MissingSplitError:  # not every data set has a validation split
            continue
        labels = zip(held_out.names, held_out.labels, strict=True)
        unseen = [i for i, (name, label) in enumerate(labels) if label == 0 and name not in pirn.shots]
        parts = chain(parts, _prepared(held_out, unseen, pirn.config))
        names += [held_out.names[i] for i in unseen]
    if not names:
        raise DataError(
            f"{root}: holds no good part of {pirn.category} beyond the shots; add some to train or validation"
        )
    scores: dict[tuple[str, ...], list[float]] = {modalities: [] for modalities in pirn.ways_to_look()}
    for chunk in _chunks(parts, pirn):
        for modalities, found in scores.items():
            found += pirn.detector(pirn.extractor(chunk, modalities)).score.tolist()
    for modalities, found in scores.items():
        pirn.calibrations["+".join(modalities)] = calibrate(found, false_reject_rate=false_reject_rate, force=force)
    return names


def _open(config: PIRNConfig, root: str | Path, category: str, split: str, source: Source) -> Dataset | PreparedSet:
    """The parts of a split, from the data set itself or prepared in a cache."""
    if category in list_prepared(root):
        return PreparedSet(root, category, split, config.preparation(category))
    return source.open(root, category, split)


def _source(parts: Dataset | PreparedSet, asked: Source) -> Source:
    """How the parts were read: a cache knows."""
    return parts.source if isinstance(parts, PreparedSet) else asked


def _prepared(parts: Dataset | PreparedSet, indices: Iterable[int], config: PIRNConfig) -> Iterator[Prepared]:
    """Some of the parts, read and prepared one by one."""
    if isinstance(parts, PreparedSet):
        return (parts[index] for index in indices)
    settings = asdict(config.preparation(parts.category))
    return (prepare(parts[index], **settings) for index in indices)


def _chunks(parts: Iterable[Prepared], pirn: PIRNDetector) -> Iterator[list[Prepared]]:
    """A few parts at a time; the features of the last few are forgotten, unless they are kept on disk."""
    parts = iter(parts)
    while chunk := list(islice(parts, _CHUNK)):
        pirn.extractor.cache = FeatureCache(pirn.extractor.cache.folder)
        yield chunk


def evaluate(
    pirn: PIRNDetector, test: EvaluationSet, shots: Features | None, observe: Callable[[Seen], None] | None = None
) -> dict[str, DetectionMetrics]:
    """Gives the metrics of PIRN, and of the yardsticks where their shots are given.

    A few parts are in memory at a time: read, encoded once for all methods, measured, and let go.

    Args:
        pirn: a trained detector.
        test: the parts.
        shots: features of the good parts it was trained on.
        observe: gets every part, in the order of the data set; what it keeps stays in memory.

    Raises:
        DataError: for damaged data.
    """
    detectors = {"pirn": pirn.detector}
    if shots is not None:
        detectors |= {name: rival.fit(shots) for name, rival in yardsticks(pirn.extractor, pirn.config).items()}
    metrics = {name: MetricsAccumulator() for name in detectors}
    facts = zip(test.names, test.defects, test.labels, strict=True)
    for chunk in _chunks(test.parts, pirn):
        known = list(islice(facts, len(chunk)))
        labels = np.array([label for _, _, label in known])
        masks = torch.stack([part.mask for part in chunk]).numpy()
        features = pirn.extractor(chunk)
        predictions = {name: detector(features) for name, detector in detectors.items()}
        for name, said in predictions.items():
            metrics[name].update(said.score.numpy(), labels, said.maps["fused"].numpy(), masks)
        if observe is not None:
            for index, part in enumerate(chunk):
                observe(Seen(part, *known[index], _one(predictions["pirn"], index)))
    return {name: accumulator.compute() for name, accumulator in metrics.items()}


def _one(prediction: Prediction, index: int) -> Prediction:
    """The prediction of one part, not as a view that keeps the others alive."""
    maps = {name: heatmap[index : index + 1].clone() for name, heatmap in prediction.maps.items()}
    return Prediction(prediction.score[index : index + 1].clone(), maps)
