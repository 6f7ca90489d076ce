"""`pirn study NAME` for what is a comparison: measure its lines, write table, rows and plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pirn.studies.charts import check_plots, draw
from pirn.studies.comparisons import COMPARISONS, Comparison
from pirn.studies.measuring import NOT_AVAILABLE, NOT_MEASURED, Measured, measure
from pirn.studies.printed import Printed, printed
from pirn.studies.request import Piece, Request, settings_of
from pirn.studies.tables import Cell, Table, markdown
from protoad.errors import EncoderError
from protoad.report import write_csv

__all__ = ["compare", "measure_all"]

_PRINTED_OF = {"eyecandies": "Eyecandies", "real-iad-d3": "Real-IAD D3"}
_BY_CATEGORY = {"Real-IAD D3": 8, "MVTec 3D-AD": 11}


def compare(name: str, request: Request) -> None:
    """Measures one comparison; writes OUT/NAME.csv, NAME.md and NAME.png.

    Args:
        name: of the comparison.
        request: as asked for.

    Raises:
        DataError: for data at fault.
        ConfigError: for settings that do not go together.
        MissingExtraError: without matplotlib.
        EncoderError: if no line can be measured, for want of weights.
    """
    check_plots()
    asked, comparison = request.reduced(), COMPARISONS[name]
    measured = measure(asked, _wanted(asked, [comparison]))
    if measured.failed and not measured.rows:
        raise next(iter(measured.failed.values()))
    table = _table(asked, comparison, measured)
    stem = f"{name}-quick" if request.quick else name
    write_csv(request.out / f"{stem}.csv", [{"line": c.line.label, **row} for c in table.cells for row in c.rows])
    (request.out / f"{stem}.md").write_text(markdown(name, table), encoding="utf-8")
    draw(request.out / f"{stem}.png", table)
    print(f"table: {request.out / stem}.md   figure: {request.out / stem}.png   rows: {request.out / stem}.csv")
    if measured.failed:  # the rest is written
        raise next(iter(measured.failed.values()))


def measure_all(names: Sequence[str], request: Request) -> None:
    """Measures several comparisons at once, so that data and features are made once for all of them."""
    asked = request.reduced()
    measure(asked, _wanted(asked, [COMPARISONS[name] for name in names]))


def _wanted(request: Request, comparisons: Sequence[Comparison]) -> dict[Piece, list[Mapping[str, Any]]]:
    wanted: dict[Piece, list[Mapping[str, Any]]] = {}
    for comparison in comparisons:
        for piece in request.pieces(comparison.shots):
            wanted.setdefault(piece, []).extend(
                comparison.settings(line, score) for line in comparison.lines for score in comparison.scores or ("",)
            )
    return dict(sorted(wanted.items(), key=lambda item: request.seeds.index(item[0].seed)))


def _table(request: Request, comparison: Comparison, measured: Measured) -> Table:
    cells = []
    for shots in ("all" if number is None else number for number in request.shots or comparison.shots):
        for score in comparison.scores or ("",):
            for line in comparison.lines:
                settings = settings_of(replace(request.base, **comparison.settings(line, score)))
                rows = [row for row in measured.rows if (row["settings"], row["shots"]) == (settings, shots)]
                reasons = [f"{NOT_AVAILABLE}: {measured.missing[settings]}"] if settings in measured.missing else []
                reasons += [f"{NOT_MEASURED}: {measured.failed[settings]}"] if settings in measured.failed else []
                cells.append(Cell(line, shots, score, rows, "".join(reasons)))
    if not any(cell.rows for cell in cells) and measured.missing:
        raise EncoderError(next(iter(measured.missing.values())))
    dataset = _PRINTED_OF.get(request.source.dataset if request.root else "", "MVTec 3D-AD")
    numbers = _printed(comparison, dataset)
    title = f"{request.title}, encoder {request.base.encoder}, {request.base.image_size} pixels"
    if request.quick:
        title = f"few small {title} (quick: no result)"
    return Table(title, comparison, cells, numbers)


def _printed(comparison: Comparison, dataset: str) -> list[Printed]:
    """The paper's numbers on the data set nearest to ours."""
    if comparison.by_category:
        return printed(_BY_CATEGORY.get(dataset, 11))
    if comparison.table is None:
        return []
    found = [p for p in printed(comparison.table) if p.category == "mean"]
    return [p for p in found if p.dataset == dataset] or [p for p in found if p.dataset == "MVTec 3D-AD"]
