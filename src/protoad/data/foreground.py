"""What the part is, and what is only the table it lies on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from protoad.data.pointcloud import dot, split
from protoad.errors import ConfigError

__all__ = [
    "EVERYTHING_KEPT",
    "PLANE_DISTANCE",
    "PLANE_DISTANCES",
    "Foreground",
    "find_foreground",
    "foreground_mask",
    "plane_distance",
]

PLANE_DISTANCE = 0.005
"""Metres from the plane up to which a point is table, as everybody takes it since Horwitz and Hoshen (2023)."""

PLANE_DISTANCES = {"dowel": 0.002}
"""Categories of MVTec 3D-AD that lose thin parts at `PLANE_DISTANCE`, and what is taken for them instead."""

EVERYTHING_KEPT = "Everything was kept"
"""How `Foreground.reason` begins where nothing was removed."""

_STRIP = 10  # pixels of frame that the table is fitted to
_MIN_BORDER_POINTS = 200
_PLANE_SHARE = 0.5
_MIN_PART_SHARE = 0.002
_TRIALS = 256
_VOTERS = 2000
_SPECK_SHARE = 2e-4
_FRONT_SHARE = 0.01  # a piece with fewer points than that before the plane lies behind it
_RIM_SIDES = 3
_PART_PER_RIM = 0.1
_TOUCHING = np.ones((3, 3), dtype=bool)
_NEIGHBOURS = [(dy, dx) for dy in range(3) for dx in range(-2, 3) if (dy, dx) > (0, 0)]  # half of 5 x 5


class Foreground(NamedTuple):
    """Where the part is, and how that was decided.

    Attributes:
        mask: (y x) bool; an invalid pixel is foreground only where the part surrounds it.
        plane: the table n . p = offset as (n (3,), offset) with n towards the camera, or None if everything was kept.
        reason: one sentence: what was removed, or why everything was kept.
    """

    mask: np.ndarray
    plane: tuple[np.ndarray, float] | None
    reason: str


def plane_distance(category: str) -> float:
    """Metres from the plane up to which a point is table, for a category: `PLANE_DISTANCES` or `PLANE_DISTANCE`."""
    return PLANE_DISTANCES.get(category, PLANE_DISTANCE)


def foreground_mask(xyz: np.ndarray, *, distance: float = PLANE_DISTANCE, seed: int = 0) -> np.ndarray:
    """The mask of `find_foreground` alone, (y x) bool."""
    return find_foreground(xyz, distance=distance, seed=seed).mask


def find_foreground(xyz: np.ndarray, *, distance: float = PLANE_DISTANCE, seed: int = 0) -> Foreground:
    """Where the part is, and not the table it lies on. Reads the cloud, never changes it.

    The table is the plane through the frame's border: RANSAC over triples of its valid points, then least
    squares over the points that agree. It counts only if more than half of the border agrees and something
    stands off it; otherwise the part itself fills the frame, and every valid pixel is foreground.

    What stands off the table falls into pieces: points that are close in the image and in space. All are kept,
    however many, for a part may be broken, but for three kinds:

    - specks smaller than 0.02 % of the frame, counted in the image alone: what lies two pixels apart or less belongs
      together, so that thin parts stay even where the sensor saw them in dashes;
    - pieces that lie behind the plane and meet the frame: the floor beyond the table's edge;
    - a rim around the scene, a tray's or the walls of a stage: a piece that meets three sides of the frame or more,
      if what stands within is at least a tenth as large.

    What the part surrounds belongs to it: a hole drilled through it shows the table, a deep cut nothing at all, and
    both are to be inspected.

    Args:
        xyz: (y x 3) metres, camera axes, not finite or (0, 0, 0) where invalid.
        distance: from the plane, in metres, up to which a point is table.
        seed: of the triples.

    Raises:
        ShapeError: if `xyz` isn't (y x 3).
        ConfigError: if `distance` isn't a finite number above 0.
    """
    if not 0 < distance < np.inf:
        raise ConfigError(f"distance: expected metres above 0, got {distance}")
    points, valid = split(xyz)
    plane = _border_plane(points, valid, distance, seed)
    if plane is None:
        return _everything(
            valid, "no plane holds most of the frame's border" if valid.any() else "there is no valid point"
        )
    height = np.where(valid, dot(points, plane[0]) - plane[1], 0)
    off = _without_specks(np.abs(height) > distance, int(np.ceil(_SPECK_SHARE * valid.size)))
    part, dropped = _without_scenery(off, points, height, valid, distance)
    if off.sum() <= _MIN_PART_SHARE * valid.sum():
        return _everything(valid, f"nothing stands more than {1000 * distance:g} mm off the border's plane")
    if not part.any():
        return _everything(valid, "all that stands off the border's plane lies behind it")
    table = (valid & (np.abs(height) <= distance)).sum() / valid.sum()
    also = f" {' and '.join(dropped).capitalize()} went too." if dropped else ""
    reason = f"The table was removed, {table:.0%} of the points within {1000 * distance:g} mm of a plane.{also}"
    return Foreground(part | _enclosed(part), plane, reason)


def _everything(valid: np.ndarray, reason: str) -> Foreground:
    return Foreground(valid, None, f"{EVERYTHING_KEPT}: {reason}.")


def _border_plane(points: np.ndarray, valid: np.ndarray, distance: float, seed: int) -> tuple[np.ndarray, float] | None:
    """Unit normal towards the camera and offset of the plane that most of the border lies on, or None."""
    border = points[_border(valid)]
    if len(border) < 3:
        return None
    rng = np.random.default_rng(seed)
    triples = border[rng.integers(len(border), size=(_TRIALS, 3))]
    normals = np.cross(triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    if not lengths.any():
        return None
    normals, corners = normals[lengths > 0] / lengths[lengths > 0, None], triples[lengths > 0, 0]
    voters = border[rng.permutation(len(border))[:_VOTERS]]
    off = np.abs(dot(voters[:, None], normals) - (normals * corners).sum(axis=1))
    best = (off < distance).sum(axis=0).argmax()
    normal = normals[best]
    offset = float(dot(normal, corners[best]))
    for _ in range(3):  # points near the threshold change sides once or twice
        agree = np.abs(dot(border, normal) - offset) < distance
        if agree.mean() <= _PLANE_SHARE:
            return None
        centre = border[agree].mean(axis=0)
        normal = np.linalg.svd(border[agree] - centre, full_matrices=False)[2][2]
        offset = float(dot(normal, centre))
    return (normal, offset) if offset < 0 else (-normal, -offset)


def _border(valid: np.ndarray) -> np.ndarray:
    """Valid pixels of the frame strip, widened until there are enough of them."""
    strip = _STRIP
    while True:
        border = valid.copy()
        border[strip : -strip or None, strip : -strip or None] = False
        if border.sum() >= min(_MIN_BORDER_POINTS, valid.sum()) or 2 * strip >= min(valid.shape):
            return border
        strip *= 2


def _without_specks(mask: np.ndarray, min_pixels: int) -> np.ndarray:
    from scipy.ndimage import binary_dilation, label

    groups, _ = label(binary_dilation(mask, _TOUCHING), _TOUCHING)
    pixels = np.bincount(groups[mask], minlength=1)
    return mask & (pixels >= min_pixels)[groups]


def _without_scenery(
    off: np.ndarray, points: np.ndarray, height: np.ndarray, valid: np.ndarray, distance: float
) -> tuple[np.ndarray, list[str]]:
    """What stands off the table without the floor behind it and without a rim around, and the names of both.

    Nothing, if nothing stands before the plane: then that is the part's own face, with holes in it.
    """
    if (height[off] > 0).sum() <= _MIN_PART_SHARE * valid.sum():
        return np.zeros_like(off), []
    frame = _sides_of(valid)
    if not any(off[side].any() for side in frame):  # the usual case: all that could go meets the frame
        return off, []
    pieces, count = _pieces(off, points, distance)
    labels = pieces[off]
    sides = sum(np.isin(np.arange(count), pieces[side]).astype(int) for side in frame)
    pixels = np.bincount(labels, minlength=count)
    before = np.bincount(labels, weights=height[off] > 0, minlength=count) > _FRONT_SHARE * pixels
    floor = ~before & (sides > 0)  # what lies behind but within the frame may be a part's lower end, in a pocket
    rim = before & (sides >= _RIM_SIDES)
    if pixels[before & ~rim].sum() < _PART_PER_RIM * pixels[rim].sum():
        rim[:] = False
    part = off.copy()
    part[off] = ~(floor | rim)[labels]
    return part, [name for name, which in (("the floor behind it", floor), ("the rim around", rim)) if which.any()]


def _pieces(mask: np.ndarray, points: np.ndarray, distance: float) -> tuple[np.ndarray, int]:
    """Numbers the pieces of a mask from 0, (y x) int with -1 outside, and counts them.

    Two pixels hang together if they lie at most two pixels apart and, in space, not farther than `distance` beyond
    twice what is usual for pixels at that step: so it works at any scale and across gaps, and a step in depth
    parts what only looks adjacent.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    numbers = np.full(mask.shape, -1, dtype=np.int32)
    size = int(mask.sum())
    numbers[mask] = np.arange(size)
    links = [np.empty((2, 0), dtype=np.int32)]
    for here, there in _neighbours(mask.shape):
        both = mask[here] & mask[there]
        if both.any():
            step = points[here][both] - points[there][both]
            length = np.sqrt(dot(step, step))
            near = length <= distance + 2 * np.median(length)
            links.append(np.stack([numbers[here][both][near], numbers[there][both][near]]))
    pairs = np.concatenate(links, axis=1)
    graph = coo_matrix((np.ones(pairs.shape[1], dtype=bool), pairs), shape=(size, size))
    count, labels = connected_components(graph, directed=False)
    numbers[mask] = labels
    return numbers, int(count)


