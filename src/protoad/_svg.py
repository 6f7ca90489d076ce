"""The charts of the HTML report: SVG written out, coloured by the report's style sheet."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from protoad._ticks import round_ticks

__all__ = ["curve_chart", "escaped", "histogram"]

# What HTML cannot hold: control characters, and halves of surrogate pairs (from file names that are not UTF-8).
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

_WIDTH, _HEIGHT = 480, 310  # user units; a letter is 14 of them, so that the 340 pixels of a phone show it legibly
_LEFT, _RIGHT, _BOTTOM = 60, 18, 52
_ROW = 18  # of the texts above the plot
_BINS = 30
_SKEWED = 20  # times the median: a highest score beyond that makes the axis of scores logarithmic

# Colour, and a texture for those who print in black and white or see no hues.
_TEXTURES = (
    '<pattern id="defective" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" class="defective-ground"/><rect width="2.5" height="6" class="defective-ink"/>'
    "</pattern>"
    '<pattern id="unlabelled" width="5" height="5" patternUnits="userSpaceOnUse">'
    '<rect width="5" height="5" class="unlabelled-ground"/><circle cx="2.5" cy="2.5" r="1.2" class="unlabelled-ink"/>'
    "</pattern>"
)


class _Plot(NamedTuple):
    """A rectangle of the page and the numbers it stands for."""

    low: float
    high: float
    top: float
    ceiling: float
    """The number at `top`; 0 lies at the foot."""

    def x(self, value: Any) -> Any:
        return _LEFT + (value - self.low) / (self.high - self.low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: Any) -> Any:
        foot = _HEIGHT - _BOTTOM
        return foot - value / self.ceiling * (foot - self.top)


def escaped(text: object) -> str:
    """The text for HTML; what cannot stand there becomes a replacement character."""
    return html.escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(text)))


def histogram(groups: Mapping[str, np.ndarray], lines: Mapping[str, float]) -> str:
    """How many parts have which score, groups stacked, and vertical lines.

    No bin reaches across the first line: the bars on its right are the parts with a score above it, exactly.
    The axis is logarithmic where a linear one would crowd most parts into one bin.

    Args:
        groups: "good", "defective" or "unlabelled" -> (b) finite scores; not all empty.
        lines: text -> finite score.
    """
    everything = np.concatenate([*groups.values(), list(lines.values())])
    log = bool(everything.min() > 0 and everything.max() > _SKEWED * np.median(everything))
    place = np.log10 if log else np.asarray  # of a score along the axis
    low, high = _spread(float(place(everything.min())), float(place(everything.max())))
    ticks = round_ticks(low, high, most=_BINS)
    step = ticks[1] - ticks[0]
    start = next(iter(lines.values()), 1.0 if log else 0.0)
    origin = float(place(start))
    bins = {}
    for name, scores in groups.items():
        found = np.ceil((place(scores) - origin) / step).astype(int) - 1
        bins[name] = np.where(scores > start, np.maximum(found, 0), np.minimum(found, -1))  # despite any rounding
    first = min(math.ceil((low - origin) / step) - 1, *(int(found.min()) for found in bins.values()))
    last = max(math.ceil((high - origin) / step), *(int(found.max()) + 1 for found in bins.values()))
    counts = {name: np.bincount(found - first, minlength=last - first) for name, found in bins.items()}
    top = _ROW * (1.5 + len(lines))
    plot = _Plot(origin + first * step, origin + last * step, top, float(np.sum([*counts.values()], axis=0).max()))
    bars, base = [], np.zeros(last - first, dtype=int)
    for name, count in counts.items():
        for index in np.flatnonzero(count):
            left, right = (plot.x(origin + (first + index + end) * step) for end in (0, 1))
            bars.append(_bar(left, right, plot.y(base[index] + count[index]), plot.y(base[index]), name, count[index]))
        base += count
    x_ticks = _log_ticks(plot.low, plot.high) if log else _ticks(plot.low, plot.high, most=6)
    whole = {at: text for at, text in _ticks(0, plot.ceiling, most=5).items() if at == int(at)}
    axes = _axes(plot, "score (logarithmic)" if log else "score", "parts", x_ticks, whole)
    placed = {text: float(place(score)) for text, score in lines.items()}
    content = [f"<defs>{_TEXTURES}</defs>", axes, *bars, *_lines(plot, placed), _legend(list(groups))]
    return _svg("Histogram of the scores", "".join(content))


def _bar(left: float, right: float, top: float, foot: float, name: str, count: int) -> str:
    return (
        f'<rect x="{left + 0.5:.1f}" y="{top:.1f}" width="{right - left - 1:.1f}" height="{foot - top:.1f}" '
        f'class="bar {name}"><title>{count} {name}</title></rect>'
    )


def curve_chart(
    x: np.ndarray,
    y: np.ndarray,
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_limit: float,
    point: tuple[float, float] | None,
) -> str:
    """A curve of rates, the diagonal that guessing would give, and a ring at `point`.

    Args:
        x: (m) rising, in [0, 1].
        y: (m) in [0, 1].
        title: of the chart, for screen readers.
        x_label: under the axis.
        y_label: along the axis.
        x_limit: where the axis ends; the curve is cut there.
        point: on the curve.
    """
    plot = _Plot(0.0, x_limit, _ROW / 2, 1.0)
    inside = int(np.searchsorted(x, x_limit, side="right"))
    if inside < len(x):
        y = np.append(y[:inside], np.interp(x_limit, x, y))
        x = np.append(x[:inside], x_limit)
    across, down = plot.x(x), plot.y(y)
    # One point per unit of the way: an exact curve of pixels has millions.
    way = np.cumsum(np.hypot(np.diff(across, prepend=across[0]), np.diff(down, prepend=down[0])))
    kept = np.unique(np.append(np.unique(np.floor(way), return_index=True)[1], len(way) - 1))
    points = " ".join(f"{across[i]:.1f},{down[i]:.1f}" for i in kept)
    ring = "" if point is None or point[0] > x_limit else _ring(plot.x(point[0]), plot.y(point[1]))
    chance = f'<path d="M{plot.x(0):.1f} {plot.y(0):.1f}L{plot.x(x_limit):.1f} {plot.y(x_limit):.1f}" class="chance"/>'
    axes = _axes(plot, x_label, y_label, _ticks(0, x_limit, most=6), _ticks(0, 1, most=5))
    return _svg(title, f'{axes}{chance}<polyline points="{points}" class="curve"/>{ring}')


def _ring(x: float, y: float) -> str:
    anchor, at = ("start", x + 9) if x < _WIDTH / 2 else ("end", x - 9)
    below = y + 20 if y < _HEIGHT / 2 else y - 10  # where curves that are any good leave room
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="ring"/>'
        f'<text x="{at:.1f}" y="{below:.1f}" text-anchor="{anchor}">at the threshold</text>'
    )


def _spread(low: float, high: float) -> tuple[float, float]:
    """The limits, moved apart where nobody could tell the numbers at the axis from each other."""
    size = max(abs(low), abs(high))
    if size < 1e-290:  # nothing but zero, as far as division is concerned
        size = 1.0
    return (low, high) if high - low > 1e-4 * size else (low - size / 10, high + size / 10)


def _ticks(low: float, high: float, *, most: int) -> dict[float, str]:
    return {tick: f"{tick:.6g}" for tick in round_ticks(low, high, most=most)}


def _log_ticks(low: float, high: float) -> dict[float, str]:
    """Decades, with 2 and 5 times these if there is room, as position -> text."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = {e + math.log10(factor): f"{float(f'{factor}e{e}'):.6g}" for e in decades for factor in (1, 2, 5)}
    inside = {at: text for at, text in ticks.items() if low <= at <= high}
    if len(inside) > 8:
        inside = {at: text for at, text in inside.items() if at == int(at)}
    return dict(list(inside.items())[:: math.ceil(len(inside) / 8)])


