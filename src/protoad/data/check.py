"""Reading a whole data set without learning from it, to find out what is in it and what is wrong with it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protoad.data.dataset import Dataset, MissingSplitError, Part, suspect_millimetres
from protoad.data.files import PathLike
from protoad.data.registry import dataset_class
from protoad.data.sample import Sample
from protoad.errors import DataError

__all__ = ["Findings", "Problem", "SplitFindings", "check_dataset"]

_MOSTLY_INVALID = 0.99  # of the pixels
_OUTLIER = 20.0  # times the typical distance: no part is that deep, but a number that stands for "nothing" is
_FEW = 100  # parts read sooner than processes start
_CHUNK = 4  # parts sent to a process at a time


class Problem(NamedTuple):
    """What is wrong with a file or folder."""

    category: str
    split: str
    file: str
    reason: str


class SplitFindings(NamedTuple):
    """What one split of a category holds.

    Attributes:
        defects: kind of defect -> number of parts.
        sizes: such as "400 x 400" -> number of parts.
        invalid: smallest, median and largest share of pixels without a point; None if no part could be read.
    """

    category: str
    split: str
    parts: int
    defects: dict[str, int]
    sizes: dict[str, int]
    invalid: tuple[float, float, float] | None


class Findings(NamedTuple):
    """What `check_dataset` found; `notes` are what is worth knowing and not wrong."""

    dataset: str
    root: str
    options: dict[str, Any]
    splits: list[SplitFindings]
    notes: list[str]
    problems: list[Problem]


class _Look(NamedTuple):
    """What one part told."""

    size: str | None
    invalid: float | None
    millimetres: str | None
    problems: list[tuple[Path, str]]
    digests: dict[Path, str]


def check_dataset(
    name: str,
    root: PathLike,
    categories: Sequence[str] | None = None,
    *,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Findings:
    """Reads every file of a data set and tells all that is wrong, not only the first thing. Writes nothing.

    Beside what a reader refuses, it finds empty masks of defective parts, clouds that are nearly empty, exactly flat
    or full of a number that stands for "nothing", millimetres for metres, and files that are the same byte for byte.

    Args:
        name: of the data set, as for `open_dataset`.
        root: the folder that holds the categories.
        categories: to look at; None: all.
        jobs: processes that read; None: one per core, or this one alone if there is little to read.
        progress: called with the number of parts read and of all parts.
        options: of the data set.

    Raises:
        ConfigError: for an unknown name or option.
        DataError: if there is no such folder or category, or nothing in it.
    """
    kind = dataset_class(name)
    if categories is None:
        chosen = kind.categories(root, **options)
    else:
        chosen = [kind.find_category(root, category, **options) for category in categories]
    if not chosen:
        raise DataError(f"{root}: holds no category of {kind.title}; is that the right folder and --dataset?")
    problems: list[Problem] = []
    notes: list[str] = []
    datasets = [d for category in chosen for d in _open_splits(kind, root, category, options, problems, notes)]
    tasks = [(i, j) for i, dataset in enumerate(datasets) for j in range(len(dataset))]
    looks: dict[int, list[_Look]] = {i: [] for i in range(len(datasets))}
    if jobs is None:
        jobs = 1 if len(tasks) < _FEW else os.cpu_count() or 1
    for done, ((i, _), look) in enumerate(zip(tasks, _look_at_all(datasets, tasks, jobs), strict=True), 1):
        looks[i].append(look)
        if progress is not None:
            progress(done, len(tasks))
    splits = [_sum_up(dataset, looks[i], problems) for i, dataset in enumerate(datasets)]
    for category in dict.fromkeys(dataset.category for dataset in datasets):
        same = [i for i, dataset in enumerate(datasets) if dataset.category == category]
        problems += _twins([(datasets[i], look) for i in same for look in looks[i]])
    return Findings(name, str(root), dict(options), splits, notes, [Problem(*map(_printable, p)) for p in problems])


def _open_splits(
    kind: type[Dataset],
    root: PathLike,
    category: str,
    options: dict[str, Any],
    problems: list[Problem],
    notes: list[str],
) -> list[Dataset]:
    """The splits that a category has; what is missing or superfluous in them goes to `problems`."""
    found: list[Dataset] = []
    absent: list[str] = []
    for split in kind.splits:
        before = len(problems)

        def report(path: Path, reason: str, split: str = split) -> None:
            if not any((str(path), reason) == problem[2:] for problem in problems):
                problems.append(Problem(category, split, str(path), reason))

        try:
            dataset = kind(root, category, split, report=report, **options)
        except MissingSplitError:
            absent.append(split)
            continue
        except DataError as error:  # such as a list of parts that cannot be read, the same for all splits
            report(*_split_message(error))
            continue
        if not dataset.parts and len(problems) == before:
            report(Path(root) / category, f"its {split} split is there, but holds no part")
        found.append(dataset)
        notes += [f"{category}, {split}: {note}" for note in dataset.notes]
    if len(absent) == len(kind.splits):
        problems.append(Problem(category, "", str(root), f"{category} has none of the splits {', '.join(absent)}"))
    if absent and found:
        notes.append(f"{category}: there is no {' and no '.join(absent)} split")
    return found


def _look_at_all(datasets: list[Dataset], tasks: list[tuple[int, int]], jobs: int) -> Iterator[_Look]:
    if jobs == 1:
        yield from (look_at(datasets[i], datasets[i].parts[j]) for i, j in tasks)
        return
    # spawn: a forked child may inherit torch's threads in a state that hangs
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_hold, initargs=(datasets,)) as pool:
        try:
            yield from pool.map(_look_at_task, tasks, chunksize=_CHUNK)
        except BrokenProcessPool as error:
            raise DataError("a process that read files was killed, for want of memory perhaps; try --jobs 1") from error


_HELD: list[Dataset] = []  # in a process of the pool: what its tasks count into


def _hold(datasets: list[Dataset]) -> None:
    _HELD[:] = datasets


def _look_at_task(task: tuple[int, int]) -> _Look:
    return look_at(_HELD[task[0]], _HELD[task[0]].parts[task[1]])


def look_at(dataset: Dataset, part: Part) -> _Look:
    """Reads one part, file by file, so that one broken file doesn't hide another."""
    problems: list[tuple[Path, str]] = []
    arrays: dict[str, Any] = {}
    sample: Sample | None = None
    for kind, path in part.files.items():
        try:
            arrays[kind] = dataset.decode(kind, path)
        except DataError as error:
            problems.append((path, str(error).removeprefix(f"{path}: ")))
    if not problems:
        try:
            sample = dataset.assemble(part, arrays)
        except DataError as error:
            problems.append(_split_message(error))
    clouds = _clouds(part)
    digests = {path: _digest(path) for path in (part.files["rgb"], *clouds) if os.path.isfile(path)}
    if sample is None:
        return _Look(None, None, None, problems, digests)
    if sample.label and "mask" in part.files and not sample.mask.any():
        problems.append((part.files["mask"], "outlines nothing, but the part counts as defective"))
    distance = np.linalg.norm(sample.xyz.astype(np.float64), axis=-1)
    problems += [(clouds[0], reason) for reason in _oddities(sample.xyz, distance)]
    millimetres = suspect_millimetres(sample.xyz)
    return _Look(_size(arrays), float(np.isnan(distance).mean()), millimetres, problems, digests)


