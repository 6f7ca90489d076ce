"""Detectors measured on the same features: each piece of work once, whichever studies ask for it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from pirn.config import PIRNConfig
from pirn.detector import build_extractor, build_reconstructor, with_head
from pirn.experiment import EvaluationSet, choose_shots, open_test, prepared_parts
from pirn.processes import count_workers, run_each
from pirn.studies.request import Piece, Request, settings_of
from pirn.studies.rows import Row, Rows
from protoad.data import Prepared
from protoad.detection import Detector, FeatureExtractor, Features, Reconstructor
from protoad.encoders import FeatureCache
from protoad.errors import EncoderError, ProtoadError
from protoad.metrics import DetectionMetrics, MetricsAccumulator

__all__ = ["METRICS", "NOT_AVAILABLE", "NOT_MEASURED", "Measured", "measure"]

METRICS = DetectionMetrics._fields
NOT_AVAILABLE, NOT_MEASURED = "weights not available", "not measured"
_CHUNK = 8
_FEATURES = (
    "encoder",
    "encoder_normals",
    "weights",
    "modality",
    "foreground",
    "fill_holes",
    "image_size",
    "plane_distance",
    "augment",
)


class Measured(NamedTuple):
    """What is known so far.

    Attributes:
        rows: category, shots, seed, settings and the metrics, of all pieces asked for.
        missing: settings -> why their encoder cannot be had.
        failed: settings -> what went wrong, on one piece at least.
    """

    rows: list[Row]
    missing: dict[str, str]
    failed: dict[str, ProtoadError]


class _Task(NamedTuple):
    """The settings to measure on one piece."""

    request: Request
    piece: Piece
    configs: list[PIRNConfig]


def measure(request: Request, wanted: Mapping[Piece, Sequence[Mapping[str, Any]]]) -> Measured:
    """Measures settings on pieces; what is in OUT/measured already is not measured again.

    Args:
        request: as asked for.
        wanted: piece -> settings, each laid over the base.

    Raises:
        DataError: if OUT is of something else, or a process dies.
        ConfigError: for settings that do not go together.
    """
    missing: dict[str, str] = {}
    request.claim()
    tasks = [_Task(request, piece, _configs(request, piece, several, missing)) for piece, several in wanted.items()]
    open_tasks = [task for task in tasks if task.configs and _left(task)]
    jobs = (os.cpu_count() or 1) if request.jobs is None and request.device.type == "cpu" else request.jobs
    workers = count_workers(jobs, request.device, len(open_tasks))
    start, numbered = time.monotonic(), list(enumerate(open_tasks, 1))
    outcomes = run_each(partial(_measure_piece, len(open_tasks)), numbered, workers=workers, device=request.device)
    failed: dict[str, ProtoadError] = {}
    for number, outcome in enumerate(outcomes, start=1):
        minutes = (time.monotonic() - start) / number * (len(open_tasks) - number) / 60
        print(f"{number} of {len(open_tasks)} pieces done; about {minutes:.0f} min left of all", flush=True)
        if isinstance(outcome, ProtoadError):
            raise outcome
        failed |= outcome
    return Measured([row for task in tasks for row in _found(task)], missing, failed)


def _configs(
    request: Request, piece: Piece, several: Sequence[Mapping[str, Any]], missing: dict[str, str]
) -> list[PIRNConfig]:
    """The settings whose encoders can be had, those that share features or a training side by side."""
    configs = []
    for settings in several:
        try:
            config = request.config(settings, piece.seed)
            _check_weights(config.encoder, config.weights)
        except EncoderError as error:
            missing[settings_of(replace(request.base, **settings))] = str(error)
            continue
        configs.append(config)
    unique = {settings_of(config): config for config in configs}
    return sorted(unique.values(), key=lambda c: [str(getattr(c, name)) for name in _FEATURES] + [_training(c)])


_checked: dict[tuple[str, str | None], str] = {}


def _check_weights(encoder: str, weights: str | None) -> None:
    """Builds a pretrained encoder once, to know before the work.

    Raises:
        EncoderError: if its weights cannot be had.
    """
    if not encoder.startswith("timm:"):
        return
    if (encoder, weights) not in _checked:
        try:
            build_extractor(PIRNConfig(encoder=encoder, weights=weights, modality="rgb"))
            _checked[encoder, weights] = ""
        except EncoderError as error:
            _checked[encoder, weights] = str(error)
    if _checked[encoder, weights]:
        raise EncoderError(_checked[encoder, weights])


def _file(task: _Task) -> Rows:
    shots = "all" if task.piece.shots is None else task.piece.shots
    name = f"{task.piece.category}-{shots}-{task.piece.seed}.csv"
    return Rows(task.request.claim() / name, key=("settings", "weights"), text=("category", "settings", "weights"))


def _key(config: PIRNConfig) -> tuple[str, str]:
    """What a row is of: the settings, and which weights its encoder has."""
    return settings_of(config), _digest(config.weights)


@lru_cache
def _digest(weights: str | None) -> str:
    """The start of a weight file's SHA-256; none for the published weights, or where there are none."""
    if weights is None:
        return ""
    with open(weights, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"


def _left(task: _Task) -> list[PIRNConfig]:
    done = {(row["settings"], row["weights"]) for row in _file(task).found}
    return [config for config in task.configs if _key(config) not in done]


def _found(task: _Task) -> Iterator[Row]:
    keys = {_key(config) for config in task.configs}
    return (row for row in _file(task).found if (row["settings"], row["weights"]) in keys)


def _measure_piece(of: int, numbered: tuple[int, _Task]) -> dict[str, ProtoadError]:
    """Measures what is left of a piece; gives what went wrong, by its settings."""
    number, task = numbered
    rows, bench = _file(task), _Bench(task)
    configs = {_key(config): config for config in task.configs}
    failed: dict[str, ProtoadError] = {}
    for key in rows.to_do(list(configs), title=f"{number} of {of}: {task.piece}"):
        try:
            metrics, more = bench.judge(configs[key])
        except ProtoadError as error:  # of this line; the others may do
            failed[key[0]] = error
            continue
        shots = "all" if task.piece.shots is None else task.piece.shots
        known = {"category": task.piece.category, "shots": shots, "seed": task.piece.seed}
        rows.add([{**known, "settings": key[0], "weights": key[1], **metrics._asdict(), **more}])
    return failed


class _Bench:
    """The parts and features of one piece, and the last thing that was trained on them."""

    def __init__(self, task: _Task) -> None:
        self.task = task
        self._parts: dict[Any, tuple[list[Prepared], list[Prepared], EvaluationSet]] = {}
        self._encoded: tuple[list[str], FeatureExtractor, Features, Features] | None = None
        self._trained: tuple[str, Reconstructor] | None = None

    def judge(self, config: PIRNConfig) -> tuple[DetectionMetrics, Row]:
        """The metrics of a detector, and what its training said last."""
        shots, tested, test = self._read(config)
        extractor, learnt, seen = self._encode(config, shots, tested)
        reconstructor = self._train(config, extractor, learnt)
        detector = with_head(reconstructor, extractor, config).to(self.task.request.device).fit_score(learnt)
        history = getattr(reconstructor, "history", [])
        more = {name: history[-1][name] for name in ("loss", "leak") if history and name in history[-1]}
        return _metrics(detector, seen, tested, test.labels), more

    def _read(self, config: PIRNConfig) -> tuple[list[Prepared], list[Prepared], EvaluationSet]:
        request, piece = self.task.request, self.task.piece
        key = config.preparation(piece.category)
        if key not in self._parts:
            where = (request.folder_of(piece), piece.category)
            train_set, chosen = choose_shots(config, *where, piece.shots, source=request.source)
            test = open_test(config, *where, source=request.source)
            shots = list(prepared_parts(train_set, chosen, config))
            self._parts = {key: (shots, list(test.parts), test)}  # of one kind of preparation at a time
        return self._parts[key]

    def _encode(
        self, config: PIRNConfig, shots: Sequence[Prepared], tested: Sequence[Prepared]
    ) -> tuple[FeatureExtractor, Features, Features]:
        key = [str(getattr(config, name)) for name in _FEATURES]
        if self._encoded is None or self._encoded[0] != key:
            extractor = build_extractor(config, cache=FeatureCache(self.task.request.cache))
            extractor.to(self.task.request.device).fit(shots)
            self._encoded = (key, extractor, extractor.learnt_from(shots), extractor(tested))
            extractor.cache = FeatureCache(self.task.request.cache)  # the features are here, not twice
        return self._encoded[1:]

    def _train(self, config: PIRNConfig, extractor: FeatureExtractor, learnt: Features) -> Reconstructor:
        """Trains, unless only the score differs from the last time."""
        key = _training(config)
        if self._trained is None or self._trained[0] != key:
            reconstructor = build_reconstructor(config, extractor).to(extractor.device)
            self._trained = (key, reconstructor.fit(learnt))
        return self._trained[1]


def _training(config: PIRNConfig) -> str:
    """All settings that a training depends on."""
    return str(asdict(replace(config, score="cosine", top_fraction=0.0, sigma=0.0)))


def _metrics(detector: Detector, seen: Features, parts: Sequence[Prepared], labels: Sequence[int]) -> DetectionMetrics:
    """A few parts at a time: a detector may need much memory for one."""
    accumulator = MetricsAccumulator()
    for indices in torch.arange(len(parts)).split(_CHUNK):
        said = detector(seen.pick(indices)).cpu()
        masks = torch.stack([parts[i].mask for i in indices.tolist()]).numpy()
        known = np.array([labels[i] for i in indices.tolist()])
        accumulator.update(said.score.numpy(), known, said.maps["fused"].numpy(), masks)
    return accumulator.compute()
