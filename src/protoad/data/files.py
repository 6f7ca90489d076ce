"""Reading and writing the three files of a part, with one kind of error that names the file.

Colour and masks go through Pillow and point clouds through tifffile: OpenCV answers every damaged file
with None and turns the channels of a TIFF around.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from protoad._atomic import write_atomically
from protoad._lazy import require
from protoad.errors import DataError

__all__ = ["MAX_PIXELS", "read_mask", "read_rgb", "read_xyz", "write_mask", "write_rgb", "write_xyz"]

PathLike = str | os.PathLike[str]

MAX_PIXELS = 64_000_000
"""Largest frame that is decoded: a header may promise gigabytes that a small file doesn't hold."""

_MAX_MASK_LEVELS = 16  # MVTec 3D-AD numbers kinds of defects (252 to 255); a photograph has far more levels


def read_rgb(path: PathLike) -> np.ndarray:
    """The colour image in a PNG or JPEG file.

    Returns:
        (y x 3) uint8. An alpha channel is dropped.

    Raises:
        DataError: if the file is missing, damaged, grey, 16 bit, or larger than `MAX_PIXELS`.
    """
    image = _read_image(path, {"RGB": None, "RGBA": "RGB"}, "an 8-bit colour image")
    return np.ascontiguousarray(image)


def read_mask(path: PathLike) -> np.ndarray:
    """The outlined defect in a one-channel image.

    Returns:
        (y x) bool, True where the file isn't 0.

    Raises:
        DataError: if the file is missing, damaged, in colour, or a picture rather than a mask.
    """
    levels = _read_image(path, {"1": None, "L": None, "P": None, "I;16": None}, "a mask with one channel")
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
    _check_file(path)
    tifffile = require("tifffile", extra="data")
    try:
        with tifffile.TiffFile(os.fspath(path)) as file:
            page = file.pages[0]
            _check_xyz_header(path, page.shape, page.dtype)
            xyz = page.asarray().astype(np.float32)
    except DataError:
        raise
    except Exception as error:  # tifffile raises whatever its parser stumbles over
        raise DataError(f"{path}: not a readable TIFF file ({_brief(error)}); copy the file again") from error
    xyz[~np.isfinite(xyz).all(axis=-1) | (xyz == 0).all(axis=-1)] = np.nan
    if np.isnan(xyz).all():
        raise DataError(f"{path}: holds no valid point, only (0, 0, 0) or not finite; scan the part again")
    return xyz


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


def _read_image(path: PathLike, modes: dict[str, str | None], expected: str) -> np.ndarray:
    _check_file(path)
    pil = require("PIL.Image", extra="data")
    try:
        with pil.open(os.fspath(path)) as image:
            _check_size(path, *image.size)
            found = f"16-bit {image.mode}" if _is_16_bit_colour(path, image) else image.mode
            if found not in modes:
                raise DataError(f"{path}: is an image of kind {found}, expected {expected}; convert it first")
            target = modes[found]
            return np.array(image if target is None else image.convert(target))
    except DataError:
        raise
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as error:
        raise DataError(f"{path}: {_brief(error)}; the limit here is {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise DataError(f"{path}: not a readable image ({_brief(error)}); copy the file again") from error


def _is_16_bit_colour(path: PathLike, image: Any) -> bool:
    """Pillow silently keeps the upper 8 of 16 bits in a colour PNG; a 12-bit camera would come out black."""
    if image.format != "PNG" or image.mode not in ("RGB", "RGBA"):
        return False
    with open(path, "rb") as file:
        header = file.read(25)
    return len(header) == 25 and header[24] == 16  # bit depth in the IHDR chunk


def _check_file(path: PathLike) -> None:
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file; check the path")
    if not os.path.isfile(path):
        raise DataError(f"{path}: is a folder, expected a file")
    if os.path.getsize(path) == 0:
        raise DataError(f"{path}: is empty (0 bytes); copy the file again")


def _check_size(path: PathLike, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path}: its header promises {width} x {height} pixels, the limit is {MAX_PIXELS}; "
            "crop the frame or repair the file"
        )


def _check_xyz_header(path: PathLike, shape: tuple[int, ...], dtype: Any) -> None:
    if len(shape) >= 2:
        _check_size(path, shape[1], shape[0])
    if len(shape) != 3 or shape[2] != 3 or dtype is None or np.dtype(dtype) not in (np.float32, np.float64):
        raise DataError(f"{path}: holds {dtype} of shape {tuple(shape)}, expected float32 (y, x, 3): x, y, z in metres")


def _brief(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