def _axes(plot: _Plot, x_label: str, y_label: str, x_ticks: Mapping[float, str], y_ticks: Mapping[float, str]) -> str:
    foot, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick, text in y_ticks.items():
        y = plot.y(tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 5:.1f}" text-anchor="end">{text}</text>')
    for tick, text in x_ticks.items():
        x = plot.x(tick)
        parts.append(f'<path d="M{x:.1f} {foot}v4" class="axis"/>')
        parts.append(f'<text x="{x:.1f}" y="{foot + 20}" text-anchor="middle">{text}</text>')
    middle = (plot.top + foot) / 2
    parts.append(f'<path d="M{_LEFT} {plot.top:.1f}V{foot}H{right}" class="axis"/>')
    parts.append(
        f'<text x="{(_LEFT + right) / 2:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{escaped(x_label)}</text>'
    )
    parts.append(
        f'<text transform="translate(15 {middle:.1f}) rotate(-90)" text-anchor="middle">{escaped(y_label)}</text>'
    )
    return "".join(parts)


def _lines(plot: _Plot, lines: Mapping[str, float]) -> list[str]:
    """The lines, each with its text above the plot, on the side where there is room."""
    middle = (plot.low + plot.high) / 2
    first = next(iter(lines), None)
    drawn = []
    # A text runs from its line to the middle: the outer lines come first, so that none crosses the text of another.
    for row, (text, score) in enumerate(sorted(lines.items(), key=lambda line: -abs(line[1] - middle))):
        x, y = plot.x(score), _ROW * (2 + row)
        anchor, at = ("start", x + 5) if score < middle else ("end", x - 5)
        kind = "threshold" if text == first else "threshold other"
        drawn.append(f'<path d="M{x:.1f} {y - 10}V{_HEIGHT - _BOTTOM}" class="{kind}"/>')
        drawn.append(f'<text x="{at:.1f}" y="{y}" text-anchor="{anchor}">{escaped(text)}</text>')
    return drawn


def _legend(names: list[str]) -> str:
    return "".join(
        f'<rect x="{_LEFT + 110 * place}" y="1" width="16" height="13" class="bar {name}"/>'
        f'<text x="{_LEFT + 110 * place + 22}" y="12">{name}</text>'
        for place, name in enumerate(names)
    )


def _svg(title: str, content: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escaped(title)}</title>{content}</svg>"
    )
