"""A PIRN detector for one product: encoders, model, score, and the file they are kept in."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from protoad_detectors import DETECTORS
from torch import nn

import protoad
from pirn.config import PIRNConfig
from pirn.model import PIRN
from protoad.calibration import Calibration
from protoad.checkpoint import load_checkpoint, save_checkpoint
from protoad.data import DEFAULT_SOURCE, Intrinsics, Prepared, Source, metres
from protoad.detection import Detector, FeatureExtractor, Features, Reconstructor
from protoad.distributed import Group, gather
from protoad.encoders import Encoder, FeatureCache, build_encoder
from protoad.encoders.base import hash_tensors
from protoad.errors import CheckpointError, ConfigError
from protoad.scoring import FUSED, ResidualScore
from protoad.training import Snapshot

__all__ = [
    "CHECKPOINT_NAME",
    "PIRNDetector",
    "build_extractor",
    "build_reconstructor",
    "clear_snapshot",
    "find_checkpoint",
    "find_checkpoints",
    "keep_previous",
    "load_members",
    "save_members",
    "with_head",
    "yardsticks",
]

CHECKPOINT_NAME = "checkpoint.safetensors"
SNAPSHOT_NAME = "training.safetensors"
_MEMBERS = "cross"
_YARDSTICKS: tuple[Literal["nearest_neighbour", "gaussian"], ...] = ("nearest_neighbour", "gaussian")


def build_extractor(config: PIRNConfig, *, cache: FeatureCache | None = None) -> FeatureExtractor:
    """Gives the frozen encoders of a config, one per modality; a pretrained one serves both if both ask for it."""
    encoders: dict[str, Encoder] = {}
    for modality, name in config.encoders.items():
        first = encoders.get("rgb")
        if first is not None and name == config.encoder and _is_pretrained(first):
            encoders[modality] = first
            continue
        encoders[modality] = build_encoder(
            name,
            weights=config.weights if name == config.encoder else None,
            image_size=config.image_size,
            seed=config.seed,
            stride=None if first is None else first.stride,
        )
    return FeatureExtractor(
        encoders,
        image_size=config.image_size,
        foreground=config.foreground,
        fill_holes=config.fill_holes,
        cache=cache,
    )


def build_reconstructor(config: PIRNConfig, extractor: FeatureExtractor) -> Reconstructor:
    """Gives what rebuilds the tokens of these encoders: PIRN, or the rival that the config names."""
    dims = {m: encoder.dim for m, encoder in extractor.encoders.items()}
    if config.detector == "pirn":
        return PIRN(dims, config)
    return DETECTORS[config.detector](dims, grid=extractor.grid, seed=config.seed)


def clear_snapshot(folder: Path) -> None:
    """Deletes what an interrupted training left, and the folder and the one above if nothing else is in them."""
    (folder / SNAPSHOT_NAME).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: somebody's checkpoints
        folder.rmdir()
        folder.parent.rmdir()


def find_checkpoints(folder: Path) -> list[Path]:
    """Gives the folders with a checkpoint: the one given, or those right below it.

    Raises:
        CheckpointError: if there are none.
    """
    if (folder / CHECKPOINT_NAME).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{CHECKPOINT_NAME}"))
    if not found:
        raise CheckpointError(f"{folder}: no {CHECKPOINT_NAME} there or one folder below; give the folder train wrote")
    return found


def find_checkpoint(folder: str | Path, category: str | None = None) -> Path:
    """Gives the folder of one checkpoint among those in a folder.

    Raises:
        CheckpointError: if there is none, or not that of the category.
        ConfigError: if there are several and none was chosen.
    """
    found = {path.name: path for path in find_checkpoints(Path(folder))}
    if category is not None and category not in found:
        raise CheckpointError(f"{folder}: has no {category!r}; found: {', '.join(found)}")
    if category is None and len(found) > 1:
        raise ConfigError(f"{folder}: holds {', '.join(found)}; choose one by its category")
    return found[category or next(iter(found))]


def keep_previous(folder: Path) -> Path:
    """Copies the checkpoint as it is beside itself, to go back to; gives the copy's path."""
    copy = folder / f"previous.{CHECKPOINT_NAME}"
    tensors, header = load_checkpoint(folder / CHECKPOINT_NAME)
    save_checkpoint(copy, tensors, header)
    return copy


def with_head(reconstructor: Reconstructor, extractor: FeatureExtractor, config: PIRNConfig) -> Detector:
    """Gives any reconstructor the score, blur and image score of a config: rivals are compared under the same."""
    kind, seed = config.score, config.seed
    return Detector(
        reconstructor,
        reconstructor.own_score(seed) if kind == "own" else ResidualScore(kind, seed=seed),
        grid=extractor.grid,
        image_size=config.image_size,
        sigma=config.sigma,
        top_fraction=config.top_fraction,
    )


