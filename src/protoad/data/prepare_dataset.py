"""Preparing a whole data set into a cache: in parallel, and again only what is missing."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from protoad.data.dataset import Dataset
from protoad.data.files import PathLike
from protoad.data.prepare import PrepareSettings, prepare_and_explain
from protoad.data.prepared_cache import (
    MANIFEST,
    RECIPE,
    Manifest,
    StoredPart,
    check_manifest,
    part_path,
    read_part,
    settings_entry,
    write_manifest,
    write_part,
)
from protoad.data.registry import Source
from protoad.errors import ConfigError, DataError, ProtoadError

__all__ = ["Outcome", "prepare_dataset"]


class Outcome(NamedTuple):
    """What became of one part.

    Attributes:
        category: it belongs to.
        split: it belongs to.
        name: such as "test/good/000".
        defect: kind, "good" if none.
        label: 0 good, 1 defective, None if nobody knows.
        key: of its source files' content and the settings; empty if it failed.
        foreground: share of the pixels that are foreground.
        reason: what was taken for background, as `Foreground.reason`.
        made: False if the cache held it already.
        error: why it could not be prepared, or None.
    """

    category: str
    split: str
    name: str
    defect: str
    label: int | None
    key: str = ""
    foreground: float = 0.0
    reason: str = ""
    made: bool = True
    error: str | None = None


def prepare_dataset(
    source: Source,
    root: PathLike,
    out: PathLike,
    settings: Mapping[str, PrepareSettings],
    *,
    jobs: int = 1,
    on_part: Callable[[Outcome, int], object] | None = None,
) -> list[Outcome]:
    """Prepares categories into a cache, several parts at a time. What the cache holds already is kept.

    A part is made again when a byte of its source files has changed. One that cannot be read is left out and the
    others go on; an interruption leaves whole files only. With more than one job, processes are spawned: a script
    that calls this needs `if __name__ == "__main__":`.

    Args:
        source: data set and its options.
        root: the folder that holds the categories.
        out: the cache.
        settings: category -> settings.
        jobs: parts at a time, each in its own process with one thread; 1 stays in this one.
        on_part: called after each part with its outcome and the number of all parts.

    Returns:
        The outcomes in the order of categories, splits and parts; those with an `error` are not in the cache.

    Raises:
        DataError: if the data set cannot be listed, the cache was made with other settings (before anything is
            written), or a process dies.
        ConfigError: if `jobs` is below 1.
    """
    if jobs < 1:
        raise ConfigError(f"jobs: expected 1 or more, got {jobs}")
    root, out = Path(root), Path(out)
    for category, wanted in settings.items():
        check_manifest(out / category, source, wanted)
    tasks: dict[str, list[_Task]] = {}
    made: dict[str, Manifest] = {}
    for category, wanted in settings.items():
        tasks[category] = _list_tasks(source, root, category, out, wanted)
        split = next(iter(_open(source, root, category).values()))
        made[category] = Manifest(source, split.unit, split.camera, wanted, {})
    total = sum(map(len, tasks.values()))
    outcomes: list[Outcome] = []
    with _workers(jobs, total) as run:
        results = iter(run(_prepare_part, [task for group in tasks.values() for task in group]))
        for category, group in tasks.items():
            # before the first part: whoever comes next knows the settings, even if this run is cut short
            if not (out / category / MANIFEST).is_file():
                write_manifest(out / category, made[category])
            done = []
            for _ in group:
                done.append(_next(results))
                if on_part is not None:
                    on_part(done[-1], total)
            write_manifest(out / category, made[category]._replace(splits=_by_split(done)))
            outcomes += done
    return outcomes


class _Task(NamedTuple):
    source: Source
    root: Path
    number: int
    out: Path
    settings: PrepareSettings
    outcome: Outcome  # as far as it is known beforehand


@lru_cache(maxsize=4)
def _open(source: Source, root: Path, category: str) -> dict[str, Dataset]:
    """The splits that a category has."""
    return source.splits(root, category)


def _list_tasks(source: Source, root: Path, category: str, out: Path, settings: PrepareSettings) -> list[_Task]:
    _open.cache_clear()  # it serves the many calls of a worker; the folder may have changed since another run
    return [
        _Task(source, root, index, out, settings, Outcome(category, split, part.name, part.defect, label))
        for split, parts in _open(source, root, category).items()
        for index, (part, label) in enumerate(zip(parts.parts, _labels(parts), strict=True))
    ]


def _labels(parts: Dataset) -> list[int] | list[None]:
    return parts.labels if parts.labelled else [None] * len(parts)


@contextmanager
def _workers(jobs: int, tasks: int) -> Iterator[Callable[..., Iterable[Outcome]]]:
    """A map over tasks, in this process or in several."""
    if min(jobs, tasks) <= 1:
        yield map
        return
    # spawn: a forked child may inherit torch's threads in a state that hangs
    pool = ProcessPoolExecutor(min(jobs, tasks), mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent: a worker ends its part and stops
    torch.set_num_threads(1)


def _next(results: Iterator[Outcome]) -> Outcome:
    try:
        return next(results)
    except BrokenProcessPool:
        raise DataError(
            "a process that prepared parts died, perhaps for want of memory; run the same command again with fewer "
            "jobs: what is done is kept"
        ) from None


def _prepare_part(task: _Task) -> Outcome:
    """Prepares a part into its file, unless that is there and came from the same bytes and settings."""
    outcome = task.outcome
    path = part_path(task.out, outcome.category, outcome.name)
    try:
        parts = _open(task.source, task.root, outcome.category)[outcome.split]
        key = _content_key(parts.files(task.number), task.source, task.settings)
        stored = _kept(path, key)
        made = stored is None
        if stored is None:
            stored = StoredPart(*prepare_and_explain(parts[task.number], task.settings), key)
            write_part(path, stored)
    except ProtoadError as error:
        return outcome._replace(error=str(error))
    except Exception as error:  # whatever a damaged file makes a library raise: the other parts go on
        return outcome._replace(error=f"{outcome.name}: {type(error).__name__}: {error}")
    share = float(stored.part.foreground.float().mean())
    return outcome._replace(key=key, foreground=share, reason=stored.reason, made=made)


def _content_key(files: Mapping[str, Path], source: Source, settings: PrepareSettings) -> str:
    """One digest of what goes into a prepared part: its files' bytes, how they are read, the settings, the recipe."""
    digest = hashlib.sha256(json.dumps([RECIPE, source, settings_entry(settings)]).encode())
    for kind, path in sorted(files.items()):
        digest.update(kind.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _kept(path: Path, key: str) -> StoredPart | None:
    """What the cache holds, unless it is missing, damaged or of another key."""
    try:
        stored = read_part(path)
    except DataError:
        return None
    return stored if stored.key == key else None


def _by_split(outcomes: Iterable[Outcome]) -> dict[str, list[dict[str, Any]]]:
    """What a manifest says of the parts."""
    splits: dict[str, list[dict[str, Any]]] = {}
    for outcome in outcomes:
        entry = outcome._asdict()
        for elsewhere in ("category", "split", "made"):
            del entry[elsewhere]
        splits.setdefault(outcome.split, []).append(entry)
    return splits
