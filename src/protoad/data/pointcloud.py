"""Organised point clouds: surface normals and their colour coding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from protoad.data.normals_grid import FAR, Normals, grid_normals
from protoad.data.normals_knn import knn_normals, open3d_normals
from protoad.data.normals_orient import tangent_plane_signs
from protoad.errors import ShapeError

__all__ = ["Normals", "dot", "encode_normals", "grid_normals", "normals_from_xyz", "split", "viewer_axes"]

_METHODS = ("grid", "knn", "open3d")
_ORIENTATIONS = ("camera", "tangent_plane")


def normals_from_xyz(
    xyz: np.ndarray,
    *,
    method: Literal["grid", "knn", "open3d"] = "grid",
    orient: Literal["camera", "tangent_plane"] = "camera",
) -> Normals[np.ndarray]:
    """Surface normals of an organised point cloud.

    Args:
        xyz: (y x 3) metres, camera axes x right, y down, z away; not finite, (0, 0, 0) or beyond 1e12 where invalid.
        method: "grid" fits planes to windows on the pixel grid that keep to one side of depth edges and creases, see
            `grid_normals`. "knn" fits one to the 30 nearest points in space (PIRN, B.2): slower, and it rounds
            creases. "open3d" lets Open3D do the latter, with the same result.
        orient: "camera" turns every normal towards the viewpoint, n . p < 0: exact for one view. "tangent_plane"
            makes neighbours agree and most of them face the viewpoint (PIRN, B.2), see `tangent_plane_signs`.

    Returns:
        `Normals`, (y x 3) float32 and (y x). A pixel is valid if it has a point and that point's neighbours span a
        plane.

    Raises:
        ShapeError: if `xyz` isn't (y x 3).
        ValueError: for another `method` or `orient`.
        MissingExtraError: if Open3D is asked for and not there.
    """
    for name, value, known in (("method", method, _METHODS), ("orient", orient, _ORIENTATIONS)):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {value!r}")
    normals, valid = (
        _grid(xyz) if method == "grid" else _nearest(xyz, knn_normals if method == "knn" else open3d_normals)
    )
    if orient == "tangent_plane":
        signs = tangent_plane_signs(xyz[valid].astype(np.float64), normals[valid].astype(np.float64))
        normals[valid] *= signs[:, None].astype(np.float32)
    return Normals(normals, valid)


def _grid(xyz: np.ndarray) -> Normals[np.ndarray]:
    _check(xyz)
    # in the precision of the input, and half the time for float32; a copy: tensors don't share what is read-only
    wide = xyz.dtype.kind != "f" or xyz.dtype.itemsize > 4
    normals, valid = grid_normals(torch.from_numpy(np.array(xyz, np.float64 if wide else np.float32))[None])
    return Normals(normals[0].float().numpy(), valid[0].numpy())


def _nearest(xyz: np.ndarray, fit: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Normals[np.ndarray]:
    points, valid = split(xyz)
    cloud = points[valid]
    vectors, spans = fit(cloud)
    vectors[dot(vectors, cloud) > 0] *= -1
    vectors[~spans] = 0
    normals = np.zeros(xyz.shape, dtype=np.float32)
    normals[valid], valid[valid] = vectors, spans
    return Normals(normals, valid)


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
    """Points as float64 with zeros where invalid, and where they are valid: finite, not (0, 0, 0), within 1e12."""
    _check(xyz)
    valid = (np.abs(xyz) < FAR).all(axis=-1) & (xyz != 0).any(axis=-1)
    return np.where(valid[..., None], xyz, 0).astype(np.float64), valid


def _check(xyz: np.ndarray) -> None:
    if xyz.ndim != 3 or xyz.shape[2] != 3:
        raise ShapeError(f"xyz: expected (y x 3), got {xyz.shape}")