def _neighbours(shape: tuple[int, ...]) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Slices of an image that lay each pixel over one of its neighbours."""
    height, width = shape
    for dy, dx in _NEIGHBOURS:
        if dy < height and abs(dx) < width:
            left, right = max(0, -dx), max(0, dx)
            yield (
                (slice(0, height - dy), slice(left, width - right)),
                (slice(dy, height), slice(right, width - left)),
            )


def _sides_of(valid: np.ndarray) -> list[tuple[slice, slice]]:
    """The four sides of what the sensor saw, two pixels wide."""
    y, x = np.flatnonzero(valid.any(axis=1)), np.flatnonzero(valid.any(axis=0))
    top, bottom, left, right = int(y[0]), int(y[-1]) + 1, int(x[0]), int(x[-1]) + 1
    rows, columns = slice(top, bottom), slice(left, right)
    return [
        (slice(top, top + 2), columns),
        (slice(max(bottom - 2, top), bottom), columns),
        (rows, slice(left, left + 2)),
        (rows, slice(max(right - 2, left), right)),
    ]


def _enclosed(part: np.ndarray) -> np.ndarray:
    """What the part surrounds, but for a rim of two pixels: a hole shows the table or nothing at all."""
    from scipy.ndimage import binary_dilation, binary_erosion, binary_fill_holes

    filled = binary_fill_holes(binary_dilation(part, _TOUCHING))
    return binary_erosion(filled, _TOUCHING, border_value=1)
