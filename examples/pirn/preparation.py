"""`pirn prepare`: a whole data set through normals and foreground once, and a picture of what was removed."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pirn.pictures import to_picture
from protoad.data import (
    EVERYTHING_KEPT,
    Outcome,
    PreparedSet,
    PrepareSettings,
    Source,
    plane_distance,
    prepare_dataset,
    write_rgb,
)
from protoad.errors import ConfigError, DataError
from protoad.viz import GridRow, foreground_overlay, sample_grid

__all__ = ["parse_distances", "prepare_all"]

_ROWS = 8  # parts in the picture of a category
_SECONDS_BETWEEN_LINES = 10.0


def prepare_all(source: Source, root: Path, out: Path, settings: Mapping[str, PrepareSettings], *, jobs: int) -> None:
    """Prepares categories into a cache and writes OUT/CATEGORY/foreground.png for a person to look at.

    Raises:
        DataError: at the end, if a part could not be prepared; names the first and counts the others.
    """
    progress = _Progress()
    try:
        outcomes = prepare_dataset(source, root, out, settings, jobs=jobs, on_part=progress)
    finally:
        progress.close()
    for category in settings:
        mine = [outcome for outcome in outcomes if outcome.category == category]
        print(f"{category}: {_summary(mine)} -> {out / category}")
        _write_picture(out, category, mine)
    failed = [outcome for outcome in outcomes if outcome.error]
    if failed:
        raise DataError(
            f"{len(failed)} of {len(outcomes)} parts could not be prepared, the first of them "
            f"{failed[0].category}/{failed[0].name}; mend or remove them and run the same command again"
        )


def _summary(outcomes: Sequence[Outcome]) -> str:
    failed = sum(outcome.error is not None for outcome in outcomes)
    kept = sum(not outcome.made for outcome in outcomes)
    whole = sum(outcome.reason.startswith(EVERYTHING_KEPT) for outcome in outcomes)
    return (
        f"{len(outcomes) - kept - failed} parts prepared, {kept} there from before, {failed} failed; "
        f"nothing was removed from {whole}"
    )


def parse_distances(given: Sequence[str] | None, categories: Sequence[str]) -> dict[str, float]:
    """Category -> metres, from "0.004" for all and "NAME=0.002" for one; else as the field has it.

    Raises:
        ConfigError: for a number that isn't one, or a category that isn't prepared.
    """
    distances = {category: plane_distance(category) for category in categories}
    for text in sorted(given or (), key=lambda text: "=" in text):  # what is said of one category goes first
        name, _, number = text.rpartition("=")
        if "=" in text and name not in distances:
            raise ConfigError(f"--plane-distance {text}: {name!r} is not among {', '.join(categories)}")
        try:
            metres = float(number)
        except ValueError:
            metres = 0.0
        if not 0 < metres < np.inf:
            raise ConfigError(f"--plane-distance {text}: expected metres above 0, as in 0.005 or dowel=0.002")
        distances |= dict.fromkeys([name] if name else categories, metres)
    return distances


def _write_picture(out: Path, category: str, outcomes: Sequence[Outcome]) -> None:
    """Draws the parts with the least and the most foreground and some between: what went wrong is at the ends."""
    done = sorted((outcome for outcome in outcomes if not outcome.error), key=lambda o: (o.foreground, o.name))
    if not done:
        return
    chosen = [done[i] for i in dict.fromkeys(np.linspace(0, len(done) - 1, _ROWS).round().astype(int).tolist())]
    titles = {"rgb": "RGB", "normals": "Kept", "mask": "Foreground"}
    rows = [_row(PreparedSet(out, category, outcome.split), outcome) for outcome in chosen]
    write_rgb(out / category / "foreground.png", sample_grid(rows, columns=list(titles), titles=titles))


def _row(parts: PreparedSet, outcome: Outcome) -> GridRow:
    part = parts[parts.names.index(outcome.name)]
    rgb, foreground = to_picture(part.rgb), part.foreground.numpy()
    label = [outcome.name, f"{outcome.foreground:.1%} of the frame", *textwrap.wrap(outcome.reason, 30)]
    return GridRow("\n".join(label), rgb, normals=foreground_overlay(rgb, foreground), mask=foreground)


class _Progress:
    """A bar on a terminal, a line now and then elsewhere; parts that fail are named at once."""

    def __init__(self) -> None:
        self._start = self._last_line = time.monotonic()
        self._done = 0
        self._bar: Any = None

    def __call__(self, outcome: Outcome, total: int) -> None:
        self._done += 1
        if self._done == 1:
            self._bar = _bar(total)
        if outcome.error:
            self._say(f"{outcome.category}/{outcome.name}: {outcome.error}")
        if self._bar is not None:
            self._bar.update()
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES or self._done == total:
            self._last_line = now
            rate = self._done / max(now - self._start, 1e-9)
            minutes, seconds = divmod(round((total - self._done) / rate), 60)
            self._say(f"{self._done} of {total} parts, {rate:.1f} per second, {minutes} min {seconds} s left")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _say(self, line: str) -> None:
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)


def _bar(total: int) -> Any:
    """A bar with the time left; None where nobody looks at it, or tqdm is missing."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, desc="preparing", unit="part", smoothing=0.1)