def yardsticks(extractor: FeatureExtractor, config: PIRNConfig) -> dict[str, Detector]:
    """Gives the detectors that stand beside PIRN in every table."""
    configs = {name: replace(config, detector=name) for name in _YARDSTICKS}
    return {
        name: with_head(build_reconstructor(one, extractor), extractor, one).to(extractor.device)
        for name, one in configs.items()
    }


class PIRNDetector:
    """Everything needed to judge a part of one product, by PIRN or the rival that the config names.

    Attributes:
        config: settings.
        category: the product.
        source: how its parts are read.
        unit: of the point clouds of single parts, in metres: that of the files it was trained on.
        camera: that depth images of single parts are seen by: that of the files it was trained on, where there is one.
        shots: names of the good parts it was trained on.
        extractor: frozen encoders with the statistics of the shots.
        model: what rebuilds the tokens.
        detector: the model, its score and the scale of its heatmaps.
        calibrations: name of a `Condition`, such as "rgb+normals" -> its threshold; empty until calibrated.
    """

    def __init__(
        self,
        config: PIRNConfig,
        *,
        category: str,
        source: Source = DEFAULT_SOURCE,
        unit: float = 1.0,
        camera: Intrinsics | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        self.config, self.category, self.source = config, category, source
        self.unit, self.camera = unit, camera
        self.shots: list[str] = []
        self.calibrations: dict[str, Calibration] = {}
        self.extractor = build_extractor(config, cache=cache)
        self.model = build_reconstructor(config, self.extractor)
        self.detector = with_head(self.model, self.extractor, config)

    def to(self, device: torch.device | str) -> PIRNDetector:
        """Moves encoders, model and score to a device; features follow the encoders."""
        self.extractor.to(device)
        self.detector.to(device)
        return self

    def fit(
        self,
        parts: Sequence[Prepared],
        names: Sequence[str],
        *,
        copies: Sequence[Prepared] = (),
        folder: str | Path | None = None,
        process_group: Group = None,
    ) -> Features:
        """Trains on prepared good parts; gives their features, for yardsticks to share.

        Args:
            parts: to learn from; with a process group, this process's share of them, one or more.
            names: of all parts, kept with the detector.
            copies: of these parts, to learn from as well.
            folder: where an interrupted training of PIRN is kept, and one of the same settings and parts taken up
                again; `save` to the same folder clears it away. Rivals start anew.
            process_group: processes that train together, and that all end with the same detector.

        Raises:
            CheckpointError: if the folder cannot be written.
            ConfigError: for a rival in several processes.
        """
        if process_group is not None and not isinstance(self.model, PIRN):
            raise ConfigError(f"detector: {self.config.detector} trains in one process only; start it without torchrun")
        self.shots = list(names)
        self.extractor.fit(parts, process_group, copies=copies)
        mine = self.extractor.learnt_from(parts, copies)

        def whole(pieces: torch.Tensor) -> torch.Tensor:
            """Of all processes, in the order of one: the parts, then the copies."""
            return torch.cat([gather(piece, process_group) for piece in pieces.tensor_split([len(parts)])])

        features = mine
        if process_group is not None:
            features = Features({m: whole(tokens) for m, tokens in mine.tokens.items()}, whole(mine.mask))
        if isinstance(self.model, PIRN):
            self.model.fit(features, None if folder is None else self._snapshot(Path(folder), features), process_group)
        else:
            self.model.fit(features)
        self.detector.fit_score(features)
        return features.pick(torch.arange(len(names)))

    def _snapshot(self, folder: Path, features: Features) -> Snapshot:
        title = json.dumps([protoad.__version__, asdict(self.config)], sort_keys=True)
        identity = hash_tensors(title, [*features.tokens.items(), ("mask", features.mask)])
        return Snapshot(folder / SNAPSHOT_NAME, identity)

    def save(self, folder: str | Path) -> Path:
        """Writes the checkpoint into a folder and gives its path.

        Raises:
            CheckpointError: if the folder cannot be written.
        """
        tensors = {"usual_loss": self.extractor.usual_loss}
        for name, module in self._fitted_modules().items():
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        header = {
            "protoad": protoad.__version__,
            "category": self.category,
            "source": self.source._asdict(),
            "unit": self.unit,
            "camera": self.camera,
            "config": asdict(self.config),
            "shots": self.shots,
            "encoders": {m: e.fingerprint() for m, e in self.extractor.encoders.items()},
            "history": list(self.model.history),
            "calibrations": {name: asdict(calibration) for name, calibration in self.calibrations.items()},
        }
        path = Path(folder) / CHECKPOINT_NAME
        save_checkpoint(path, tensors, header)
        (path.parent / SNAPSHOT_NAME).unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, folder: str | Path, *, weights: str | None = None, cache: FeatureCache | None = None) -> PIRNDetector:
        """Reads a detector back.

        Args:
            folder: that `save` wrote to.
            weights: weight file of the encoder, if it has moved since.
            cache: of features.

        Raises:
            CheckpointError: if the file is missing, damaged, of another configuration or another encoder.
        """
        path = Path(folder) / CHECKPOINT_NAME
        tensors, header = load_checkpoint(path)
        config = PIRNConfig.from_dict(_entry(header, "config", path))
        source = Source.of(**_entry(header, "source", path))
        loaded = cls(
            config if weights is None else replace(config, weights=weights),
            category=_entry(header, "category", path),
            source=source,
            unit=header.get("unit", metres(dict(source.options).get("unit", "m"))),  # older ones lack the entry
            camera=Intrinsics.of(header.get("camera")),
            cache=cache,
        )
        loaded.shots = _entry(header, "shots", path)
        for name, module in loaded._fitted_modules().items():
            _load_state(module, tensors, f"{name}.", path)
        loaded.extractor.usual_loss.copy_(_entry(tensors, "usual_loss", path))
        found = {m: e.fingerprint() for m, e in loaded.extractor.encoders.items()}
        if found != _entry(header, "encoders", path):
            raise CheckpointError(
                f"{path}: trained on other weights of {config.encoder} than those loaded now; give the original file"
            )
        loaded.model.history = _entry(header, "history", path)
        stored = _entry(header, "calibrations", path)
        loaded.calibrations = {name: Calibration(**values) for name, values in stored.items()}
        loaded.detector.eval()
        return loaded

    def heatmap_range(self, name: str = FUSED) -> tuple[float, float]:
        """Gives (low, high), the one scale that all heatmaps of this detector are drawn on.

        Of a calibrated detector the threshold lies in the middle, by the good parts that it comes from; otherwise, and
        for the heatmaps of one modality beside the other, see `Detector.heatmap_range`.
        """
        low, high = self.detector.heatmap_range(name)
        usual = self.calibrations.get("+".join(self.config.modalities))
        if name == FUSED and usual is not None and low < usual.threshold < math.inf:
            high = low + 2 * (usual.threshold - low)
        return low, high

    def _fitted_modules(self) -> dict[str, nn.Module]:
        """What the shots decided, by its prefix in the checkpoint; pretrained weights are not kept there."""
        fitted = {f"encoder.{m}": e for m, e in self.extractor.encoders.items() if not _is_pretrained(e)}
        looks = {} if self.extractor.looks is None else {"looks": self.extractor.looks}
        return {"detector": self.detector, **fitted, **looks}


