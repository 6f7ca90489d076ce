"""One category: read the shots, train, evaluate beside the yardsticks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
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
from protoad.detection import Detector, FeatureExtractor, Features, Prediction
from protoad.distributed import Group, share, size
from protoad.encoders import FeatureCache
from protoad.errors import ConfigError, DataError
from protoad.metrics import DetectionMetrics, evaluate_maps

__all__ = [
    "EvaluationSet",
    "calibrate_category",
    "choose_shots",
    "evaluate",
    "predict",
    "read_shots",
    "read_test",
    "source_of",
    "train_category",
]

_CHUNK = 8


class EvaluationSet(NamedTuple):
    """The test parts of a category, prepared; `names`, `defects` and `labels` in the same order."""

    parts: list[Prepared]
    names: list[str]
    defects: list[str]
    labels: list[int]


def train_category(
    config: PIRNConfig,
    root: str | Path,
    category: str,
    shots: int | None,
    *,
    source: Source = DEFAULT_SOURCE,
    cache: FeatureCache | None = None,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    process_group: Group = None,
) -> tuple[PIRNDetector, Features]:
    """Trains PIRN on some good parts of one category; gives it and the features of its shots.

    With a process group each process reads and encodes its share of the shots, and all end with the same detector.

    Args:
        config: settings.
        root: folder that holds the categories, or a cache that `pirn prepare` wrote.
        category: to learn.
        shots: how many good parts; None takes all.
        source: how the parts are read; a cache knows that itself.
        cache: of features.
        folder: where an interrupted training is kept, and taken up again.
        device: that trains; the checkpoint knows nothing of it.
        process_group: processes that train together.

    Raises:
        ConfigError: for more processes than shots.
        DataError: for missing or damaged data, fewer good parts than asked for, or a cache with other settings.
    """
    train_set, chosen = choose_shots(config, root, category, shots, source=source)
    if len(chosen) < size(process_group):
        raise ConfigError(f"{len(chosen)} shots for {size(process_group)} processes; start one for each shot at most")
    mine = share(torch.tensor(chosen), process_group).tolist()
    pirn = PIRNDetector(config, category=category, source=source_of(train_set, source), cache=cache).to(device)
    parts = _prepared(train_set, mine, config)
    copies = random_copies(parts, config.augment, seed=config.seed, first=chosen.index(mine[0]))
    names = [train_set.names[index] for index in chosen]
    return pirn, pirn.fit(parts, names, copies=copies, folder=folder, process_group=process_group)


def choose_shots(
    config: PIRNConfig, root: str | Path, category: str, shots: int | None, *, source: Source = DEFAULT_SOURCE
) -> tuple[Dataset | PreparedSet, list[int]]:
    """Gives the training split of a category, and the positions in it of the good parts to learn from.

    Raises:
        DataError: for missing data, or fewer good parts than asked for.
    """
    train_set = _open(config, root, category, "train", source)
    good = [index for index, label in enumerate(train_set.labels) if label == 0]
    names = [f"{train_set.root / category / train_set.names[index]}" for index in good]
    return train_set, [good[index] for index in select_shots(names, shots, seed=config.seed)]


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
    return pirn.extractor(_prepared(train_set, [train_set.names.index(name) for name in pirn.shots], pirn.config))


def read_test(config: PIRNConfig, root: str | Path, category: str, *, source: Source = DEFAULT_SOURCE) -> EvaluationSet:
    """Reads and prepares the test split of a category.

    Raises:
        DataError: for missing or damaged data, or parts that nobody labelled.
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
    parts, names = [], []
    for split in ("train", "validation"):
        try:
            held_out = _open(pirn.config, root, pirn.category, split, pirn.source)
        except MissingSplitError:  # not every data set has a validation split
            continue
        labels = zip(held_out.names, held_out.labels, strict=True)
        unseen = [i for i, (name, label) in enumerate(labels) if label == 0 and name not in pirn.shots]
        parts += _prepared(held_out, unseen, pirn.config)
        names += [held_out.names[i] for i in unseen]
    if not parts:
        raise DataError(
            f"{root}: holds no good part of {pirn.category} beyond the shots; add some to train or validation"
        )
    for modalities in pirn.ways_to_look():
        scores = predict(pirn.extractor, pirn.detector, parts, modalities).score.tolist()
        pirn.calibrations["+".join(modalities)] = calibrate(scores, false_reject_rate=false_reject_rate, force=force)
    return names


def _open(config: PIRNConfig, root: str | Path, category: str, split: str, source: Source) -> Dataset | PreparedSet:
    """The parts of a split, from the data set itself or prepared in a cache."""
    if category in list_prepared(root):
        return PreparedSet(root, category, split, config.preparation(category))
    return source.open(root, category, split)


def source_of(parts: Dataset | PreparedSet, asked: Source) -> Source:
    """How the parts were read: a cache knows."""
    return parts.source if isinstance(parts, PreparedSet) else asked


def _prepared(parts: Dataset | PreparedSet, indices: Iterable[int], config: PIRNConfig) -> list[Prepared]:
    if isinstance(parts, PreparedSet):
        return [parts[index] for index in indices]
    settings = config.preparation(parts.category)
    return [prepare(parts[index], **asdict(settings)) for index in indices]


def predict(
    extractor: FeatureExtractor,
    detector: Detector,
    parts: Sequence[Prepared],
    modalities: Sequence[str] | None = None,
) -> Prediction:
    """Gives the prediction, on the CPU, for any number of parts, a few at a time, by some modalities or all."""
    chunks = [detector(extractor(parts[i : i + _CHUNK], modalities)).cpu() for i in range(0, len(parts), _CHUNK)]
    maps = {name: torch.cat([chunk.maps[name] for chunk in chunks]) for name in chunks[0].maps}
    return Prediction(torch.cat([chunk.score for chunk in chunks]), maps)


def evaluate(
    pirn: PIRNDetector, test: EvaluationSet, shots: Features | None
) -> tuple[dict[str, DetectionMetrics], Prediction]:
    """Gives the metrics of PIRN, and of the yardsticks where their shots are given; and PIRN's prediction."""
    prediction = predict(pirn.extractor, pirn.detector, test.parts)
    predictions: dict[str, Prediction] = {"pirn": prediction}
    if shots is not None:
        for name, rival in yardsticks(pirn.extractor, pirn.config).items():
            predictions[name] = predict(pirn.extractor, rival.fit(shots), test.parts)
    return _metrics(predictions, test), prediction


def _metrics(predictions: Mapping[str, Prediction], test: EvaluationSet) -> dict[str, DetectionMetrics]:
    masks = torch.stack([part.mask for part in test.parts]).numpy()
    return {
        name: evaluate_maps(prediction.score.numpy(), np.array(test.labels), prediction.maps["fused"].numpy(), masks)
        for name, prediction in predictions.items()
    }
