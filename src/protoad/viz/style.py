"""The one look of all figures.

Colours come from Okabe and Ito's palette, which survives colour blindness; none is alone in saying something: the two
groups differ in lightness and texture as well, prototypes by their marker, regions by a number.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from functools import wraps
from threading import Lock
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from protoad._atomic import write_atomically
from protoad._lazy import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "ANOMALOUS",
    "INK",
    "LINE",
    "NORMAL",
    "REGIONS",
    "SMALL",
    "draw_groups",
    "new_figure",
    "styled",
    "write_figure",
]

NORMAL = "#56B4E9"
ANOMALOUS = "#A33C00"  # the palette's vermilion, darkened until it is dark in grey as well
LINE = "#0072B2"
INK = "#000000"
REGIONS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
SMALL = 7.5  # points: numbers and notes

_STYLE = {
    "figure.constrained_layout.use": True,
    "font.family": ["DejaVu Sans"],  # the one that comes with matplotlib: the same picture everywhere
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "hatch.linewidth": 0.9,
}
_DPI = 120
_SETTINGS = Lock()  # matplotlib's settings are one for all threads

_Arguments = ParamSpec("_Arguments")


def styled(draw: Callable[_Arguments, Figure]) -> Callable[_Arguments, Figure]:
    """Gives the function that draws in this look, whatever matplotlib is set to, and leaves its settings alone.

    Raises:
        MissingExtraError: when it is called without matplotlib.
    """

    @wraps(draw)
    def drawn(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Figure:
        style = require("matplotlib.style", extra="viz")
        with _SETTINGS, style.context(["default", _STYLE]):
            return draw(*args, **kwargs)

    return drawn


def new_figure(rows: int, columns: int, *, size: tuple[float, float], **options: Any) -> tuple[Figure, np.ndarray]:
    """Gives an empty figure of a size in inches, and its (rows columns) axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def write_figure(path: str | os.PathLike[str], figure: Figure, *, dpi: int = _DPI) -> None:
    """Writes a figure as a small PNG, whole or not at all; the same figure gives the same bytes.

    Args:
        path: of the PNG; its folder is made if missing.
        figure: to write.
        dpi: pixels per inch.

    Raises:
        DataError: if the file cannot be written.
    """
    image = require("PIL.Image", extra="viz")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    few = image.open(drawn).convert("RGB").quantize(256, dither=image.Dither.NONE)  # a half to a third of the bytes
    write_atomically(path, lambda at: few.save(at, format="png", optimize=True))


def draw_groups(axes: Axes, values: np.ndarray, anomalous: np.ndarray, edges: np.ndarray) -> None:
    """Draws two histograms over each other, each in percent of its group: normal filled, anomalous hatched."""
    looks: Sequence[tuple[np.ndarray, dict[str, Any]]] = (
        (~anomalous, {"facecolor": NORMAL, "edgecolor": INK, "linewidth": 0.5, "label": "normal"}),
        (
            anomalous,
            {"facecolor": "none", "edgecolor": ANOMALOUS, "linewidth": 1.0, "hatch": "////", "label": "anomalous"},
        ),
    )
    for group, look in looks:
        if group.any():
            counts, _ = np.histogram(values[group], edges)
            axes.stairs(100 * counts / group.sum(), edges, fill=True, **look)
