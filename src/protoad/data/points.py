"""The points of a part, whichever kind of file holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from protoad.data._decode import PathLike, tiff_shape
from protoad.data.camera import Intrinsics, xyz_from_depth
from protoad.data.clouds import read_cloud
from protoad.data.files import EmptyCloudError, read_depth, read_xyz
from protoad.errors import DataError

__all__ = ["CLOUD_SUFFIXES", "DEPTH_SUFFIXES", "read_depth_points", "read_points"]

_TIFF, _CLOUDS = (".tiff", ".tif"), (".ply", ".pcd")
CLOUD_SUFFIXES = (*_TIFF, *_CLOUDS)
"""Of the files that `read_points` reads; a TIFF file may also be a depth image."""
DEPTH_SUFFIXES = (".png", ".npy")
"""Of the further files that it reads if there is a camera."""


def read_points(path: PathLike, *, unit: float = 1.0, camera: Intrinsics | None = None) -> np.ndarray:
    """The points in a TIFF file of three channels, a PLY or PCD file, or, with a camera, a depth image.

    Args:
        path: of the file; its suffix says which kind.
        unit: of its numbers, in metres.
        camera: that depth images are seen by.

    Returns:
        (y x 3) float32 metres, NaN where invalid; y = 1 for a PLY or PCD file that tells no grid (see `lay_on_grid`).

    Raises:
        EmptyCloudError: if it holds no valid point.
        DataError: if the file is missing or damaged, of another kind, or a depth image without a camera, or of another
            size than it has.
    """
    suffix = Path(path).suffix.lower()
    if suffix in _CLOUDS:
        return read_cloud(path) * unit
    if suffix not in (*_TIFF, *DEPTH_SUFFIXES):
        kinds = ", ".join((*CLOUD_SUFFIXES, *DEPTH_SUFFIXES))
        raise DataError(f"{path}: is of no format that points are read from; expected {kinds}")
    if camera is not None and (suffix in DEPTH_SUFFIXES or _one_channel(tiff_shape(path))):
        return read_depth_points(path, camera, unit=unit)
    if suffix in DEPTH_SUFFIXES:
        raise DataError(
            f"{path}: would be a depth image, which takes a camera: learn from data whose protoad.toml has depth "
            "and camera (docs/data.md), or hand over points as TIFF, PLY or PCD"
        )
    return read_xyz(path) * unit


def _one_channel(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or shape[2:] == (1,)


def read_depth_points(path: PathLike, camera: Intrinsics, *, unit: float = 1.0) -> np.ndarray:
    """The points that a depth image shows.

    Args:
        path: of a 16-bit grey PNG, a one-channel TIFF, or a NumPy array.
        camera: that it is seen by.
        unit: of its numbers, in metres.

    Returns:
        (y x 3) float32 metres, NaN where invalid.

    Raises:
        EmptyCloudError: if it holds no valid depth.
        DataError: if the file is missing or damaged, or of another size than the camera's.
    """
    depth = read_depth(path)
    if camera.size is not None and camera.size != depth.shape:
        told, height, width = camera.size, *depth.shape
        raise DataError(f"{path}: is {width} x {height} pixels, but its camera has {told[1]} x {told[0]}")
    with np.errstate(over="ignore", invalid="ignore"):
        xyz = xyz_from_depth(depth * unit, camera)
    if np.isnan(xyz).all():
        raise EmptyCloudError(f"{path}: holds no valid depth, only 0 or not finite; scan the part again")
    return xyz
