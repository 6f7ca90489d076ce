"""Are good parts rejected more often when an image or some depth is missing, and what is still found?

Detectors of synthetic parts are trained on ten shots and calibrated with 39 further good parts. Test parts then come
without their depth, without their colours, and with holes over a fifth to three fifths of them: of the two kinds that
are calibrated with, and of two that are not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pirn.calibrating import calibrate_category
from pirn.config import PIRNConfig
from pirn.experiment import train_category
from pirn.inspector import Inspector
from pirn.studies.rows import Row, Rows, mean_and_deviation
from protoad.data import Dataset, Sample, foreground_mask, lose_depth, write_dataset
from protoad.metrics import image_auroc

__all__ = ["run"]

_RATE = 0.05
_SHARES = (0.2, 0.4, 0.6)
_SETTINGS = {"as they are": False, "filled": True}
_Holes = Callable[[Sample, float, int], Sample]


def _stripes(sample: Sample, share: float, seed: int) -> Sample:
    """Without depth along lines, as where light is scattered."""
    rng = np.random.default_rng(seed)
    part = foreground_mask(sample.xyz)
    lost, (height, width) = np.zeros_like(part), part.shape
    y, x = np.ogrid[:height, :width]
    while (lost & part).sum() < share * part.sum():
        angle, (down, right) = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8, size=2)
        lost |= np.abs((x - right * width) * np.cos(angle) + (y - down * height) * np.sin(angle)) < rng.uniform(1, 6)
    return _without(sample, lost)


def _side(sample: Sample, share: float, seed: int) -> Sample:
    """Without depth on one side, as in a shadow."""
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    y, x = np.indices(sample.mask.shape)
    along = x * np.cos(angle) + y * np.sin(angle)
    return _without(sample, along < np.quantile(along[foreground_mask(sample.xyz)], share))


def _without(sample: Sample, lost: np.ndarray) -> Sample:
    xyz = sample.xyz.copy()
    xyz[lost] = np.nan
    return replace(sample, xyz=xyz)


_HOLES: dict[str, _Holes] = {
    "specks": lambda sample, share, seed: lose_depth(sample, share, "specks", seed=seed),
    "blobs": lambda sample, share, seed: lose_depth(sample, share, "blobs", seed=seed),
    "stripes": _stripes,
    "side": _side,
}


def run(out: Path, *, seeds: Sequence[int] = range(5), quick: bool = False) -> None:
    """Measures what missing images and holes do to the decisions; goes on with what is in OUT already.

    Writes OUT/missing.csv, a row per seed, part and way to come, and OUT/missing.md.

    Args:
        out: folder to write to.
        seeds: of parts, shots and training.
        quick: one part, few images, the first seed: no result.
    """
    name = "missing-quick" if quick else "missing"
    rows = Rows(out / f"{name}.csv", key=("seed", "part", "holes"))
    parts = ("cookie",) if quick else ("cookie", "tile", "gland")
    with tempfile.TemporaryDirectory() as scratch:
        cells = [
            (seed, part, holes) for part in parts for seed in (seeds[:1] if quick else seeds) for holes in _SETTINGS
        ]
        for seed, part, holes in rows.to_do(cells):
            config = PIRNConfig(seed=seed, fill_holes=_SETTINGS[holes])
            inspector, test = _calibrated(Path(scratch) / str(seed), part, config, quick=quick)
            rows.add([{"seed": seed, "part": part, "holes": holes, **row} for row in _measure(inspector, test)])
    (out / f"{name}.md").write_text(_table(rows.found), encoding="utf-8")
    print(f"table: {out / name}.md   rows: {rows.path}")


def _calibrated(root: Path, part: str, config: PIRNConfig, *, quick: bool) -> tuple[Inspector, Dataset]:
    held_out, good, each = (19, 4, 1) if quick else (39, 20, 4)
    counts = {"train": 10, "validation": held_out, "test_good": good, "test_per_defect": each}
    if not (root / part).exists():
        write_dataset(root, parts=(part,), seed=config.seed, **counts)
    pirn, _ = train_category(config, root, part, 10)
    calibrate_category(pirn, root, _RATE, force=False)
    return Inspector(pirn), pirn.source.open(root, part, "test")


def _measure(inspector: Inspector, test: Dataset) -> list[Row]:
    ways: dict[str, Callable[[Sample, int], tuple[np.ndarray | None, np.ndarray | None]]] = {
        "everything": lambda sample, _: (sample.rgb, sample.xyz),
        "no depth": lambda sample, _: (sample.rgb, None),
        "no colour": lambda sample, _: (None, sample.xyz),
    }
    for kind, holes in _HOLES.items():
        for share in _SHARES:
            ways[f"{kind} {share:.0%}"] = lambda sample, index, holes=holes, share=share: (  # type: ignore[misc]
                sample.rgb,
                holes(sample, share, 1000 + index).xyz,
            )
    labels = np.array(test.labels)
    found = []
    for way, come in ways.items():
        inspections = [inspector(*come(test[index], index), name=str(index)) for index in range(len(test))]
        rejected = np.array([one.verdict is not None and one.verdict.reject for one in inspections])
        scores = np.array([one.score for one in inspections])
        found.append(
            {
                "way": way,
                "false rejects": rejected[labels == 0].mean(),
                "found": rejected[labels == 1].mean(),
                "image AUROC": image_auroc(scores, labels),
                "depth lost": np.mean([one.lost for one in inspections]),
            }
        )
    return found


def _table(rows: Sequence[Row]) -> str:
    columns = ("false rejects", "found", "image AUROC")
    headings = [f"{column}, {holes}" for column in columns for holes in _SETTINGS]
    lines = [f"| what came | {' | '.join(headings)} |", f"| --- |{' --- |' * len(headings)}"]
    for way in dict.fromkeys(row["way"] for row in rows):
        cells = []
        for column in columns:
            for holes in _SETTINGS:
                cells.append(mean_and_deviation([r[column] for r in rows if (r["way"], r["holes"]) == (way, holes)]))
        lines.append(f"| {way} | {' | '.join(cells)} |")
    detectors = len({(row["seed"], row["part"]) for row in rows})
    foot = (
        f"Mean ± deviation over {detectors} detectors, with holes left as they are and filled (`--fill-holes`); "
        f"{_RATE:.0%} false rejects were asked for."
    )
    return "\n".join([*lines, "", foot, ""])
