"""Tables and the figure of the study of large anomalies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protoad.viz.style import INK, LINE, REGIONS, new_figure, styled, write_figure

__all__ = ["write_report"]

Row = Mapping[str, Any]

# column -> what it says
_TABLES = {
    "displacement": "How far refinement moves a prototype, |P' - P| / |P|",
    "displacement by anomaly": "of that, what the anomaly does: |P' - P' of the twin| / |P|",
    "u near": "Update gate u (1 keeps the prototype) of prototypes whose mass comes from anomalous tokens, first layer",
    "u elsewhere": "u of the other prototypes",
    "u twin": "u on the twin, the same part without anomaly",
    "cosine anomalous": "cos(E, Z_rec) of anomalous tokens: lower is better",
    "gain anomalous": "of that, what refinement adds (the same weights without refinement taken off)",
    "gain normal": "what refinement adds for normal tokens of the same images",
    "cosine pixel AUROC": "Pixel AUROC among the pixels of anomalous parts, score 1 - cos",
    "whitened pixel AUROC": "the same, whitened score",
    "cosine AUPRO": "AUPRO, score 1 - cos",
    "whitened AUPRO": "the same, whitened score",
    "cosine recall": "Share of the anomaly above the threshold for 5 % false rejects, score 1 - cos",
    "whitened recall": "the same, whitened score",
    "cosine image AUROC": "Image AUROC, score 1 - cos",
    "whitened image AUROC": "the same, whitened score",
}
_DIFFERENCES = (
    "cosine anomalous",
    "cosine pixel AUROC",
    "whitened pixel AUROC",
    "cosine recall",
    "whitened recall",
    "cosine image AUROC",
    "whitened image AUROC",
)
_PANELS = {
    "displacement by anomaly": "prototypes moved\nby the anomaly",
    "u near": "update gate u\nnear the anomaly",
    "cosine pixel AUROC": "pixel AUROC,\nscore 1 - cos",
    "cosine recall": "recall of the anomaly,\nscore 1 - cos",
}
_NONE = "none"  # the setting without refinement
_STYLES = {
    _NONE: (INK, ":", "x"),
    "": (LINE, "-", "o"),
    "guard": (REGIONS[5], "--", "s"),
    "twin": (REGIONS[2], "-.", "^"),
}
_LABELS = {"": "refined by the part itself", "guard": "with the guard", "twin": "refined by its twin without anomaly"}


def write_report(stem: Path, rows: Sequence[Row]) -> None:
    """Writes STEM.md and STEM.png from the rows of the study."""
    fractions = sorted({row["fraction"] for row in rows})
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    parts = sorted({row["part"] for row in rows})
    seeds = sorted({int(row["seed"]) for row in rows})
    lines = [
        f"Parts: {', '.join(parts)}. Seeds: {', '.join(map(str, seeds))}. Mean over the parts, ± deviation over the "
        "seeds. Columns: share of the part's surface that is anomalous.",
        "",
    ]
    for column, title in _TABLES.items():
        lines += [f"**{title[0].upper()}{title[1:]}**", "", f"| | {' | '.join(f'{f:.0%}' for f in fractions)} |"]
        lines += ["| --- " * (len(fractions) + 1) + "|"]
        for setting in settings:
            cells = [_cell(*_over_seeds(rows, setting, fraction, column)) for fraction in fractions]
            if any(cells):
                lines.append(f"| {setting} | {' | '.join(cells)} |")
        lines.append("")
    lines += _differences(rows, settings, fractions)
    stem.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
    write_figure(stem.with_suffix(".png"), _figure(rows, settings, fractions))


def _differences(rows: Sequence[Row], settings: Sequence[str], fractions: Sequence[float]) -> list[str]:
    """What guard and twin change against the same training without, part by part and seed by seed."""
    lines = ["**Differences to the same training without guard: mean ± standard error over parts and seeds**", ""]
    lines += [f"| | | {' | '.join(f'{f:.0%}' for f in fractions)} |", "| --- " * (len(fractions) + 2) + "|"]
    for setting in settings:
        family, variant = _split(setting)
        for column in _DIFFERENCES if variant else ():
            cells = []
            for fraction in fractions:
                with_it, without = (_of_cells(rows, name, fraction, column) for name in (setting, family))
                change = np.array([with_it[cell] - without[cell] for cell in with_it if cell in without])
                error = change.std(ddof=1) / len(change) ** 0.5 if len(change) > 1 else 0.0
                cells.append(f"{change.mean():+.3f} ± {error:.3f}")
            lines.append(f"| {setting} | {column} | {' | '.join(cells)} |")
    return [*lines, ""]


def _of_cells(rows: Sequence[Row], setting: str, fraction: float, column: str) -> dict[tuple[str, int], float]:
    chosen = [row for row in rows if row["setting"] == setting and row["fraction"] == fraction]
    return {(row["part"], row["seed"]): row.get(column, math.nan) for row in chosen}


def _over_seeds(rows: Sequence[Row], setting: str, fraction: float, column: str) -> tuple[float, float]:
    """Mean and deviation over the seeds of the mean over the parts; NaN where there is nothing."""
    chosen = [row for row in rows if row["setting"] == setting and row["fraction"] == fraction]
    means = [
        np.mean([row.get(column, math.nan) for row in chosen if row["seed"] == seed])
        for seed in sorted({row["seed"] for row in chosen})
    ]
    return float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else 0.0


def _cell(mean: float, deviation: float) -> str:
    return "" if math.isnan(mean) else f"{mean:.3f} ± {deviation:.3f}"


@styled
def _figure(rows: Sequence[Row], settings: Sequence[str], fractions: Sequence[float]) -> Any:
    """A row per measure, a column per training: its variants, and no refinement at all beside them."""
    families = [name for name in dict.fromkeys(_split(setting)[0] for setting in settings) if name != _NONE]
    figure, axes = new_figure(len(_PANELS), len(families), size=(9, 9), sharex=True, sharey="row")
    for panels, (column, title) in zip(axes, _PANELS.items(), strict=True):
        for axis, family in zip(panels, families, strict=True):
            for name in [s for s in settings if s == _NONE or _split(s)[0] == family]:
                means, deviations = np.transpose([_over_seeds(rows, name, f, column) for f in fractions])
                colour, dash, marker = _STYLES[_NONE if name == _NONE else _split(name)[1]]
                x = 100 * np.asarray(fractions)
                axis.fill_between(x, means - deviations, means + deviations, color=colour, alpha=0.15, linewidth=0)
                label = "trained without refinement" if name == _NONE else _LABELS[_split(name)[1]]
                axis.plot(x, means, color=colour, linestyle=dash, marker=marker, markersize=4, label=label)
            axis.grid(alpha=0.3)
        panels[0].set_ylabel(title)
    for axis, family in zip(axes[0], families, strict=True):
        axis.set_title(f"trained with {family}")
    for axis in axes[-1]:
        axis.set_xlabel("anomalous share of the part, %")
    handles, labels = axes[-1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _split(setting: str) -> tuple[str, str]:
    """Splits "bias 0, long, guard" into "bias 0, long" and "guard"."""
    family, _, variant = setting.rpartition(", ")
    return (family, variant) if variant in ("guard", "twin") else (setting, "")
