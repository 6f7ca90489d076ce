"""Rows of a study in a CSV, kept as they are measured, so that an interrupted study goes on."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from protoad.errors import DataError
from protoad.report import write_csv

__all__ = ["Row", "Rows", "mean_and_deviation"]

Row = dict[str, Any]


class Rows:
    """What was measured so far.

    Args:
        path: of the CSV.
        key: columns whose values name a piece of work, all of whose rows are added at once.
        text: columns that are never numbers, whatever they look like.

    Raises:
        DataError: if the file there holds something else.
    """

    def __init__(self, path: Path, key: tuple[str, ...], *, text: tuple[str, ...] = ()) -> None:
        self.path, self.key = path, key
        self.found: list[Row] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self.found = [{name: cell if name in text else _value(cell) for name, cell in row.items()} for row in rows]
        if any(not set(key) <= row.keys() for row in self.found):
            raise DataError(f"{path}: holds no rows of this study; move it away, or choose another --out")

    def to_do(self, pieces: Sequence[tuple[Any, ...]], *, title: str = "") -> Iterator[tuple[Any, ...]]:
        """Gives the pieces of work that have no rows yet, and tells how long it will take; `title` says what of."""
        done = {tuple(row[name] for name in self.key) for row in self.found}
        left = [piece for piece in pieces if piece not in done]
        start = time.monotonic()
        for number, piece in enumerate(left, start=1):
            yield piece
            minutes = (time.monotonic() - start) / number * (len(left) - number) / 60
            named = ", ".join(f"{n} {value}" for n, value in zip(self.key, piece, strict=True) if value != "")
            start_of_line = f"{title}: " if title else ""
            print(f"{start_of_line}{number} of {len(left)}: {named}; about {minutes:.0f} min left", flush=True)

    def add(self, rows: Sequence[Row]) -> None:
        """Keeps the rows of one piece of work."""
        self.found += [
            {name: round(float(value), 5) if isinstance(value, float) else value for name, value in row.items()}
            for row in rows
        ]
        write_csv(self.path, self.found)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Such as "0.931 ± 0.012"; without the deviation for a single value."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text or "nan")
        except ValueError:
            continue
    return text
