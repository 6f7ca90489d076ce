"""One category: read the shots, train, evaluate beside the yardsticks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
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
from protoad.detection import Features, Prediction
from protoad.distributed import Group, share, size
from protoad.encoders import FeatureCache
from protoad.errors import ConfigError, DataError
from protoad.metrics import DetectionMetrics, MetricsAccumulator

__all__ = [
    "EvaluationSet",
    "Seen",
    "choose_shots",
    "evaluate",
    "find_shots",
    "open_split",
    "open_test",
    "prepared_parts",
    "read_shots",
    "source_of",
    "train_category",
]

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
        prediction: of the detector, for this part alone: score (1), maps (1 y x).
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
    device: torch.device | str = "cpu",
    process_group: Group = None,
) -> tuple[PIRNDetector, Features]:
    """Trains a detector on some good parts of one category; gives it and the features of its shots.

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
    source = source_of(train_set, source)
    unit, camera = train_set.unit, train_set.camera
    pirn = PIRNDetector(config, category=category, source=source, unit=unit, camera=camera, cache=cache).to(device)
    parts = list(prepared_parts(train_set, mine, config))
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
    train_set = open_split(config, root, category, "train", source)
    good = [index for index, label in enumerate(train_set.labels) if label == 0]
    names = [f"{train_set.root / category / train_set.names[index]}" for index in good]
    return train_set, [good[index] for index in select_shots(names, shots, seed=config.seed)]


def read_shots(pirn: PIRNDetector, root: str | Path) -> Features:
    """Gives the features of the shots a detector was trained on, read again by their recorded names.

    Raises:
        DataError: if one of them is no longer there.
    """
    train_set = open_split(pirn.config, root, pirn.category, "train", pirn.source)
    return pirn.extractor(list(prepared_parts(train_set, find_shots(pirn, train_set), pirn.config)))


def find_shots(pirn: PIRNDetector, train_set: Dataset | PreparedSet) -> list[int]:
    """Gives the positions in the training split of the shots that a detector was trained on, in their order.

    Raises:
        DataError: if one of them is no longer there.
    """
    missing = sorted(set(pirn.shots) - set(train_set.names))
    if missing:
        raise DataError(
            f"{train_set.root / pirn.category}: lacks {missing[0]}, which the detector was trained on; "
            "give the original root (pirn evaluate does without by --no-yardsticks)"
        )
    return [train_set.names.index(name) for name in pirn.shots]


def open_test(config: PIRNConfig, root: str | Path, category: str, *, source: Source = DEFAULT_SOURCE) -> EvaluationSet:
    """Finds the test split of a category; its parts are read as `evaluate` goes through them, once.

    Raises:
        DataError: for missing data, or parts that nobody labelled; and while they are read, for damaged data.
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


def source_of(parts: Dataset | PreparedSet, asked: Source) -> Source:
    """How the parts were read: a cache knows."""
    return parts.source if isinstance(parts, PreparedSet) else asked


def prepared_parts(parts: Dataset | PreparedSet, indices: Iterable[int], config: PIRNConfig) -> Iterator[Prepared]:
    """Some parts of a split, read and prepared one by one for a detector of this configuration."""
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
    pirn: PIRNDetector, test: EvaluationSet, shots: Features | None, *observers: Callable[[Seen], None]
) -> dict[str, DetectionMetrics]:
    """Gives the metrics of the detector by its name, and of the yardsticks where their shots are given.

    A few parts are in memory at a time: read, encoded once for all methods, measured, and let go.

    Args:
        pirn: a trained detector.
        test: the parts.
        shots: features of the good parts it was trained on.
        observers: get every part, in the order of the data set; what they keep stays in memory.

    Raises:
        DataError: for damaged data.
    """
    own: str = pirn.config.detector
    detectors = {own: pirn.detector}
    if shots is not None:
        rivals = yardsticks(pirn.extractor, pirn.config)
        detectors |= {name: rival.fit(shots) for name, rival in rivals.items() if name != own}
    metrics = {name: MetricsAccumulator() for name in detectors}
    facts = zip(test.names, test.defects, test.labels, strict=True)
    for chunk in _chunks(test.parts, pirn):
        known = list(islice(facts, len(chunk)))
        labels = np.array([label for _, _, label in known])
        masks = torch.stack([part.mask for part in chunk]).numpy()
        features = pirn.extractor(chunk)
        predictions = {name: detector(features).cpu() for name, detector in detectors.items()}
        for name, said in predictions.items():
            metrics[name].update(said.score.numpy(), labels, said.maps["fused"].numpy(), masks)
        for index, part in enumerate(chunk):
            seen = Seen(part, *known[index], _one(predictions[own], index))
            for observe in observers:
                observe(seen)
    return {name: accumulator.compute() for name, accumulator in metrics.items()}


def _one(prediction: Prediction, index: int) -> Prediction:
    """The prediction of one part, not as a view that keeps the others alive."""
    maps = {name: heatmap[index : index + 1].clone() for name, heatmap in prediction.maps.items()}
    return Prediction(prediction.score[index : index + 1].clone(), maps)
