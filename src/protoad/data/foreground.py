"""What the part is, and what is only the table it lies on."""

from __future__ import annotations

import numpy as np

from protoad.data.pointcloud import dot, split

__all__ = ["foreground_mask"]

_STRIP = 10  # pixels of frame that the table is fitted to
_MIN_BORDER_POINTS = 200
_PLANE_SHARE = 0.5
_MIN_PART_SHARE = 0.002
_TRIALS = 256
_VOTERS = 2000
_SPECK_SHARE = 2e-4
_TOUCHING = np.ones((3, 3), dtype=bool)


def foreground_mask(xyz: np.ndarray, *, distance: float = 0.005, seed: int = 0) -> np.ndarray:
    """Where the part is, and not the table it lies on.

    The table is the plane through the frame's border: RANSAC over triples of its valid points, then least
    squares over the points that agree. It counts only if more than half of the border agrees and something
    stands off it; otherwise the part itself fills the frame, and every valid pixel is foreground. Specks
    smaller than 0.02 % of the frame go. What lies two pixels apart or less belongs together, so that thin parts
    stay even where the sensor saw them in dashes, and what the part surrounds belongs to it: a hole drilled
    through it shows the table, a deep cut nothing at all, and both are to be inspected.

    Args:
        xyz: (y x 3) metres, not finite or (0, 0, 0) where invalid.
        distance: from the plane, in metres, up to which a point is table.
        seed: of the triples.

    Returns:
        (y x) bool; an invalid pixel is foreground only where the part surrounds it.

    Raises:
        ShapeError: if `xyz` isn't (y x 3).
    """
    points, valid = split(xyz)
    plane = _border_plane(points, valid, distance, seed)
    if plane is None:
        return valid
    normal, offset = plane
    part = valid & (np.abs(dot(points, normal) - offset) > distance)
    part = _without_specks(part, int(np.ceil(_SPECK_SHARE * part.size)))
    if part.sum() <= _MIN_PART_SHARE * valid.sum():
        return valid
    return part | _enclosed(part)


def _border_plane(points: np.ndarray, valid: np.ndarray, distance: float, seed: int) -> tuple[np.ndarray, float] | None:
    """Unit normal and offset of the plane that most of the border lies on, or None."""
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
    return normal, offset


def _border(valid: np.ndarray) -> np.ndarray:
    """Valid pixels of the frame strip, widened until there are enough of them."""
    strip = _STRIP
    while True:
        border = valid.copy()
        border[strip : -strip or None, strip : -strip or None] = False
        if border.sum() >= min(_MIN_BORDER_POINTS, valid.sum()) or 2 * strip >= min(valid.shape):
            return border
        strip *= 2


def _enclosed(part: np.ndarray) -> np.ndarray:
    """What the part surrounds, but for a rim of two pixels: a hole shows the table or nothing at all."""
    from scipy.ndimage import binary_dilation, binary_erosion, binary_fill_holes

    filled = binary_fill_holes(binary_dilation(part, _TOUCHING))
    return binary_erosion(filled, _TOUCHING, border_value=1)


def _without_specks(mask: np.ndarray, min_pixels: int) -> np.ndarray:
    from scipy.ndimage import binary_dilation, label

    groups, _ = label(binary_dilation(mask, _TOUCHING), _TOUCHING)
    pixels = np.bincount(groups[mask], minlength=1)
    return mask & (pixels >= min_pixels)[groups]
