"""From a depth image to the points it shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from protoad.errors import DataError, ShapeError

__all__ = ["Intrinsics", "xyz_from_depth"]


class Intrinsics(NamedTuple):
    """A pinhole camera without distortion, in pixels; the centre of the first pixel is (0, 0).

    Many files count from the first pixel's corner instead: then half a pixel goes off `cx` and `cy`. `size` (y, x) is
    that of its images, None where nobody told it.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    size: tuple[int, int] | None = None

    @classmethod
    def of(cls, numbers: Sequence[Any] | None) -> Intrinsics | None:
        """Reads back what JSON made of one: a list, or None where there was none."""
        if numbers is None:
            return None
        fx, fy, cx, cy, size = numbers
        return cls(fx, fy, cx, cy, None if size is None else (size[0], size[1]))


def xyz_from_depth(depth: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """The organised point cloud of a depth image.

    x = (u - cx) z / fx, y = (v - cy) z / fy for column u and row v.

    Args:
        depth: (y x) metres along the optical axis, not along the ray; zero, negative or not finite where invalid.
        intrinsics: of the camera that the depth is seen from, at the size of `depth`.

    Returns:
        (y x 3) float32 metres, x right, y down, z away; NaN where invalid.

    Raises:
        ShapeError: if `depth` isn't (y x).
        DataError: if a number of `intrinsics` isn't finite, or a focal length isn't positive.

    Example:
        >>> xyz_from_depth(np.array([[0.5, 0.0]]), Intrinsics(fx=100, fy=100, cx=0, cy=10))
        array([[[ 0.  , -0.05,  0.5 ],
                [  nan,   nan,   nan]]], dtype=float32)
    """
    if depth.ndim != 2:
        raise ShapeError(f"depth: expected (y x), got {depth.shape}")
    fx, fy, cx, cy = intrinsics[:4]
    if not (np.isfinite([fx, fy, cx, cy]).all() and fx > 0 and fy > 0):
        raise DataError(f"intrinsics: expected finite numbers and positive focal lengths, got {intrinsics}")
    z = np.where(np.isfinite(depth), depth, np.nan).astype(np.float64)
    height, width = depth.shape
    with np.errstate(over="ignore"):  # what float32 cannot hold was not seen
        x = (np.arange(width) - cx) / fx * z
        y = (np.arange(height)[:, None] - cy) / fy * z
        xyz = np.stack([x, y, z], axis=-1).astype(np.float32)
    xyz[~(np.isfinite(xyz).all(axis=-1) & (xyz[..., 2] > 0))] = np.nan
    return xyz
