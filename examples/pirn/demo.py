"""`pirn demo`: synthetic parts, ten good ones each, a table beside the yardsticks, and pictures."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from pirn.config import PIRNConfig
from pirn.experiment import evaluate, open_test, train_category
from pirn.pictures import Gallery, Highlight, highlight, write_grid, write_overview
from pirn.processes import run_each
from protoad.data import DEFECT_TYPES, PART_TYPES, write_dataset
from protoad.errors import ConfigError, DataError, ProtoadError
from protoad.metrics import DetectionMetrics
from protoad.report import format_table, summarise, write_json

__all__ = ["run_demo"]

_SHOTS = 10
_MARKER = "made-by-pirn-demo"


class _Job(NamedTuple):
    part: str
    out: Path
    config: PIRNConfig
    test_good: int
    test_per_defect: int


def run_demo(out: Path, *, seed: int = 0, quick: bool = False, jobs: int | None = None) -> dict[str, dict]:
    """Makes the parts, trains on ten good ones of each, evaluates, and writes what it found.

    Args:
        out: folder for data/, PART/checkpoint.safetensors, PART.png, overview.png and metrics.json.
        seed: of the parts, the shots and the training.
        quick: two parts and fewer test images.
        jobs: parts handled at a time, each in its own process; None: one per core.

    Returns:
        What metrics.json holds.

    Raises:
        ConfigError: if `jobs` is below 1 or `seed` below 0.
        DataError: if `out` cannot be written, or holds a data/ that no demo made.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs: expected 1 or more, got {jobs}")
    config = PIRNConfig(seed=seed)
    parts = PART_TYPES[:2] if quick else PART_TYPES
    good, per_defect = (6, 2) if quick else (20, 4)
    todo = [_Job(part, out, config, good, per_defect) for part in parts]
    jobs = min(len(parts), jobs or os.cpu_count() or 1)
    _clear_data(out / "data")
    print(f"learning {len(parts)} synthetic parts from {_SHOTS} good ones each, {jobs} at a time ...", flush=True)
    per_method: dict[str, dict[str, DetectionMetrics]] = {}
    highlights: dict[str, Highlight] = {}
    # one core, too, works in a process of its own, with one thread: the same numbers on every machine
    for job, outcome in zip(todo, run_each(_run, todo, workers=jobs, device=torch.device("cpu")), strict=True):
        if isinstance(outcome, ProtoadError):
            raise outcome
        metrics, row = outcome
        print(
            f"  {job.part}: image AUROC {metrics['pirn'].image_auroc:.3f}, AUPRO {metrics['pirn'].aupro:.3f}",
            flush=True,
        )
        highlights[job.part] = row
        for method, values in metrics.items():
            per_method.setdefault(method, {})[job.part] = values
    results = {method: summarise(values) for method, values in per_method.items()}
    write_json(out / "metrics.json", results)
    write_overview(out / "overview.png", highlights)
    print(f"\n{format_table(results)}\n\npictures: {out}/overview.png and one per part   figures: {out}/metrics.json")
    return results


def _clear_data(folder: Path) -> None:
    """Makes room for new scenes, removing those of an earlier demo and nothing else.

    Raises:
        DataError: if the folder holds something no demo wrote.
    """
    if folder.exists() and not (folder / _MARKER).is_file():
        raise DataError(f"{folder}: exists, and no demo made it; choose another --out")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        (folder / _MARKER).touch()
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from None


def _run(job: _Job) -> tuple[dict[str, DetectionMetrics], Highlight]:
    """One part, from its scenes to its metrics."""
    write_dataset(
        job.out / "data",
        parts=(job.part,),
        train=_SHOTS,
        validation=0,
        test_good=job.test_good,
        test_per_defect=job.test_per_defect,
        seed=job.config.seed,
    )
    pirn, shots = train_category(job.config, job.out / "data", job.part, _SHOTS)
    pirn.save(job.out / job.part)
    gallery = Gallery()
    metrics = evaluate(pirn, open_test(job.config, job.out / "data", job.part), shots, gallery)
    write_grid(job.out / f"{job.part}.png", pirn.detector, gallery)
    # another kind of defect for each part, so that the overview shows them all
    defect = DEFECT_TYPES[PART_TYPES.index(job.part) % len(DEFECT_TYPES)]
    return metrics, highlight(pirn.detector, gallery, defect=defect)
