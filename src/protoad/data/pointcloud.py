"""Organised point clouds: surface normals and their colour coding."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from protoad.errors import ShapeError

__all__ = ["Normals", "dot", "encode_normals", "normals_from_xyz", "split", "viewer_axes"]

# radius in pixels, points needed, handicap: 5 x 5 windows span about as far as the 30 nearest points of the usual
# protocol; 3 x 3 ones are noisier and serve where every 5 x 5 one straddles an edge, as on a wire or a thread
_SCALES = ((2, 3, 1.0), (1, 6, 4.0))
_SHIFT_PENALTY = 4.0
_OWN_POINT = 9.0  # the pixel's own distance to the plane counts from three standard deviations on
_NEIGHBOURS = 30
_CHUNK = 20_000  # pixels at a time: 15 MB of neighbours instead of 120
_MIN_POINTS = 3
_COLLINEAR = 1e-3  # second over first eigenvalue: points on a line span no plane


class Normals(NamedTuple):
    """Unit normals (y x 3) float32 that face the camera, zero where `valid` (y x) bool is False."""

    normals: np.ndarray
    valid: np.ndarray


def normals_from_xyz(
    xyz: np.ndarray, *, method: Literal["grid", "knn"] = "grid", orient: Literal["camera"] = "camera"
) -> Normals:
    """Surface normals of an organised point cloud.

    Args:
        xyz: (y x 3) metres, camera axes x right, y down, z away; not finite or (0, 0, 0) where invalid.
        method: "grid" fits planes to the valid points of 5 x 5 and 3 x 3 windows on the pixel grid and takes,
            for each pixel, one around it that is flat, so that normals don't smear over depth edges (the idea
            of Kuwahara's filter); "knn" fits one to the 30 nearest points in space: slower, and it rounds creases.
        orient: "camera" turns every normal towards the viewpoint, n . p < 0: exact for one view.

    Returns:
        `Normals`. A pixel is valid if it has a point and that point's neighbours span a plane.

    Raises:
        ShapeError: if `xyz` isn't (y x 3).
        ValueError: for another `method` or `orient`.
    """
    points, valid = split(xyz)
    if orient != "camera":
        raise ValueError(f"orient: expected 'camera', got {orient!r}")
    if method == "grid":
        normals, valid = _grid_normals(points, valid)
    elif method == "knn":
        normals, valid = _knn_normals(points, valid)
    else:
        raise ValueError(f"method: expected 'grid' or 'knn', got {method!r}")
    away = dot(normals, points) > 0
    normals[away] *= -1
    normals[~valid] = 0
    return Normals(normals.astype(np.float32), valid)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Along the last axis; elementwise, because threaded matrix products round differently by machine."""
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def encode_normals(normals: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The colours of a normal map: x right, y up, z towards the viewer, so that facing is blue.

    colour = round(127.5 n + 127.5) of (n_x, -n_y, -n_z); mid-grey where invalid.

    Args:
        normals: (y x 3) in camera axes.
        valid: (y x) bool.

    Returns:
        (y x 3) uint8.
    """
    coded = np.where(valid[..., None], viewer_axes(normals), 0)
    return np.clip(np.round(127.5 * coded + 127.5), 0, 255).astype(np.uint8)


def viewer_axes(normals: np.ndarray) -> np.ndarray:
    """Camera axes (.. 3), y down and z away, turned to x right, y up, z towards the viewer."""
    return normals * np.array([1, -1, -1], dtype=normals.dtype)


def split(xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points as float64 with zeros where invalid, and where they are valid."""
    if xyz.ndim != 3 or xyz.shape[2] != 3:
        raise ShapeError(f"xyz: expected (y x 3), got {xyz.shape}")
    valid = np.isfinite(xyz).all(axis=-1) & (xyz != 0).any(axis=-1)
    return np.where(valid[..., None], xyz, 0).astype(np.float64), valid


def _grid_normals(points: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not valid.any():
        return np.zeros_like(points), valid
    # about the cloud's centre: squares of whole distances would drown the micrometres that bend a plane
    centred = np.where(valid[..., None], points - points[valid].mean(axis=0), 0)
    moments = _moments(centred, valid)
    normals = np.zeros_like(points).reshape(-1, 3)
    cost = np.full(valid.size, np.inf)
    for radius, min_points, handicap in _SCALES:
        planes = _fit_windows(moments, radius, min_points)
        pixels, windows = _flattest_windows(centred, valid, planes, radius, handicap, cost)
        normals[pixels] = planes.normals[windows]
    return normals.reshape(points.shape), valid & np.isfinite(cost).reshape(valid.shape)


class _Planes(NamedTuple):
    """The plane n . p = offset of the window around each pixel, flat (y x)."""

    normals: np.ndarray
    offset: np.ndarray
    residual: np.ndarray  # mean squared distance per degree of freedom; inf if the window spans no plane


def _moments(points: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
    x, y, z = np.ascontiguousarray(np.moveaxis(points, -1, 0))
    return [valid.astype(np.float64), x, y, z, x * x, x * y, x * z, y * y, y * z, z * z]


def _fit_windows(moments: list[np.ndarray], radius: int, min_points: int) -> _Planes:
    """Least-squares planes from box sums of zeroth, first and second moments."""
    from scipy.ndimage import uniform_filter

    size = 2 * radius + 1
    sums = [uniform_filter(channel, size, mode="constant").ravel() * size**2 for channel in moments]
    count = np.round(sums[0])
    x, y, z, *second = (channel / np.maximum(count, 1) for channel in sums[1:])
    products = (x * x, x * y, x * z, y * y, y * z, z * z)
    covariance = [mean - product for mean, product in zip(second, products, strict=True)]
    (smallest, middle, largest), normals = _smallest_eigenvector(*covariance)
    spans = (count >= min_points) & (middle > _COLLINEAR * largest)
    # three points fit any plane: what's left over counts per degree of freedom
    residual = np.maximum(smallest, 0) * count / np.maximum(count - 3, 0.1)
    offset = normals[:, 0] * x + normals[:, 1] * y + normals[:, 2] * z
    return _Planes(normals, offset, np.where(spans, residual, np.inf))


def _flattest_windows(
    points: np.ndarray, valid: np.ndarray, planes: _Planes, radius: int, handicap: float, best: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the pixels that find a better plane than before, and of its window; lowers `best` in place.

    A pixel's own window is kept unless a shifted one that contains it is clearly flatter: shifting costs
    accuracy on curved surfaces, and gains where the own window straddles a depth edge. The pixel's own
    distance to the plane counts too, or a thin part would take the plane of what lies behind it.
    """
    from scipy.ndimage import minimum_filter

    height, width = valid.shape
    flat = points.reshape(-1, 3)
    here = np.flatnonzero(valid)
    choice = np.full(valid.size, -1)

    def improve(pixels: np.ndarray, windows: np.ndarray, penalty: float) -> None:
        residual = planes.residual[windows] * penalty
        hopeful = residual < best[pixels]  # most aren't: spares them the distance
        pixels, windows, residual = pixels[hopeful], windows[hopeful], residual[hopeful]
        distance = dot(planes.normals[windows], flat[pixels]) - planes.offset[windows]
        cost = residual + distance**2 * (penalty / _OWN_POINT)
        better = cost < best[pixels]
        best[pixels[better]] = cost[better]
        choice[pixels[better]] = windows[better]

    improve(here, here, handicap)
    # only where some window around is flatter by the smallest penalty can a shift win: few pixels, same result
    least = handicap * (_SHIFT_PENALTY + 1 / radius**2)
    flattest = minimum_filter(planes.residual.reshape(valid.shape), 2 * radius + 1, mode="constant", cval=np.inf)
    here = here[best[here] > least * flattest.ravel()[here]]
    rows, columns = here // width, here % width
    steps = range(-radius, radius + 1)
    for dy, dx in sorted(((dy, dx) for dy in steps for dx in steps), key=lambda s: s[0] ** 2 + s[1] ** 2)[1:]:
        inside = (rows + dy >= 0) & (rows + dy < height) & (columns + dx >= 0) & (columns + dx < width)
        pixels = here[inside]
        penalty = handicap * (_SHIFT_PENALTY + (dy * dy + dx * dx) / radius**2)
        improve(pixels, pixels + dy * width + dx, penalty)
    chosen = np.flatnonzero(choice >= 0)
    return chosen, choice[chosen]


def _smallest_eigenvector(
    xx: np.ndarray, xy: np.ndarray, xz: np.ndarray, yy: np.ndarray, yz: np.ndarray, zz: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Ascending eigenvalues and the unit eigenvector of the smallest one, of symmetric 3 x 3 matrices.

    The trigonometric solution of the characteristic cubic; the vector is the longest cross product of two
    rows of A - lambda I. Exact enough here because the smallest eigenvalue of a plane stands alone.
    """
    mean = (xx + yy + zz) / 3
    dx, dy, dz = xx - mean, yy - mean, zz - mean
    spread = np.sqrt((dx * dx + dy * dy + dz * dz + 2 * (xy * xy + xz * xz + yz * yz)) / 6)
    determinant = dx * (dy * dz - yz * yz) - xy * (xy * dz - yz * xz) + xz * (xy * yz - dy * xz)
    scale = np.where(spread > 0, spread, 1)
    angle = np.arccos(np.clip(determinant / (2 * scale**3), -1, 1)) / 3
    largest = mean + 2 * spread * np.cos(angle)
    smallest = mean + 2 * spread * np.cos(angle + 2 * np.pi / 3)
    a, b, c = xx - smallest, yy - smallest, zz - smallest
    candidates = (
        (xy * yz - xz * b, xz * xy - a * yz, a * b - xy * xy),
        (xy * c - xz * yz, xz * xz - a * c, a * yz - xy * xz),
        (b * c - yz * yz, yz * xz - xy * c, xy * yz - b * xz),
    )
    lengths = [u * u + v * v + w * w for u, v, w in candidates]
    vector = np.stack(candidates[0], axis=-1)
    length = lengths[0]
    for candidate, other in zip(candidates[1:], lengths[1:], strict=True):
        longer = other > length
        vector[longer] = np.stack(candidate, axis=-1)[longer]
        length = np.where(longer, other, length)
    vector /= np.sqrt(np.where(length > 0, length, 1))[..., None]
    return (smallest, 3 * mean - largest - smallest, largest), vector


def _knn_normals(points: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.spatial import cKDTree

    cloud = points[valid]
    normals = np.zeros_like(points)
    usable = np.zeros_like(valid)
    if len(cloud) < _MIN_POINTS:
        return normals, usable
    tree = cKDTree(cloud)
    neighbours = min(_NEIGHBOURS, len(cloud))
    vectors = np.empty_like(cloud)
    spans = np.empty(len(cloud), dtype=bool)
    for start in range(0, len(cloud), _CHUNK):
        rows = slice(start, start + _CHUNK)
        _, nearest = tree.query(cloud[rows], k=neighbours)
        offsets = cloud[nearest] - cloud[rows, None]
        offsets -= offsets.mean(axis=1, keepdims=True)
        values, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", offsets, offsets))
        vectors[rows] = axes[:, :, 0]
        spans[rows] = values[:, 1] > _COLLINEAR * values[:, 2]
    normals[valid], usable[valid] = vectors, spans
    return normals, usable
