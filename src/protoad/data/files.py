"""Reading and writing the files of a part, with one kind of error that names the file.

Colour and masks go through Pillow and point clouds through tifffile: OpenCV answers every damaged file
with None and turns the channels of a TIFF around.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from protoad._atomic import write_atomically
from protoad._lazy import require
from protoad.data._decode import MAX_PIXELS, PathLike, image_kind, open_image, read_npy, read_tiff
from protoad.errors import DataError

__all__ = [
    "MAX_PIXELS",
    "EmptyCloudError",
    "PathLike",
    "invalid_to_nan",
    "read_depth",
    "read_mask",
    "read_normals",
    "read_rgb",
    "read_xyz",
    "write_mask",
    "write_rgb",
    "write_xyz",
]

_MAX_MASK_LEVELS = 16  # MVTec 3D-AD numbers kinds of defects (252 to 255); a photograph has far more levels
_UNKNOWN_NORMAL = 0.25  # a coded direction has length 1, mid-grey none


class EmptyCloudError(DataError):
    """A point cloud without a point or a surface: an error for who needs it, and news for who has the colours."""


def read_rgb(path: PathLike, *, grey: bool = False) -> np.ndarray:
    """The colour image in a PNG, JPEG, BMP or TIFF file.

    Args:
        path: of the file.
        grey: take an 8-bit grey image as well, as three equal channels.

    Returns:
        (y x 3) uint8. An alpha channel is dropped.

    Raises:
        DataError: if the file is missing, damaged, grey, 16 bit, or larger than `MAX_PIXELS`.
    """
    with open_image(path) as image:
        kind = image_kind(path, image)
        if grey and kind in ("L", "LA"):
            return np.repeat(np.array(image.convert("L"))[..., None], 3, axis=2)
        if kind not in ("RGB", "RGBA"):
            raise DataError(f"{path}: is an image of kind {kind}, expected an 8-bit colour image; convert it first")
        return np.ascontiguousarray(np.array(image)[..., :3])


def read_mask(path: PathLike) -> np.ndarray:
    """The outlined defect in an image of one channel, or of three that are equal.

    Returns:
        (y x) bool, True where the image isn't black.

    Raises:
        DataError: if the file is missing, damaged, in colour, or a picture rather than a mask.
    """
    with open_image(path) as image:
        kind = image_kind(path, image)
        if kind not in ("1", "L", "LA", "P", "I", "I;16", "RGB", "RGBA"):
            raise DataError(f"{path}: is an image of kind {kind}, expected a mask with one channel; convert it first")
        # a palette may put black at any index
        levels = np.array(image.convert("RGB") if kind == "P" else image)
    if levels.ndim == 3:
        levels = levels[..., :1] if kind == "LA" else levels[..., :3]
        if kind != "P" and (levels != levels[..., :1]).any():
            raise DataError(f"{path}: is an image of kind {kind}, expected a mask with one channel; convert it first")
        levels = levels.max(axis=-1)
    count = np.unique(levels).size
    if count > _MAX_MASK_LEVELS:
        raise DataError(f"{path}: has {count} grey levels, expected a mask (0 good, else defect); threshold it first")
    return levels != 0


def read_xyz(path: PathLike) -> np.ndarray:
    """The organised point cloud in a three-channel float TIFF file.

    Returns:
        (y x 3) float32 in the file's unit (metres everywhere in this project); all three coordinates are NaN
        where the file says "nothing here": (0, 0, 0), NaN or infinity.

    Raises:
        DataError: if the file is missing, damaged, has other channels or whole numbers, is larger than
            `MAX_PIXELS`, or holds no valid point.
    """

    def check(shape: tuple[int, ...], dtype: Any) -> None:
        if len(shape) != 3 or shape[2] != 3 or dtype is None or np.dtype(dtype) not in (np.float32, np.float64):
            raise DataError(
                f"{path}: holds {dtype} of shape {tuple(shape)}, expected float32 (y, x, 3): x, y, z in metres"
            )

    return invalid_to_nan(path, read_tiff(path, check))


def invalid_to_nan(path: PathLike, xyz: np.ndarray) -> np.ndarray:
    """Points (.. 3) as float32, all three coordinates NaN where one isn't finite or all are 0.

    Raises:
        EmptyCloudError: if no point is left; names the file.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold was not seen
        points = xyz.astype(np.float32, copy=False)  # nobody else holds what was just decoded
    points[~np.isfinite(points).all(axis=-1) | (points == 0).all(axis=-1)] = np.nan
    if np.isnan(points).all():
        raise EmptyCloudError(f"{path}: holds no valid point, only (0, 0, 0) or not finite; scan the part again")
    return points


