"""Putting the pictures of one part on one pixel grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from protoad._lazy import require
from protoad.errors import DataError

__all__ = ["face_camera", "share_grid", "take_nearest"]

_SAME_SHAPE = 0.02  # of the ratio of the sides: a half-size frame may be a pixel short


def share_grid(frames: Mapping[str, np.ndarray], files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """The frames of one part, all on the coarser of two grids: the colour image's or the point cloud's.

    All show the same view, so pixel i of n stands for the interval [i, i + 1) / n of it, in every frame. A finer colour
    image is averaged over these intervals, and a mask by majority; points and normals, of which a mean may lie on no
    surface, are those at the interval's centre (next to it at even factors: a quarter of a pixel, which no choice
    avoids). The coarser grid, because points that are merely repeated make stairs of a surface.

    Args:
        frames: "rgb" (y x 3) uint8 and "xyz" (y x 3), and perhaps "normals" (y x 3) and "mask" (y x), of any sizes.
        files: where they come from, for messages.

    Returns:
        The same, of one size.

    Raises:
        DataError: if the sides of a frame have another ratio than the colour image's; names it.
    """
    rgb, xyz = frames["rgb"], frames["xyz"]
    for name, frame in frames.items():
        height, width = frame.shape[:2]
        ratio = height * rgb.shape[1] / (width * rgb.shape[0])
        if abs(ratio - 1) > _SAME_SHAPE:
            raise DataError(
                f"{files.get(name, name)}: is {width} x {height} pixels, but {files['rgb']} is "
                f"{rgb.shape[1]} x {rgb.shape[0]}; frames of other shapes show other views: crop or register them"
            )
    size = min(rgb.shape[:2], xyz.shape[:2])
    resize = {"rgb": _average, "mask": _majority}
    return {name: resize.get(name, take_nearest)(frame, size) for name, frame in frames.items()}


def take_nearest(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame (y x ..) at another size (y, x): output pixel i takes what lies at the centre of its interval."""
    if frame.shape[:2] == size:
        return frame
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, frame.shape, strict=False))
    return frame[rows[:, None], columns]


def face_camera(normals: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """Normals (y x 3), with zeros instead of those that no camera at the origin can see at their point of `xyz`.

    Where the point isn't known, the optical axis stands for the line of sight.
    """
    sight = np.where(np.isfinite(xyz), xyz, np.array([0, 0, 1], dtype=xyz.dtype))
    return np.where((normals * sight).sum(axis=-1, keepdims=True) < 0, normals, 0).astype(np.float32)


def _average(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    pil = require("PIL.Image", extra="data")
    return np.array(pil.fromarray(image).resize(size[::-1], pil.Resampling.BOX))


def _majority(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return mask if mask.shape == size else _average(mask.astype(np.uint8) * np.uint8(255), size) > 127
