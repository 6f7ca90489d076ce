"""Results of evaluations as plain text, JSON and CSV.

One method's results are a dict of the four metrics of `DetectionMetrics` (means over categories) and "categories", a
dict from each category's name to its own four.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from protoad._atomic import write_atomically
from protoad.errors import DataError
from protoad.metrics import DetectionMetrics

__all__ = ["append_jsonl", "format_table", "read_jsonl", "summarise", "write_csv", "write_json", "write_jsonl"]

_HEADINGS = {"image_auroc": "I-AUROC", "pixel_auroc": "P-AUROC", "aupro": "AUPRO", "f1_max": "F1-max"}
_GAP = "   "  # between the columns of two methods


def summarise(per_category: Mapping[str, DetectionMetrics]) -> dict[str, Any]:
    """One method's results: the plain mean of each metric over the categories, and the categories themselves.

    Args:
        per_category: metrics of each category.

    Returns:
        {"image_auroc": ..., "pixel_auroc": ..., "aupro": ..., "f1_max": ..., "categories": {name: the same four}}.
        A category where a metric is undefined (NaN) is left out of that metric's mean; a mean over none is NaN.

    Examples:
        >>> summarise({"tile": DetectionMetrics(1.0, 0.5, 0.25, 0.5)})["categories"]["tile"]["aupro"]
        0.25
    """
    categories = {
        name: {key: float(value) for key, value in metrics._asdict().items()} for name, metrics in per_category.items()
    }
    means: dict[str, Any] = {key: _mean([row[key] for row in categories.values()]) for key in _HEADINGS}
    return {**means, "categories": categories}


def format_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """An aligned table: a row per category and their mean, the four metrics under each method's name.

    Args:
        results: from each method's name to what `summarise` gives.

    Returns:
        Lines of text without a final newline; numbers with three decimals, "-" for an undefined or absent one.
        The mean is over the categories a method has results for. Three methods fit into 120 columns.
    """
    rows_of = {method: result.get("categories", {}) for method, result in results.items()}
    categories = list(dict.fromkeys(name for rows in rows_of.values() for name in rows))
    first = max(map(len, [*categories, "category"]))
    cell = max(map(len, _HEADINGS.values()))
    group = max(len(_HEADINGS) * (cell + 1) - 1, *map(len, results), 0)

    def line(start: str, groups: Iterable[str]) -> str:
        return _GAP.join([start.ljust(first), *(text.ljust(group) for text in groups)]).rstrip()

    def numbers(values: Mapping[str, float]) -> str:
        return " ".join(_cell(values.get(key)).rjust(cell) for key in _HEADINGS)

    headings = " ".join(text.rjust(cell) for text in _HEADINGS.values())
    rule = line("-" * first, ("-" * group for _ in results))
    return "\n".join(
        [
            line("", results),
            line("category", (headings for _ in results)),
            rule,
            *(line(name, (numbers(rows.get(name, {})) for rows in rows_of.values())) for name in categories),
            rule,
            line("mean", map(numbers, results.values())),
        ]
    )


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Writes data as JSON, keys sorted, NaN as null; the file appears whole or not at all.

    Args:
        path: file to write; its folder is made if missing.
        data: dicts with text keys, lists, tuples (NamedTuples as dicts), text, numbers (NumPy's too), bool, None.

    Raises:
        DataError: if data holds an infinite number or something else that JSON can't, or the file can't be
            written.
    """
    text = json.dumps(_plain(data), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    _write(path, lambda file: file.write(text + "\n"))


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a line of JSON per row; the file appears whole or not at all. Data and errors as in `write_json`."""
    text = "".join(map(_line, rows))
    _write(path, lambda file: file.write(text))


def append_jsonl(path: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Adds a line of JSON and has it on the disk before it returns; a line that a power cut tore is taken back first.

    Raises:
        DataError: as `write_json`.
    """
    text = _line(row)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            file.truncate(_end_of_lines(file))
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Gives the rows that were added; none if there is no file. A torn last line is not there.

    Raises:
        DataError: for a line that is no JSON object; names its number.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise DataError(f"{path}: line {number} is damaged, expected a JSON object; delete it") from None
    return rows


def write_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV with a header; the file appears whole or not at all.

    Args:
        path: file to write; its folder is made if missing.
        rows: one mapping per line. Columns are in the order of first appearance; what a row lacks stays empty, as
            does NaN.

    Raises:
        DataError: if the file can't be written.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def write(file: TextIO) -> None:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if _is_nan(value) else value for key, value in row.items()} for row in rows)

    _write(path, write)


def _line(row: Mapping[str, Any]) -> str:
    """Keys in the order given: that is the one to read a line in."""
    return json.dumps(_plain(row), allow_nan=False, ensure_ascii=False) + "\n"


def _end_of_lines(file: BinaryIO) -> int:
    """Where the last whole line ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _is_nan(value: object) -> bool:
    return isinstance(value, (float, np.floating)) and math.isnan(value)


def _plain(value: Any) -> Any:
    """The same data in types that JSON knows."""
    if isinstance(value, Mapping):
        unnamed = [key for key in value if not isinstance(key, str)]
        if unnamed:
            raise DataError(f"expected text as keys of JSON, got {unnamed[0]!r}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise DataError(f"expected finite numbers or NaN for JSON, got {value}")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise DataError(f"expected plain data for JSON, got {type(value).__name__}")


def _write(path: str | os.PathLike[str], write: Callable[[TextIO], object]) -> None:
    def write_text(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            write(file)

    write_atomically(path, write_text)