def _clouds(part: Part) -> list[Path]:
    """The file that holds the part's geometry."""
    return [part.files[kind] for kind in ("xyz", "depth") if kind in part.files]


def _oddities(xyz: np.ndarray, distance: np.ndarray) -> Iterator[str]:
    valid = np.isfinite(distance)
    if valid.mean() < 1 - _MOSTLY_INVALID:
        yield f"has {valid.sum()} valid points among {valid.size} pixels; scan the part again"
    depths = xyz[..., 2][valid]
    if valid.sum() > 1 and depths.min() == depths.max():
        yield f"is exactly flat, every z is {depths[0]:g}; is it a measurement?"
    far = distance[valid] > _OUTLIER * np.median(distance[valid])
    if far.any():
        yield (
            f"has {far.sum()} points more than {_OUTLIER:g} times as far as usual, up to {distance[valid].max():.4g}; "
            "if that stands for 'nothing here', write 0 or NaN"
        )


def _size(arrays: dict[str, Any]) -> str:
    """Such as "400 x 400", the cloud's too if it differs."""
    sizes = [array.shape[1::-1] for array in (arrays[kind] for kind in ("rgb", "xyz", "depth") if kind in arrays)]
    texts = [f"{width} x {height}" for width, height in sizes]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]}, cloud {texts[1]}"


def _split_message(error: DataError) -> tuple[Path, str]:
    """The file that an error names first, and what it says of it."""
    path, _, reason = str(error).partition(": ")
    return Path(path), reason


def _printable(text: str) -> str:
    """A name that isn't text, as a disk may hold it, with its odd bytes spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sum_up(dataset: Dataset, looks: list[_Look], problems: list[Problem]) -> SplitFindings:
    """The figures of a split; appends its problems."""
    for look in looks:
        problems += [Problem(dataset.category, dataset.split, str(path), reason) for path, reason in look.problems]
    far = [(part, look) for part, look in zip(dataset.parts, looks, strict=True) if look.millimetres is not None]
    if far:
        more = f" (and {len(far) - 1} more)" if len(far) > 1 else ""
        (path, reason) = _clouds(far[0][0])[0], str(far[0][1].millimetres)
        problems.append(Problem(dataset.category, dataset.split, f"{path}{more}", reason))
    shares = [look.invalid for look in looks if look.invalid is not None]
    return SplitFindings(
        category=dataset.category,
        split=dataset.split,
        parts=len(dataset),
        defects=dict(Counter(dataset.defects)),
        sizes=dict(Counter(look.size for look in looks if look.size is not None)),
        invalid=(min(shares), float(np.median(shares)), max(shares)) if shares else None,
    )


def _twins(looks: Iterable[tuple[Dataset, _Look]]) -> list[Problem]:
    """Files of a category that are the same byte for byte."""
    first: dict[str, tuple[str, Path]] = {}
    problems = []
    for dataset, look in looks:
        for path, digest in look.digests.items():
            split, other = first.setdefault(digest, (dataset.split, path))
            if other != path:
                leak = "" if split == dataset.split else f", which is in {split}: one of them is in the wrong split"
                reason = f"is the same, byte for byte, as {other}{leak}"
                problems.append(Problem(dataset.category, dataset.split, str(path), reason))
    return problems
