"""What was measured as Markdown: our numbers with their deviation, and the paper's printed ones beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from pirn.studies.comparisons import Comparison, Line
from pirn.studies.measuring import NOT_MEASURED
from pirn.studies.printed import Printed
from pirn.studies.rows import Row, mean_and_deviation

__all__ = ["Cell", "Table", "markdown"]

HEADINGS = {"image_auroc": "I-AUROC", "pixel_auroc": "P-AUROC", "aupro": "AUPRO", "f1_max": "F1-max"}
_COMPARED = ("image_auroc", "aupro")
_ALSO = {"Ours": "PIRN"}  # what Tables 8 and 11 call it


class Cell(NamedTuple):
    """One line at one number of shots.

    Attributes:
        line: of the comparison.
        shots: as in the rows: a number, or "all".
        score: it was judged by, where the comparison has several.
        rows: of all categories and seeds; none if it was not measured.
        reason: why it was not measured, or not on all pieces: "weights not available: ...".
    """

    line: Line
    shots: Any
    score: str
    rows: list[Row]
    reason: str = ""

    def over_seeds(self, metric: str) -> list[float]:
        """The mean over the categories, for each seed that has all of them; undefined ones (NaN) are left out."""
        per_seed: dict[int, list[float]] = {}
        for row in self.rows:
            value = row.get(metric, math.nan)
            if not math.isnan(value):
                per_seed.setdefault(row["seed"], []).append(value)
        most = max(map(len, per_seed.values()), default=0)
        return [fmean(values) for values in per_seed.values() if len(values) == most]


class Table(NamedTuple):
    """A comparison with its cells, shots by shots and line by line.

    Attributes:
        title: what it was measured on.
        comparison: lines and reference.
        cells: of all.
        printed: the paper's numbers.
    """

    title: str
    comparison: Comparison
    cells: list[Cell]
    printed: Sequence[Printed]

    def printed_for(self, cell: Cell) -> Mapping[str, float]:
        """The paper's means for a line, under the paper's score; where it has one number of shots only, these."""
        if not cell.line.printed or cell.score not in ("", "cosine"):
            return {}
        names = (cell.line.printed, _ALSO.get(cell.line.printed))
        found = [p for p in self.printed if p.method in names and p.category == "mean"]
        same = [p for p in found if p.shots == str(cell.shots)]
        chosen = same or (found if len({p.shots for p in self.printed}) == 1 else [])
        return {name: value for p in chosen for name, value in p.metrics.items()}


def markdown(name: str, table: Table) -> str:
    """The table as a page."""
    body = _by_category(table) if table.comparison.by_category else _by_metric(table)
    foot = [_foot(table), *dict.fromkeys(p.note for p in table.printed if p.note)]
    foot += dict.fromkeys(cell.reason for cell in table.cells if cell.reason)
    return "\n".join([f"# {name}", "", table.comparison.question, "", *body, "", *foot, ""])


def _by_metric(table: Table) -> list[str]:
    leading = [name for name in ("shots", "score") if len({getattr(cell, name) for cell in table.cells}) > 1]
    extras = table.comparison.training
    printed = [m for m in HEADINGS if any(m in p.metrics for p in table.printed)]
    heads = [*leading, "", *HEADINGS.values(), *(f"Δ {HEADINGS[m]}" for m in _COMPARED)]
    heads += [*extras, *(f"printed {HEADINGS[m]}" for m in printed)]
    lines = [_row(heads), "| --- " * len(heads) + "|"]
    for cell in table.cells:
        numbers = table.printed_for(cell)
        row = [*(str(getattr(cell, name)) for name in leading), cell.line.label, *_ours(table, cell, extras)]
        lines.append(_row([*row, *(f"{numbers[m]:.3f}" if m in numbers else "" for m in printed)]))
    empty = [""] * (len(HEADINGS) + len(_COMPARED) + len(extras))
    for p in _printed_only(table):
        row = [*(p.shots if name == "shots" else "" for name in leading), f"{p.method} (printed only)", *empty]
        lines.append(_row([*row, *(f"{p.metrics[m]:.3f}" if m in p.metrics else "" for m in printed)]))
    return lines


def _printed_only(table: Table) -> list[Printed]:
    """What the paper has and we have not, at the numbers of shots that were measured, or at its only one."""
    ours, shots = {cell.line.printed for cell in table.cells}, {str(cell.shots) for cell in table.cells}
    only_one = len({p.shots for p in table.printed}) == 1
    return [p for p in table.printed if p.method not in ours and (only_one or p.shots in shots)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ours(table: Table, cell: Cell, extras: Sequence[str]) -> list[str]:
    if not cell.rows:
        return [_unmeasured(cell), *[""] * (len(HEADINGS) + len(_COMPARED) + len(extras) - 1)]
    found = [_figure(cell.over_seeds(metric)) for metric in HEADINGS]
    found += [_difference(table, cell, metric) for metric in _COMPARED]
    return found + [_figure(cell.over_seeds(name)) for name in extras]


def _unmeasured(cell: Cell) -> str:
    return cell.reason.partition(":")[0] or NOT_MEASURED


def _figure(values: Sequence[float]) -> str:
    return mean_and_deviation(values) if values else ""


def _difference(table: Table, cell: Cell, metric: str) -> str:
    """Against the reference under the same score, on the same category and seed: mean ± standard error of the pairs."""
    key = (table.comparison.reference, cell.shots, cell.score)
    reference = next(other for other in table.cells if (other.line.label, other.shots, other.score) == key)
    if cell is reference or not reference.rows:
        return ""
    changes = [value - reference_value for value, reference_value in _pairs(cell.rows, reference.rows, metric)]
    if not changes:
        return ""
    error = f" ± {stdev(changes) / len(changes) ** 0.5:.3f}" if len(changes) > 1 else ""
    return f"{fmean(changes):+.3f}{error}"


def _pairs(rows: Sequence[Row], others: Sequence[Row], metric: str) -> list[tuple[float, float]]:
    known = {(row["category"], row["seed"]): row[metric] for row in others}
    both = [(row[metric], known.get((row["category"], row["seed"]), math.nan)) for row in rows]
    return [pair for pair in both if not any(map(math.isnan, pair))]


def _by_category(table: Table) -> list[str]:
    """Tables 8 and 11 of the paper: a column per category, a block per metric; the printed ones below."""
    categories = list(dict.fromkeys(row["category"] for cell in table.cells for row in cell.rows))
    several = len({cell.shots for cell in table.cells}) > 1
    lines: list[str] = []
    for metric in HEADINGS:
        block = []
        for cell in table.cells:
            values = [[r[metric] for r in cell.rows if r["category"] == name] for name in categories]
            known = [_figure([v for v in each if not math.isnan(v)]) for each in values]
            label = f"{cell.line.label} ({cell.shots} shots)" if several else cell.line.label
            block.append([label, *known, _figure(cell.over_seeds(metric)) or _unmeasured(cell)])
        lines += _block(HEADINGS[metric], [*categories, "mean"], block)
    for metric in HEADINGS:
        numbers = {(p.method, p.category): p.metrics[metric] for p in table.printed if metric in p.metrics}
        if numbers:
            columns = list(dict.fromkeys(category for _, category in numbers))
            block = [
                [method, *(f"{numbers[method, c]:.3f}" if (method, c) in numbers else "" for c in columns)]
                for method in dict.fromkeys(method for method, _ in numbers)
            ]
            lines += _block(f"{HEADINGS[metric]}, as printed in the paper's {_source(table)}", columns, block)
    return lines[:-1]


def _block(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"**{title}**", "", _row(["", *columns]), "| --- " * (len(columns) + 1) + "|", *map(_row, rows), ""]


def _source(table: Table) -> str:
    """Where the printed numbers stand and what they are of."""
    first, shots = table.printed[0], list(dict.fromkeys(p.shots for p in table.printed))
    at = "" if len(shots) > 1 else f", {shots[0]} shots"
    return f"Table {first.table}, {first.dataset}{at}"


def _foot(table: Table) -> str:
    rows = [row for cell in table.cells for row in cell.rows]
    seeds, categories = sorted({row["seed"] for row in rows}), sorted({row["category"] for row in rows})
    shots = " or ".join(str(shots) for shots in dict.fromkeys(cell.shots for cell in table.cells))
    text = (
        f"Measured on {table.title}: {', '.join(categories)}; {shots} shots; seeds {', '.join(map(str, seeds))}. Mean "
        f"± deviation over the seeds of the mean over the categories. Δ: difference to {table.comparison.reference}, "
        "category by category and seed by seed, ± standard error. "
    )
    if table.printed:
        text += f"Printed: the paper's {_source(table)}, with its encoders and on its data."
    uneven = {len(cell.rows) for cell in table.cells if cell.rows}
    if len(uneven) > 1:
        text += f" Lines were measured on {min(uneven)} to {max(uneven)} pairs of category and seed."
    return text.strip()
