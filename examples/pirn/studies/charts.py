"""What was measured as a plot: a dot per line, or curves over what can be counted."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pirn.studies.tables import HEADINGS, Cell, Table
from protoad.errors import MissingExtraError
from protoad.viz.style import ANOMALOUS, INK, LINE, REGIONS, new_figure, styled, write_figure

__all__ = ["check_plots", "draw"]

_PANELS = ("image_auroc", "aupro")
_COLOURS = (LINE, ANOMALOUS, *REGIONS)
_MARKERS = "osD^vPX*"
_DASHES = ("-", "--", "-.", ":")


def check_plots(*further: str) -> None:
    """Fails before the work, not after.

    Args:
        further: modules of the viz extra that are needed beside matplotlib.

    Raises:
        MissingExtraError: without matplotlib, or one of these.
    """
    for module in ("matplotlib", *further):
        if find_spec(module) is None:
            raise MissingExtraError(f"{module} is needed here but not installed; run: pip install 'protoad[viz]'")


def draw(path: Path, table: Table) -> None:
    """Writes a PNG: image AUROC and AUPRO of every line, and the paper's means, hollow."""
    write_figure(path, _figure(table))


@styled
def _figure(table: Table) -> Any:
    draw_panel, curves = _dots, False
    if table.comparison.by_category:
        draw_panel = _categories
    elif table.comparison.axis or len({cell.shots for cell in table.cells}) > 2:
        draw_panel, curves = _curves, True
    height = 4.0 if curves else 1.6 + 0.28 * len(table.cells)
    figure, axes = new_figure(1, 2, size=(9, height), sharey=not curves)
    for axis, metric in zip(axes[0], _PANELS, strict=True):
        draw_panel(axis, table, metric)
        axis.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))  # each name once
    if named:
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4)
    return figure


def _dots(axis: Any, table: Table, metric: str) -> None:
    """A line of the table is a line of the plot, from above; shots and scores differ by marker."""
    labels = list(dict.fromkeys(cell.line.label for cell in table.cells))
    groups = _groups(table)
    for index, (label, cells) in enumerate(groups.items()):
        places = [labels.index(cell.line.label) + 0.2 * (index - (len(groups) - 1) / 2) for cell in cells]
        _errorbar(axis, places, cells, metric, index, label, lying=True)
        _hollow(axis, table, places, cells, metric)
    _name_lines(axis, labels, metric)


def _categories(axis: Any, table: Table, metric: str) -> None:
    """A line per cell: a mark for each category, mean over the seeds, and a bar where the mean of all of them is."""
    groups = _groups(table)
    labels = [", ".join(filter(None, (cell.line.label, name))) for name, cells in groups.items() for cell in cells]
    cells = [cell for group in groups.values() for cell in group]
    names = list(dict.fromkeys(row["category"] for cell in cells for row in cell.rows))
    for index, name in enumerate([*names, "mean"]):
        chosen = [c if name == "mean" else c._replace(rows=[r for r in c.rows if r["category"] == name]) for c in cells]
        found = [(cell.over_seeds(metric), y) for y, cell in enumerate(chosen)]
        known = [(fmean(values), y) for values, y in found if values]
        style = {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index % len(_MARKERS)], "s": 22}
        if name == "mean":
            style = {"color": INK, "marker": "|", "s": 160}
        axis.scatter([x for x, _ in known], [y for _, y in known], label=name, **style)
    _hollow(axis, table, range(len(cells)), cells, metric)
    _name_lines(axis, labels, metric)


def _hollow(axis: Any, table: Table, places: Sequence[float], cells: Sequence[Cell], metric: str) -> None:
    known = [(table.printed_for(cell).get(metric), y) for cell, y in zip(cells, places, strict=True)]
    hollow = [(x, y) for x, y in known if x is not None]
    if hollow:
        style = {"facecolors": "none", "edgecolors": "0.4", "marker": "D", "s": 22, "zorder": 3}
        axis.scatter(*zip(*hollow, strict=True), label="the paper's, on its data", **style)


def _name_lines(axis: Any, labels: Sequence[str], metric: str) -> None:
    axis.set(xlabel=HEADINGS[metric], ylim=(len(labels) - 0.4, -0.6))
    axis.set_yticks(range(len(labels)), labels)


def _curves(axis: Any, table: Table, metric: str) -> None:
    """Over what can be counted, or over the shots, a curve per line."""
    if table.comparison.axis:
        axis.set(xlabel=table.comparison.axis, xscale="log")
        groups = _groups(table)
        places = {id(cell): cell.line.x for cell in table.cells}
    else:
        axis.set(xlabel="shots", xscale="log")
        groups = {}
        for cell in table.cells:
            groups.setdefault(f"{cell.line.label}{f', {cell.score}' if cell.score else ''}", []).append(cell)
        places = {id(cell): cell.shots if cell.shots != "all" else None for cell in table.cells}
    for index, (label, cells) in enumerate(groups.items()):
        cells = [cell for cell in cells if cell.rows and places[id(cell)] is not None]
        _errorbar(axis, [places[id(cell)] for cell in cells], cells, metric, index, label, lying=False)
    printed = {places[id(c)]: table.printed_for(c)[metric] for c in table.cells if metric in table.printed_for(c)}
    if printed and table.comparison.axis:
        style = {"color": "0.4", "linestyle": ":", "marker": "D", "markerfacecolor": "none"}
        axis.plot(list(printed), list(printed.values()), label="the paper's, on its data", **style)
    ticks = sorted({place for place in places.values() if place is not None})
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_ylabel(HEADINGS[metric])


def _groups(table: Table) -> dict[str, list[Cell]]:
    """Cells of the same shots and score, under a name of what differs."""
    groups: dict[str, list[Cell]] = {}
    shots = len({cell.shots for cell in table.cells}) > 1
    for cell in table.cells:
        named = [f"{cell.shots} shots"] if shots else []
        groups.setdefault(", ".join([*named, *([cell.score] if cell.score else [])]), []).append(cell)
    return groups


def _errorbar(
    axis: Any, places: Sequence[Any], cells: Sequence[Cell], metric: str, index: int, label: str, *, lying: bool
) -> None:
    """Mean and deviation over the seeds."""
    found = [(place, cell.over_seeds(metric)) for place, cell in zip(places, cells, strict=True)]
    found = [(place, values) for place, values in found if values]
    where, means = [place for place, _ in found], [fmean(values) for _, values in found]
    errors = [stdev(values) if len(values) > 1 else 0.0 for _, values in found]
    style: dict[str, Any] = {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": "none" if lying else _DASHES[index % len(_DASHES)],
        "markersize": 5,
        "elinewidth": 1,
        "capsize": 2,
        "label": label or None,
    }
    x, y, bars = (means, where, {"xerr": errors}) if lying else (where, means, {"yerr": errors})
    axis.errorbar(x, y, **bars, **style)