def save_members(folder: Path, members: Sequence[PIRNDetector]) -> None:
    """Keeps the detectors of a cross calibration beside the one they calibrate, in place of earlier ones."""
    fresh = folder / f"{_MEMBERS}.new"  # those that are there stay until these are whole
    shutil.rmtree(fresh, ignore_errors=True)
    for index, member in enumerate(members):
        member.save(fresh / f"{index:03d}")
    shutil.rmtree(folder / _MEMBERS, ignore_errors=True)
    if members:
        fresh.rename(folder / _MEMBERS)


def load_members(folder: Path, pirn: PIRNDetector, *, weights: str | None = None) -> list[PIRNDetector]:
    """Reads the detectors of a cross calibration; none for another calibration.

    Raises:
        CheckpointError: if they are not those that the detector was calibrated with.
    """
    cross = [c for c in pirn.calibrations.values() if c.method == "cross"]
    if not cross:
        return []
    expected = [[name for name in pirn.shots if name != left_out] for left_out in pirn.shots]
    if not (folder / _MEMBERS).is_dir():
        raise CheckpointError(f"{folder}: the detectors it was calibrated with are gone; calibrate it again")
    members = [PIRNDetector.load(path, weights=weights) for path in find_checkpoints(folder / _MEMBERS)]
    if [member.shots for member in members] != expected or {member.config for member in members} != {pirn.config}:
        raise CheckpointError(
            f"{folder / _MEMBERS}: not the detectors {folder} was calibrated with; calibrate it again"
        )
    return members


def _is_pretrained(encoder: Encoder) -> bool:
    """Weights are parameters, statistics are buffers."""
    return any(True for _ in encoder.parameters())


def _entry(header: dict[str, Any], key: str, path: Path) -> Any:
    if key not in header:
        raise CheckpointError(f"{path}: its header lacks {key!r}; it is not a checkpoint of pirn")
    return header[key]


def _load_state(module: Any, tensors: dict[str, Any], prefix: str, path: Path) -> None:
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"{path}: does not fit its own configuration ({reason})") from None
