"""`pirn train`: one category or many, each trained once, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from pirn.config import PIRNConfig
from pirn.detector import CHECKPOINT_NAME, PIRNDetector, clear_snapshot
from pirn.experiment import choose_shots, source_of, train_category
from pirn.processes import run_each
from protoad.data import Source
from protoad.distributed import Group, from_first, is_first
from protoad.encoders import FeatureCache
from protoad.errors import CheckpointError, ProtoadError, TrainingError

__all__ = ["TrainJob", "fail_after", "train_all"]


_SHOWN = {"loss": 4, "leak": 3}  # digits


class TrainJob(NamedTuple):
    """One category to train; the fields are those of the command line."""

    category: str
    config: PIRNConfig
    root: Path
    shots: int | None
    source: Source
    cache: Path | None
    out: Path
    device: torch.device
    retrain: bool


class Trained(NamedTuple):
    """What came of it; `seconds` is None for one that was there already."""

    shots: int
    history: list[dict[str, float]]
    seconds: float | None


def train_all(jobs: Sequence[TrainJob], *, workers: int | None = None, process_group: Group = None) -> None:
    """Trains every category that is not trained yet, prints a line for each, and a table if there are several.

    Args:
        jobs: one per category.
        workers: processes, each training another category; None: this one.
        process_group: processes that train each category together. An error then ends all.

    Raises:
        ProtoadError: if categories failed, after the others are done.
    """
    trained: Iterable[Trained | ProtoadError]
    if process_group is not None:
        trained = (train_one(job, process_group) for job in jobs)
    else:
        trained = run_each(train_one, jobs, workers=workers, device=jobs[0].device)
    outcomes: dict[str, Trained | ProtoadError] = {}
    for job, outcome in zip(jobs, trained, strict=True):
        outcomes[job.category] = outcome
        if isinstance(outcome, Trained) and is_first(process_group):
            print(f"{job.category}: {_in_words(outcome)} -> {_path(job)}", flush=True)
    if len(jobs) > 1 and is_first(process_group):
        print(f"\n{_table(outcomes)}")
    fail_after(outcomes)


def fail_after(outcomes: Mapping[str, object]) -> None:
    """Raises what went wrong with some of several categories; of a single one, its own error."""
    errors = {category: error for category, error in outcomes.items() if isinstance(error, ProtoadError)}
    if errors and len(outcomes) == 1:
        raise next(iter(errors.values()))
    if errors:
        reasons = "".join(f"\n  {category}: {error}" for category, error in errors.items())
        rest = ", the others are done and kept" if len(errors) < len(outcomes) else ""
        raise ProtoadError(f"{len(errors)} of {len(outcomes)} categories failed{rest}:{reasons}")


def train_one(job: TrainJob, process_group: Group = None) -> Trained:
    """Trains a category and writes its checkpoint, unless the same is there already.

    Raises:
        CheckpointError: if another training's checkpoint is in the way, or nothing can be written.
        ProtoadError: as `train_category`.
    """
    kept = from_first(_kept(job) if is_first(process_group) else None, process_group)
    if kept is not None:
        return kept
    start, folder = time.monotonic(), job.out / job.category
    try:
        pirn, _ = train_category(
            job.config,
            job.root,
            job.category,
            job.shots,
            source=job.source,
            cache=FeatureCache(job.cache),
            folder=folder,
            device=job.device,
            process_group=process_group,
        )
    except TrainingError:
        clear_snapshot(folder)  # going on from there would end in the same
        raise
    if is_first(process_group):
        pirn.save(folder)
    return Trained(len(pirn.shots), list(pirn.model.history), time.monotonic() - start)


def _kept(job: TrainJob) -> Trained | None:
    """What an earlier run made of the same settings, shots and seed; None if there is nothing, or it is not wanted.

    Raises:
        CheckpointError: if what is there came of something else.
    """
    path = _path(job)
    if job.retrain or not path.is_file():
        return None
    pirn = PIRNDetector.load(path.parent)
    train_set, chosen = choose_shots(job.config, job.root, job.category, job.shots, source=job.source)
    shots = [train_set.names[index] for index in chosen]
    asked = {**asdict(job.config), "source": source_of(train_set, job.source)}
    found = {**asdict(pirn.config), "source": pirn.source}
    other = [f"{name} {found[name]}, not {value}" for name, value in asked.items() if found[name] != value]
    if pirn.shots != shots:
        other.append(f"{len(pirn.shots)} shots, not these {len(shots)}")
    if other:
        raise CheckpointError(
            f"{path}: comes of other settings ({'; '.join(other)}); --retrain replaces it, another --out keeps it"
        )
    return Trained(len(pirn.shots), list(pirn.model.history), None)


def _path(job: TrainJob) -> Path:
    return job.out / job.category / CHECKPOINT_NAME


def _in_words(trained: Trained) -> str:
    last = trained.history[-1] if trained.history else {}  # a memory bank is not trained
    figures = [f"{name} {last[name]:.{digits}f}" for name, digits in _SHOWN.items() if name in last]
    text = ", ".join([f"{trained.shots} shots", f"{len(trained.history)} epochs", *figures])
    if trained.seconds is None:
        return f"{text}, trained before with the same settings and shots, kept"
    shown = [f"{name} {value:.3f}" for name, value in last.items() if name.startswith(("gate", "displacement"))]
    return ", ".join([text, *shown])


def _table(outcomes: Mapping[str, Trained | ProtoadError]) -> str:
    """A row per category, columns aligned."""
    rows: list[tuple[str, ...]] = [("category", "shots", "epochs", "loss", "leak", "time")]
    rows += [_row(category, outcome) for category, outcome in outcomes.items()]
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(first), *(text.rjust(width) for text, width in zip(figures, others, strict=True))])
        for name, *figures in rows
    )


def _row(category: str, outcome: Trained | ProtoadError) -> tuple[str, ...]:
    if isinstance(outcome, ProtoadError):
        return category, "-", "-", "-", "-", "failed"
    last = outcome.history[-1] if outcome.history else {}
    seconds = "kept" if outcome.seconds is None else f"{outcome.seconds:.0f} s"
    return (
        category,
        str(outcome.shots),
        str(len(outcome.history)),
        *(f"{last[name]:.{digits}f}" if name in last else "-" for name, digits in _SHOWN.items()),
        seconds,
    )
