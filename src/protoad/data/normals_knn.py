"""Surface normals from the nearest neighbours in space: planes of least squares through 30 points."""

from __future__ import annotations

import numpy as np

from protoad._lazy import require_open3d

__all__ = ["knn_normals", "open3d_normals"]

_NEIGHBOURS = 30
_MIN_POINTS = 3
_COLLINEAR = 1e-3  # second over first eigenvalue: points on a line span no plane
_CHUNK = 20_000  # points at a time: 15 MB of neighbours instead of 120


def knn_normals(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals (n 3) with any sign of points (n 3), and where the neighbours span a plane (n).

    Points that coincide count once: they tell nothing twice, and thousands of them in one place stall the search.
    """
    from scipy.spatial import cKDTree

    cloud, place = np.unique(points, axis=0, return_inverse=True)
    place = place.reshape(-1)  # some versions of numpy give it another shape
    if len(cloud) < _MIN_POINTS:
        return np.zeros_like(points), np.zeros(len(points), dtype=bool)
    tree = cKDTree(cloud)
    neighbours = min(_NEIGHBOURS, len(cloud))
    normals, spans = np.empty_like(cloud), np.empty(len(cloud), dtype=bool)
    for start in range(0, len(cloud), _CHUNK):
        rows = slice(start, start + _CHUNK)
        _, nearest = tree.query(cloud[rows], k=neighbours)
        offsets = cloud[nearest] - cloud[rows, None]
        offsets -= offsets.mean(axis=1, keepdims=True)
        values, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", offsets, offsets))
        normals[rows] = axes[:, :, 0]
        spans[rows] = values[:, 1] > _COLLINEAR * values[:, 2]
    return normals[place], spans[place]


def open3d_normals(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same from Open3D's `estimate_normals`, which counts points that coincide as often as they occur.

    Raises:
        MissingExtraError: if Open3D is not installed or cannot be loaded.
    """
    open3d = require_open3d()
    if len(points) < _MIN_POINTS:
        return np.zeros_like(points), np.zeros(len(points), dtype=bool)
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
    neighbours = open3d.geometry.KDTreeSearchParamKNN(min(_NEIGHBOURS, len(points)))
    cloud.estimate_covariances(neighbours)  # estimate_normals takes these; it makes up normals where they are flat
    cloud.estimate_normals(neighbours)
    values = np.linalg.eigvalsh(np.asarray(cloud.covariances))
    return np.array(cloud.normals), values[:, 1] > _COLLINEAR * values[:, 2]
