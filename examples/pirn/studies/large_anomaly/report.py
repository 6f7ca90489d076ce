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
    "displacement by anomaly": "prototypes moved by the anomaly",
    "u near": "update gate u near the anomaly",
    "cosine pixel AUROC": "pixel AUROC, score 1 - cos",
    "cosine recall": "recall of the anomaly, score 1 - cos",
}
_COLOURS = (INK, LINE, REGIONS[5], REGIONS[2])  # of a training; its variants differ in dash and marker as well
_DASHES = {"": "-", "guard": "--", "twin": ":"}
_MARKERS = {"": "o", "guard": "s", "twin": "^"}


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
    families = list(dict.fromkeys(_split(setting)[0] for setting in settings))
    figure, axes = new_figure(2, 2, size=(9, 7))
    for axis, (column, title) in zip(axes.flat, _PANELS.items(), strict=True):
        for setting in settings:
            family, variant = _split(setting)
            means, deviations = np.transpose([_over_seeds(rows, setting, f, column) for f in fractions])
            if np.isnan(means).all():
                continue
            axis.errorbar(
                [100 * f + 0.4 * (settings.index(setting) - len(settings) / 2) for f in fractions],  # side by side
                means,
                deviations,
                label=setting,
                color=_COLOURS[families.index(family) % len(_COLOURS)],
                linestyle=_DASHES[variant],
                marker=_MARKERS[variant],
                markersize=4,
                linewidth=1.3,
                elinewidth=0.6,
            )
        axis.set(title=title, xlabel="anomalous share of the part, %")
        axis.grid(alpha=0.3)
    handles, labels = axes.flat[2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def _split(setting: str) -> tuple[str, str]:
    """Splits "bias 0, long, guard" into "bias 0, long" and "guard"."""
    family, _, variant = setting.rpartition(", ")
    return (family, variant) if variant in ("guard", "twin") else (setting, "")
