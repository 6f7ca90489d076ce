"""Pictures of scores: one colour scale for all images, so that equal colours mean equal scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from protoad._lazy import require
from protoad._ticks import round_ticks
from protoad.errors import DataError, ShapeError

__all__ = [
    "GridRow",
    "check_rgb",
    "foreground_overlay",
    "heatmap_overlay",
    "sample_grid",
    "to_grey",
    "with_boxes",
    "with_color_bar",
]

_WHITE, _INK = 255, 25
_CONTOUR = (0, 255, 255)  # cyan: the one bright hue the inferno colours lack
_EDGE = (0, 0, 0)  # around it: in grey, cyan is as bright as the highest scores
_REMOVED = np.array([20, 30, 90])  # a dark part on a black table must not look removed, nor the table kept
_MIN_TILE = 200  # smaller images are magnified in a grid, or no title would fit above them
_GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma


@dataclass(frozen=True)
class GridRow:
    """One part in `sample_grid`; what is None stays blank.

    Args:
        label: name in front of the row; may have several lines.
        rgb: (y x 3) uint8.
        normals: (y x 3) uint8 colour-coded normals.
        rgb_map: (y x) scores of the RGB branch.
        normals_map: (y x) scores of the normals branch.
        fused_map: (y x) final scores; the outline of `mask` is drawn on it.
        mask: (y x) bool ground truth.
        others: name -> (y x) final scores of further detectors, drawn like `fused_map` in columns of these names.
    """

    label: str
    rgb: np.ndarray
    normals: np.ndarray | None = None
    rgb_map: np.ndarray | None = None
    normals_map: np.ndarray | None = None
    fused_map: np.ndarray | None = None
    mask: np.ndarray | None = None
    others: Mapping[str, np.ndarray] = field(default_factory=dict)

    def image(self, column: str) -> np.ndarray | None:
        """What stands in a column: a field, or the scores of a further detector."""
        found: np.ndarray | None = getattr(self, column) if column in _TITLES else self.others.get(column)
        return found


_TITLES = {
    "rgb": "RGB",
    "normals": "Normals",
    "rgb_map": "RGB scores",
    "normals_map": "Normals scores",
    "fused_map": "Fused scores",
    "mask": "Ground truth",
}


def heatmap_overlay(
    rgb: np.ndarray, heatmap: np.ndarray, *, vmax: float, vmin: float = 0.0, alpha: float = 0.5
) -> np.ndarray:
    """The picture in grey with its scores in colour on top (so that hue speaks of scores only).

    Args:
        rgb: (y x 3) uint8.
        heatmap: (y x) scores.
        vmax: score drawn in the brightest colour; take one for all images, such as a multiple of the threshold.
        vmin: score drawn in black.
        alpha: weight of the colours in [0, 1].

    Returns:
        (y x 3) uint8.

    Raises:
        ShapeError: if the sizes differ.
        DataError: if a score is NaN or infinite, or rgb is not uint8.
        ValueError: if vmax is not above vmin, or alpha is outside [0, 1].
    """
    check_rgb("rgb", rgb)
    if heatmap.shape != rgb.shape[:2]:
        raise ShapeError(f"heatmap: expected (y x) = {rgb.shape[:2]} as rgb has, got {heatmap.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a weight in [0, 1], got {alpha}")
    grey = to_grey(rgb)[..., None]
    return np.rint((1 - alpha) * grey + alpha * _colorize(heatmap, vmin=vmin, vmax=vmax)).astype(np.uint8)


def foreground_overlay(rgb: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """The picture with what was taken for background dimmed and blue, and an outline around what was kept.

    Args:
        rgb: (y x 3) uint8.
        foreground: (y x) bool.

    Returns:
        (y x 3) uint8.

    Raises:
        ShapeError: if the sizes differ.
        DataError: if rgb is not uint8.
    """
    cv2 = require("cv2", extra="data")
    check_rgb("rgb", rgb)
    if foreground.shape != rgb.shape[:2]:
        raise ShapeError(f"foreground: expected (y x) = {rgb.shape[:2]} as rgb has, got {foreground.shape}")
    dim = 0.3 * to_grey(rgb)[..., None] + _REMOVED
    shown = np.where(foreground[..., None], rgb, dim).astype(np.uint8)
    kept = foreground.astype(np.uint8)
    grown = cv2.dilate(kept, np.ones((3, 3), np.uint8))
    shown[grown > kept] = _CONTOUR
    return shown


def with_boxes(image: np.ndarray, boxes: Sequence[tuple[float, float, float, float]]) -> np.ndarray:
    """The image with frames around spots, just outside of them.

    Args:
        image: (y x 3) uint8.
        boxes: (x, y, width, height) of each, pixels.

    Returns:
        (y x 3) uint8, a new one.

    Raises:
        ShapeError: if image is not (y x 3).
        DataError: if image is not uint8.
    """
    cv2 = require("cv2", extra="data")
    check_rgb("image", image)
    shown = np.ascontiguousarray(image).copy()
    thickness = max(1, round(max(image.shape[:2]) / 400))
    for x, y, width, height in boxes:
        corner = (math.floor(x) - thickness, math.floor(y) - thickness)
        opposite = (math.ceil(x + width) + thickness - 1, math.ceil(y + height) + thickness - 1)
        cv2.rectangle(shown, corner, opposite, _CONTOUR, thickness)
    return shown


def with_color_bar(image: np.ndarray, *, vmin: float, vmax: float, label: str = "anomaly score") -> np.ndarray:
    """The image with a scale on its right: colours, round numbers, and what they measure.

    Args:
        image: (y x 3) uint8, made with the same vmin and vmax.
        vmin: score at the foot of the scale.
        vmax: score at its top.
        label: text along the scale, ASCII.

    Returns:
        (y' x' 3) uint8, wider, and not lower than 160 pixels.

    Raises:
        ShapeError: if image is not (y x 3).
        DataError: if image is not uint8.
        ValueError: if vmax is not above vmin.
    """
    check_rgb("image", image)
    _check_limits(vmin, vmax)
    height = max(image.shape[0], 160)
    letter = max(10, height // 24)
    bar = _colorize(np.linspace(vmax, vmin, height - 2 * letter)[:, None], vmin=vmin, vmax=vmax)
    ticks = round_ticks(vmin, vmax, most=max(2, height // (5 * letter)))
    numbers = [_text(_number(tick), letter) for tick in ticks]
    name = np.rot90(_text(label, letter, max_width=height))
    left = image.shape[1] + letter
    right = left + letter * 3 // 2
    widest = max(number.shape[1] for number in numbers)
    name_left = right + letter + widest + letter // 2

    canvas = _paste(_blank(height, name_left + name.shape[1] + letter // 2), image, 0, 0)
    canvas[letter : letter + len(bar), left:right] = bar
    for tick, number in zip(ticks, numbers, strict=True):
        row = letter + round((vmax - tick) / (vmax - vmin) * (len(bar) - 1))
        canvas[row, right : right + letter // 2] = _INK
        _paste(canvas, number, row - number.shape[0] // 2, right + letter)
    return _paste(canvas, name, (height - name.shape[0]) // 2, name_left)


def sample_grid(
    rows: Sequence[GridRow],
    *,
    columns: Sequence[str] = tuple(_TITLES),
    titles: Mapping[str, str] = _TITLES,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> np.ndarray:
    """A table of pictures: a row per part, a column per kind of image, a colour scale under each column of scores.

    Args:
        rows: the parts; all images of all rows have one size (y x).
        columns: fields of `GridRow`, and names of further detectors in `GridRow.others`, in the order wanted.
        titles: heading of each column, ASCII; a further detector's is its name unless it is given here.
        limits: lowest and highest score of a column's scale. A column not named here takes the extremes of its
            own maps over all rows; give limits where few or only good parts are shown, or their noise fills the
            scale.

    Returns:
        (y' x' 3) uint8.

    Raises:
        ShapeError: if images differ in size.
        DataError: if a score is NaN or infinite, or a picture is not uint8.
        ValueError: if there are no rows or columns, a column is unknown, or limits are not rising.
    """
    known = [*_TITLES, *dict.fromkeys(name for row in rows for name in row.others)]
    unknown = [column for column in columns if column not in known]
    if not rows or not columns or unknown:
        raise ValueError(f"expected rows, and columns out of {', '.join(known)}; got {len(rows)} rows, {list(columns)}")
    size = rows[0].rgb.shape[:2]
    scales = {name: _limits(rows, name, limits or {}) for name in columns if _holds_scores(name)}
    tiles = [[_tile(row, column, size, scales) for column in columns] for row in rows]
    tile_y, tile_x = tiles[0][0].shape[:2]
    letter, gap = max(tile_x // 14, 12), max(tile_x // 28, 6)

    # One letter size for all headings: a long one shrinks them all, and none is cut.
    headings = {column: titles.get(column, _TITLES.get(column, column)) for column in columns}
    widest = max(_text(headings[column], letter).shape[1] for column in columns)
    heading = letter * min(1.0, tile_x / widest)
    labels = [[_text(line, letter) for line in row.label.splitlines()] for row in rows]
    gutter = max((line.shape[1] for lines in labels for line in lines), default=0) + 2 * gap
    top = 3 * letter + gap
    foot = 4 * letter if scales else gap
    canvas = _blank(top + len(rows) * (tile_y + gap) + foot, gutter + len(columns) * (tile_x + gap))

    for at, column in enumerate(columns):
        left = gutter + at * (tile_x + gap)
        title = _text(headings[column], heading)
        _paste(canvas, title, (top - title.shape[0]) // 2, left + (tile_x - title.shape[1]) // 2)
        for index in range(len(rows)):
            _paste(canvas, tiles[index][at], top + index * (tile_y + gap), left)
        if column in scales:
            _paste(canvas, _flat_bar(scales[column], tile_x, letter), top + len(rows) * (tile_y + gap), left)
    for index, lines in enumerate(labels):
        row = top + index * (tile_y + gap) + (tile_y - sum(line.shape[0] for line in lines)) // 2
        for line in lines:
            _paste(canvas, line, row, gap)
            row += line.shape[0]
    return canvas


def _tile(row: GridRow, column: str, size: tuple[int, int], scales: Mapping[str, tuple[float, float]]) -> np.ndarray:
    """One cell: the picture of one field, magnified if small, blank if the field is None."""
    cv2 = require("cv2", extra="data")
    image = row.image(column)
    factor = math.ceil(_MIN_TILE / size[1])
    if image is None:
        return _blank(size[0] * factor, size[1] * factor)
    if image.shape[:2] != size:
        raise ShapeError(f"{column} of {row.label!r}: expected {size} like the first row's rgb, got {image.shape}")
    if column == "mask":
        image = np.repeat(np.where(image, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    elif column in scales:
        image = _colorize(image, vmin=scales[column][0], vmax=scales[column][1])
    check_rgb(column, image)
    tile = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
    if (column == "fused_map" or column not in _TITLES) and row.mask is not None:
        if row.mask.shape != size:
            raise ShapeError(f"mask of {row.label!r}: expected {size} like its rgb, got {row.mask.shape}")
        mask = np.repeat(np.repeat(row.mask, factor, axis=0), factor, axis=1).astype(np.uint8)
        thickness = max(1, round(tile.shape[1] / 300))
        # Just outside of the region, so that no score of the defect itself is painted over.
        for colour, width in ((_EDGE, 2 * thickness), (_CONTOUR, thickness)):
            tile[cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=width) > mask] = colour
    return tile


def _holds_scores(column: str) -> bool:
    return column.endswith("_map") or column not in _TITLES


def _limits(rows: Sequence[GridRow], column: str, given: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """The scale of one column of scores."""
    if column in given:
        _check_limits(*given[column])
        return given[column]
    maps = [image for row in rows if (image := row.image(column)) is not None]
    if not maps:
        return 0.0, 1.0
    lowest, highest = float(min(map_.min() for map_ in maps)), float(max(map_.max() for map_ in maps))
    if not math.isfinite(lowest) or not math.isfinite(highest):
        raise DataError(f"{column}: expected finite scores, got a map that holds NaN or infinity")
    return lowest, highest if highest > lowest else lowest + 1


def _flat_bar(limits: tuple[float, float], width: int, letter: int) -> np.ndarray:
    """(y x 3) a lying scale with a number at either end."""
    canvas = _blank(3 * letter, width)
    canvas[: letter * 2 // 3] = _colorize(np.linspace(*limits, width)[None], vmin=limits[0], vmax=limits[1])
    low, high = (_text(_number(value), letter, max_width=width // 2) for value in limits)
    _paste(canvas, low, letter, 0)
    return _paste(canvas, high, letter, width - high.shape[1])


def _colorize(heatmap: np.ndarray, *, vmin: float, vmax: float) -> np.ndarray:
    """(y x) scores to (y x 3) uint8 RGB of a scale that brightens evenly and survives colour blindness."""
    cv2 = require("cv2", extra="data")
    _check_limits(vmin, vmax)
    if not np.isfinite(heatmap).all():
        raise DataError("heatmap: expected finite scores, got a map that holds NaN or infinity")
    levels = np.clip((heatmap.astype(np.float64) - vmin) / (vmax - vmin), 0, 1)
    colors: np.ndarray = cv2.applyColorMap(np.rint(255 * levels).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(colors[..., ::-1])


def _text(line: str, letter: float, *, max_width: int | None = None) -> np.ndarray:
    """(y x 3) dark on white, capitals `letter` pixels high, shrunk where it would exceed `max_width`."""
    cv2 = require("cv2", extra="data")
    font, scale, weight = cv2.FONT_HERSHEY_SIMPLEX, 2.0, 3  # drawn large, then reduced: smooth at any size
    (width, _), _ = cv2.getTextSize(line, font, scale, weight)
    (_, capital), below = cv2.getTextSize("Hg", font, scale, weight)  # the same height and baseline for all texts
    margin = capital // 3
    canvas = _blank(capital + below + 2 * margin, width + 2 * margin)
    cv2.putText(canvas, line, (margin, margin + capital), font, scale, (_INK,) * 3, weight, cv2.LINE_AA)
    factor = letter / capital
    if max_width is not None:
        factor = min(factor, max_width / canvas.shape[1])
    new_size = [max(1, int(length * factor)) for length in (canvas.shape[1], canvas.shape[0])]
    small: np.ndarray = cv2.resize(canvas, new_size, interpolation=cv2.INTER_AREA)
    return small


def _number(value: float) -> str:
    return f"{value:.3g}"


def _blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), _WHITE, dtype=np.uint8)


def _paste(canvas: np.ndarray, patch: np.ndarray, row: int, column: int) -> np.ndarray:
    """Puts the patch into the canvas, moved inside where it would stick out; returns the canvas."""
    row = min(max(row, 0), canvas.shape[0] - patch.shape[0])
    column = min(max(column, 0), canvas.shape[1] - patch.shape[1])
    canvas[row : row + patch.shape[0], column : column + patch.shape[1]] = patch
    return canvas


def to_grey(rgb: np.ndarray) -> np.ndarray:
    """(y x 3) uint8 -> (y x) brightness in [0, 255]."""
    grey: np.ndarray = rgb @ _GREY_WEIGHTS
    return grey


def check_rgb(name: str, image: np.ndarray) -> None:
    """Fails if this is no picture.

    Raises:
        ShapeError: if it is not (y x 3).
        DataError: if it is not uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ShapeError(f"{name}: expected (y x 3), got {image.shape}")
    if image.dtype != np.uint8:
        raise DataError(f"{name}: expected uint8, got {image.dtype}")


def _check_limits(vmin: float, vmax: float) -> None:
    if not (math.isfinite(vmin) and math.isfinite(vmax) and vmin < vmax):
        raise ValueError(f"vmin and vmax: expected finite numbers, vmin below vmax, got {vmin} and {vmax}")