def read_depth(path: PathLike) -> np.ndarray:
    """The numbers in a depth image: a 16-bit grey PNG, a one-channel TIFF, or a NumPy array.

    Returns:
        (y x) float32, as they stand in the file: their unit, and which of them say "nothing here", is for the
        caller to know.

    Raises:
        DataError: if the file is missing, damaged, has 8 bits or several channels, or is larger than `MAX_PIXELS`.
    """

    def check(shape: tuple[int, ...], dtype: Any) -> None:
        channels = 1 if len(shape) == 2 else shape[2] if len(shape) == 3 else 0
        kind = None if dtype is None else np.dtype(dtype)
        if channels != 1 or 0 in shape or kind is None or kind.kind not in "fiu" or kind.itemsize < 2:
            raise DataError(
                f"{path}: holds {dtype} of shape {tuple(shape)}, expected a depth image of 16 bits or more (y, x)"
            )

    suffix = Path(path).suffix.lower()
    if suffix == ".npy":
        depth = read_npy(path)
        check(depth.shape, depth.dtype)
    elif suffix in (".tif", ".tiff"):
        depth = read_tiff(path, check)
    else:
        with open_image(path) as image:
            kind = image_kind(path, image)
            if kind not in ("I", "I;16", "I;16B", "F"):
                raise DataError(f"{path}: is an image of kind {kind}, expected a 16-bit grey depth image")
            depth = np.array(image)
    with np.errstate(over="ignore", invalid="ignore"):
        return depth.reshape(depth.shape[:2]).astype(np.float32)


def read_normals(path: PathLike) -> np.ndarray:
    """The directions in a colour-coded normal map: n * 127.5 + 127.5 with x right, y up, z towards the viewer.

    Returns:
        (y x 3) float32 unit normals in camera axes (x right, y down, z away), zero where the map is grey.

    Raises:
        DataError: as `read_rgb`.
    """
    coded = read_rgb(path).astype(np.float32) / 127.5 - 1
    coded *= np.array([1, -1, -1], dtype=np.float32)
    length = np.linalg.norm(coded, axis=-1, keepdims=True)
    return np.where(length < _UNKNOWN_NORMAL, 0, coded / np.maximum(length, _UNKNOWN_NORMAL)).astype(np.float32)


def write_rgb(path: PathLike, rgb: np.ndarray) -> None:
    """Writes (y x 3) uint8 as PNG; a crash leaves the old file or the new one, never half of it."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise DataError(f"{path}: cannot write {rgb.dtype} {rgb.shape}, expected uint8 (y x 3)")
    image = require("PIL.Image", extra="data").fromarray(np.ascontiguousarray(rgb))
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG"))


def write_mask(path: PathLike, mask: np.ndarray) -> None:
    """Writes (y x) bool as a PNG of 0 and 255; a crash leaves the old file or the new one, never half."""
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise DataError(f"{path}: cannot write {mask.dtype} {mask.shape}, expected bool (y x)")
    image = require("PIL.Image", extra="data").fromarray(mask.astype(np.uint8) * np.uint8(255))
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG"))


def write_xyz(path: PathLike, xyz: np.ndarray) -> None:
    """Writes (y x 3) points as float32 TIFF, with (0, 0, 0) where any coordinate isn't finite.

    A crash leaves the old file or the new one, never half of it.
    """
    if xyz.ndim != 3 or xyz.shape[2] != 3 or xyz.dtype.kind != "f":
        raise DataError(f"{path}: cannot write {xyz.dtype} {xyz.shape}, expected float32 (y x 3)")
    tifffile = require("tifffile", extra="data")
    points = np.where(np.isfinite(xyz).all(axis=-1, keepdims=True), xyz, 0).astype(np.float32)
    write_atomically(
        path,
        lambda temporary: tifffile.imwrite(
            os.fspath(temporary), points, photometric="rgb", planarconfig="contig", metadata=None
        ),
    )
