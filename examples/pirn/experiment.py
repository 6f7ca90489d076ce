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
from protoad.data import (
    DEFAULT_SOURCE,
    Dataset,
    Prepared,
    PreparedSet,
    Source,
    list_prepared,
    prepare,
    random_copies,
    select_shots,
)
from protoad.detection import Detector, FeatureExtractor, Features, Prediction
from protoad.encoders import FeatureCache
from protoad.errors import DataError
from protoad.metrics import DetectionMetrics, evaluate_maps

__all__ = [
    "EvaluationSet",
    "evaluate",
    "open_split",
    "predict",
    "prepared_parts",
    "read_shots",
    "read_test",
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
    train_set = open_split(config, root, category, "train", source)
    good = [index for index, label in enumerate(train_set.labels) if label == 0]
    names = [train_set.names[index] for index in good]
    chosen = select_shots([f"{train_set.root / category / name}" for name in names], shots, seed=config.seed)
    pirn = PIRNDetector(config, category=category, source=_source(train_set, source), cache=cache)
    parts = prepared_parts(train_set, [good[index] for index in chosen], config)
    copies = random_copies(parts, config.augment, seed=config.seed)
    features = pirn.fit(parts + copies, [names[index] for index in chosen], folder=folder)
    return pirn, features.pick(torch.arange(len(parts)))


def read_shots(pirn: PIRNDetector, root: str | Path) -> Features:
    """Gives the features of the shots a detector was trained on, read again by their recorded names.

    Raises:
        DataError: if one of them is no longer there.
    """
    train_set = open_split(pirn.config, root, pirn.category, "train", pirn.source)
    missing = sorted(set(pirn.shots) - set(train_set.names))
    if missing:
        raise DataError(
            f"{train_set.root / pirn.category}: lacks {missing[0]}, which the detector was trained on; "
            "give the original root, or leave the yardsticks out with --no-yardsticks"
        )
    return pirn.extractor(prepared_parts(train_set, [train_set.names.index(name) for name in pirn.shots], pirn.config))


def read_test(config: PIRNConfig, root: str | Path, category: str, *, source: Source = DEFAULT_SOURCE) -> EvaluationSet:
    """Reads and prepares the test split of a category.

    Raises:
        DataError: for missing or damaged data, or parts that nobody labelled.
    """
    test_set = open_split(config, root, category, "test", source)
    if not test_set.labelled:
        raise DataError(f"{test_set.root}: nobody sorted these parts, and they have no masks; use pirn detect --root")
    parts = prepared_parts(test_set, range(len(test_set)), config)
    return EvaluationSet(parts, test_set.names, test_set.defects, test_set.labels)


def open_split(
    config: PIRNConfig, root: str | Path, category: str, split: str, source: Source
) -> Dataset | PreparedSet:
    """The parts of a split, from the data set itself or prepared in a cache."""
    if category in list_prepared(root):
        return PreparedSet(root, category, split, config.preparation(category))
    return source.open(root, category, split)


def _source(parts: Dataset | PreparedSet, asked: Source) -> Source:
    """How the parts were read: a cache knows."""
    return parts.source if isinstance(parts, PreparedSet) else asked


def prepared_parts(parts: Dataset | PreparedSet, indices: Iterable[int], config: PIRNConfig) -> list[Prepared]:
    """Some parts of a split, prepared for a detector of this configuration."""
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
    """Gives the prediction for any number of parts, a few at a time, by some modalities or all there are."""
    chunks = [detector(extractor(parts[i : i + _CHUNK], modalities)) for i in range(0, len(parts), _CHUNK)]
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
