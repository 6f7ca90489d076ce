"""From a sample to the tensors a detector takes, all on one pixel grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from protoad.data.files import EmptyCloudError
from protoad.data.foreground import EVERYTHING_KEPT, PLANE_DISTANCE, find_foreground
from protoad.data.geometry import SquareMap
from protoad.data.pointcloud import Normals, normals_from_xyz, split, viewer_axes
from protoad.data.sample import Sample
from protoad.errors import ConfigError

__all__ = ["PrepareSettings", "Prepared", "prepare", "prepare_and_explain", "prepare_colour", "without_depth"]


class Prepared(NamedTuple):
    """One part, ready for the encoders; `y = x = size`.

    Attributes:
        rgb: (3 y x) float32 in [0, 1]; black beside the frame of a part that isn't square.
        normals: (3 y x) float32 in [0, 1], the colours of `encode_normals` unquantised; 0.5 where invalid.
        valid: (y x) bool, where `normals` are known.
        foreground: (y x) bool, where the part is.
        mask: (y x) bool, where the defect is.
        xyz: (3 y x) float32, metres in camera axes, NaN where there is no point; None unless they were asked for.
    """

    rgb: Tensor
    normals: Tensor
    valid: Tensor
    foreground: Tensor
    mask: Tensor
    xyz: Tensor | None = None


@dataclass(frozen=True)
class PrepareSettings:
    """What `prepare` can be told.

    Args:
        size: of the output in pixels.
        foreground: False skips the search for the table: the whole frame counts as foreground.
        plane_distance: from the table, in metres, up to which a point is table; see `find_foreground`.
        points: whether to keep the points, for encoders that look at them.

    Raises:
        ConfigError: if `size` is below 1, or `plane_distance` isn't a finite number above 0.
    """

    size: int = 224
    foreground: bool = True
    plane_distance: float = PLANE_DISTANCE
    points: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"size: expected 1 pixel or more, got {self.size}")
        if not 0 < self.plane_distance < math.inf:
            raise ConfigError(f"plane_distance: expected a finite value above 0, got {self.plane_distance}")


def prepare(
    sample: Sample,
    size: int = 224,
    *,
    foreground: bool = True,
    plane_distance: float = PLANE_DISTANCE,
    points: bool = False,
) -> Prepared:
    """Resizes a part and turns its point cloud into a normal map.

    A frame that isn't square is centred in one that is; all tensors go through one `SquareMap`. Normals are those
    the sample brings, or fitted at full resolution; an output pixel takes their mean over the valid pixels it covers.

    Args:
        sample: the part.
        size: see `PrepareSettings`, as the others.
        foreground: see there.
        plane_distance: see there.
        points: see there.

    Raises:
        EmptyCloudError: if no pixel has a normal; names the sample.
        ConfigError: if a setting is out of range.
    """
    return prepare_and_explain(sample, PrepareSettings(size, foreground, plane_distance, points))[0]


def prepare_colour(rgb: np.ndarray, size: int = 224) -> Prepared:
    """Resizes the picture (y x 3) uint8 of a part without a point cloud: no normal is known, all of it may be part."""
    height, width = rgb.shape[:2]
    frame = SquareMap(height, width, size)
    colour, inside = frame.colour(rgb), torch.from_numpy(frame.nearest(np.ones((height, width), dtype=bool)))
    return without_depth(Prepared(colour, colour, inside, inside, torch.zeros_like(inside)))._replace(foreground=inside)


def without_depth(part: Prepared) -> Prepared:
    """A prepared part as if it had come without its point cloud; what lies beside its frame is not known any more."""
    return part._replace(
        normals=torch.full_like(part.normals, 0.5),
        valid=torch.zeros_like(part.valid),
        foreground=torch.ones_like(part.foreground),
        xyz=None if part.xyz is None else torch.full_like(part.xyz, torch.nan),
    )


def prepare_and_explain(sample: Sample, settings: PrepareSettings) -> tuple[Prepared, str]:
    """The same as `prepare`, and the sentence that says what was taken for background."""
    height, width = sample.rgb.shape[:2]
    frame = SquareMap(height, width, settings.size)
    normals, valid = _normals(sample)
    part, reason = np.ones(valid.shape, dtype=bool), f"{EVERYTHING_KEPT}: nobody asked for the foreground."
    if settings.foreground:
        part, _, reason = find_foreground(sample.xyz, distance=settings.plane_distance)
    masks = frame.nearest(np.stack([valid, part, sample.mask], axis=-1))
    kept, inside, mask = torch.from_numpy(np.ascontiguousarray(np.moveaxis(masks, -1, 0)))
    facing = torch.where(kept, frame.directions(viewer_axes(normals)) * 0.5 + 0.5, 0.5)
    xyz = _points(sample.xyz, frame) if settings.points else None
    return Prepared(frame.colour(sample.rgb), facing, kept, inside, mask, xyz), reason


def _points(xyz: np.ndarray, frame: SquareMap) -> Tensor:
    points, seen = split(xyz)
    picked = frame.nearest(np.where(seen[..., None], points, np.nan).astype(np.float32))
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(picked, -1, 0)))


def _normals(sample: Sample) -> Normals:
    if sample.normals is None:
        found, trouble = (
            normals_from_xyz(sample.xyz),
            "point cloud holds no surface; check the unit of its points, or scan the part again",
        )
    else:
        known = np.asarray(sample.normals.any(axis=-1))
        found, trouble = Normals(sample.normals, known), "normals are all zero; check their file"
    if not found.valid.any():
        raise EmptyCloudError(f"{sample.name}: its {trouble}")
    return found
