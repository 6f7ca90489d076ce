"""What a study is asked to measure, and on what."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import protoad
from pirn.config import PIRNConfig
from protoad.data import DEFAULT_SOURCE, PART_TYPES, Source, list_prepared, write_dataset
from protoad.errors import ConfigError, DataError, EncoderError

__all__ = ["Piece", "Request", "settings_of"]

_QUICK_PARTS, _QUICK_SIZE = ("cookie", "gland"), 112


class Piece(NamedTuple):
    """What detectors are compared on: one category, its shots (None: all) and one seed of everything drawn."""

    category: str
    shots: int | None
    seed: int

    def __str__(self) -> str:
        return f"{self.category}, {'all' if self.shots is None else self.shots} shots, seed {self.seed}"


@dataclass(frozen=True)
class Request:
    """A study as it was asked for.

    Args:
        out: folder to write to, or to go on with.
        seeds: of shots and training, and of synthetic parts.
        quick: two synthetic parts, small and few, the first seed: no result.
        shots: good parts to learn from, None for all; () leaves it to the study.
        root: folder that holds the categories; None makes synthetic parts.
        source: how its parts are read.
        categories: of them; () takes all.
        base: settings that the study's own are laid over.
        weights: weight file of the base's encoder, or a folder of files named after timm's models.
        jobs: processes; None: one per core.
        device: to measure on.
        cache: folder for features; None keeps them in memory.
    """

    out: Path
    seeds: tuple[int, ...] = tuple(range(5))
    quick: bool = False
    shots: tuple[int | None, ...] = ()
    root: Path | None = None
    source: Source = DEFAULT_SOURCE
    categories: tuple[str, ...] = ()
    base: PIRNConfig = field(default_factory=PIRNConfig)
    weights: Path | None = None
    jobs: int | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    cache: Path | None = None

    def reduced(self) -> Request:
        """Gives what is really measured: quick means small."""
        if not self.quick:
            return self
        return replace(self, seeds=self.seeds[:1], base=replace(self.base, image_size=_QUICK_SIZE))

    @property
    def title(self) -> str:
        """What the tables say they are of."""
        return "synthetic parts" if self.root is None else str(self.source)

    @property
    def leaves_it_to_the_study(self) -> bool:
        """Whether nothing is asked for but seeds: a study that draws its own parts can take no more."""
        how = replace(Request(self.out), jobs=self.jobs, device=self.device, cache=self.cache)  # changes no result
        return self == replace(how, seeds=self.seeds, quick=self.quick)

    def claim(self) -> Path:
        """Gives the folder of what is measured, and makes OUT that of these data and this protoad.

        Categories of two data sets may have the same name, and their numbers must not meet. Rows are named by what they
        change of the defaults, so those of other defaults must not meet either.

        Raises:
            DataError: if OUT holds measurements of others.
        """
        folder, of = self.out / ("measured-quick" if self.quick else "measured"), self.title
        if self.root is not None:
            of = f"{of} in {self.root.resolve()}"
        defaults = hashlib.sha256(repr(PIRNConfig()).encode()).hexdigest()[:12]
        of = f"{of}, by protoad {protoad.__version__} with defaults {defaults}"
        mark = folder / "of.txt"
        if not mark.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_text(of, encoding="utf-8")
        found = mark.read_text(encoding="utf-8")
        if found != of:
            raise DataError(f"{self.out}: holds measurements of {found}, not {of}; choose another --out")
        return folder

    def chosen(self) -> tuple[str, ...]:
        """The categories.

        Raises:
            ConfigError: for an unknown synthetic part.
            DataError: if the root holds none.
        """
        if self.root is not None:
            return self.categories or tuple(list_prepared(self.root) or self.source.categories(self.root))
        unknown = sorted(set(self.categories) - set(PART_TYPES))
        if unknown:
            raise ConfigError(f"category: no synthetic part {unknown[0]!r}; there are {', '.join(PART_TYPES)}")
        return self.categories or (_QUICK_PARTS if self.quick else PART_TYPES)

    def pieces(self, shots: tuple[int | None, ...]) -> list[Piece]:
        """Seed after seed, so that what was measured when somebody stops it is whole."""
        return [Piece(c, k, s) for s in self.seeds for k in self.shots or shots for c in self.chosen()]

    def folder_of(self, piece: Piece) -> Path:
        """Gives the folder that holds the piece's category; synthetic parts are written if they are not there.

        Raises:
            ConfigError: if all of the synthetic parts are asked for: there is no end of them.
        """
        if self.root is not None:
            return self.root
        if piece.shots is None:
            raise ConfigError("shots: of synthetic parts there are as many as one likes; give numbers")
        train = max(10, piece.shots)
        counts = {"train": train, "test_good": 6, "test_per_defect": 1} if self.quick else {"train": train}
        name = f"{'quick' if self.quick else 'parts'}-{piece.seed}-{train}"
        folder = self.out / "synthetic" / name
        if not (folder / piece.category).is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                write_dataset(scratch, parts=(piece.category,), validation=0, seed=piece.seed, **counts)
                _move(Path(scratch) / piece.category, folder / piece.category)
        return folder

    def config(self, settings: Mapping[str, Any], seed: int) -> PIRNConfig:
        """The base with a line's own settings, and the weights of its encoder.

        Raises:
            ConfigError: for a value that is not allowed.
            EncoderError: if the weights are said to be random: nothing may be measured with those.
        """
        config = replace(self.base, **settings, seed=seed)
        weights = self._weights(config.encoder)
        if "weights=random" in config.encoder.split(",") or weights == "random":
            raise EncoderError(f"{config.encoder}: random weights measure nothing")
        return replace(config, weights=weights)

    def _weights(self, encoder: str) -> str | None:
        """The file for an encoder; None: its published weights, or it has none."""
        if not encoder.startswith("timm:") or self.weights is None:
            return None
        if not self.weights.is_dir():
            return str(self.weights) if encoder == self.base.encoder else None
        model = encoder.removeprefix("timm:").partition(",")[0]
        found = sorted(p for p in self.weights.iterdir() if p.name.startswith(model) and p.suffix in _WEIGHTS)
        return str(found[0]) if found else None


_WEIGHTS = (".safetensors", ".pth", ".bin")


def settings_of(config: PIRNConfig) -> str:
    """What a config changes of the defaults, seed and place of the weights apart: "assignment=softmax epochs=60"."""
    default = PIRNConfig()
    names = [spec.name for spec in fields(PIRNConfig) if spec.name not in ("seed", "weights")]
    changed = [name for name in names if getattr(config, name) != getattr(default, name)]
    return " ".join(f"{name}={getattr(config, name)}" for name in changed) or "default"


def _move(source: Path, target: Path) -> None:
    """Moves a folder; another process may have been faster, with the same content."""
    try:
        os.replace(source, target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(source, ignore_errors=True)
