"""From a sample to the tensors a detector takes, all on one pixel grid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from protoad.data.foreground import foreground_mask
from protoad.data.pointcloud import normals_from_xyz, viewer_axes
from protoad.data.sample import Sample
from protoad.errors import DataError

__all__ = ["Prepared", "prepare"]


class Prepared(NamedTuple):
    """One part, ready for the encoders; `y = x = size`.

    Attributes:
        rgb: (3 y x) float32 in [0, 1]; black beside the frame of a part that isn't square.
        normals: (3 y x) float32 in [0, 1], the colours of `encode_normals` unquantised; 0.5 where invalid.
        valid: (y x) bool, where `normals` are known.
        foreground: (y x) bool, where the part is.
        mask: (y x) bool, where the defect is.
    """

    rgb: Tensor
    normals: Tensor
    valid: Tensor
    foreground: Tensor
    mask: Tensor


def prepare(sample: Sample, size: int = 224, *, foreground: bool = True) -> Prepared:
    """Resizes a part and turns its point cloud into a normal map.

    A frame that isn't square is centred in one that is. Output pixel i stands for the source interval
    [i, i + 1) * side / size in all five tensors: colour is bicubic with antialiasing, normals are fitted at
    full resolution and averaged over their valid pixels, and the masks take the pixel at the interval's centre.

    Args:
        sample: the part.
        size: of the output in pixels.
        foreground: False skips the search for the table: the whole frame counts as foreground.

    Raises:
        DataError: if no pixel has a valid point; names the sample.
    """
    if size < 1:
        raise DataError(f"size: expected 1 pixel or more, got {size}")
    normals, valid = normals_from_xyz(sample.xyz)
    if not valid.any():
        raise DataError(f"{sample.name}: its point cloud holds no surface; scan the part again")
    part = foreground_mask(sample.xyz) if foreground else np.ones(valid.shape, dtype=bool)
    facing = _to_square(viewer_axes(normals))
    rgb = functional.interpolate(
        _to_square(sample.rgb).float() / 255, (size, size), mode="bicubic", antialias=True
    ).clamp(0, 1)
    masks = _nearest(np.stack([valid, part, sample.mask], axis=-1), size)
    return Prepared(rgb[0], _shrink_normals(facing, masks[0], size), *masks)


def _shrink_normals(normals: Tensor, valid: Tensor, size: int) -> Tensor:
    """Colours (3 y x) of the mean direction around each output pixel; invalid pixels come as zeros."""
    mean = functional.interpolate(normals, (size, size), mode="bilinear", antialias=True)
    unit = functional.normalize(mean, dim=1, eps=1e-6)[0]
    return torch.where(valid, unit * 0.5 + 0.5, 0.5)


def _nearest(masks: np.ndarray, size: int) -> tuple[Tensor, ...]:
    square = _to_square(masks.astype(np.uint8))
    return tuple(functional.interpolate(square, (size, size), mode="nearest-exact")[0].bool())


def _to_square(image: np.ndarray) -> Tensor:
    """(y x c) to (1 c s s), zeros on both sides of the shorter axis."""
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)))[None]
    height, width = image.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return functional.pad(tensor, (left, side - width - left, top, side - height - top))
