"""Anomalies of any size: a connected share of a good part gets another colour, relief or surface."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from protoad.data import Sample

__all__ = ["KINDS", "Kind", "find_texture", "spoil"]

Kind = Literal["colour", "relief", "foreign"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_RAGGED = 2.5  # pixels by which the outline of an anomaly wanders
_TINT = 0.4  # share of the foreign colour
_FOREIGN = 0.5  # share of the foreign surface
_RELIEF = 2.5e-4  # metres, deviation of the relief: two and a half times the sensor's noise
_SHADE = 0.1  # change of brightness on a slope of one deviation


def spoil(
    sample: Sample, part: np.ndarray, kind: Kind, *, fraction: float, texture: np.ndarray, rng: np.random.Generator
) -> Sample:
    """The part with one anomaly, its mask exact: outside it nothing changes, and it fades in within two pixels.

    - "colour": a tint, evenly over the place.
    - "relief": bumps in the cloud, and their shade in the image.
    - "foreign": the colours of another part shine through, with relief.

    Args:
        sample: a good part.
        part: (y x) bool, where it is.
        kind: of anomaly.
        fraction: of the part's pixels, in (0, 1).
        texture: (y x 3) colours for "foreign", 0 to 255.
        rng: decides place, outline and looks.
    """
    from scipy.ndimage import distance_transform_edt

    mask = _place(part, fraction, rng)
    depth = np.clip(distance_transform_edt(mask) / 2, 0, 1)
    rgb, xyz = sample.rgb.astype(np.float64), sample.xyz
    if kind == "colour":
        rgb += _TINT * depth[..., None] * (_foreign_colour(rgb[mask].mean(0), rng) - rgb)
    else:
        if kind == "foreign":
            rgb += _FOREIGN * depth[..., None] * (texture - rgb)
        relief = _smooth(rng, part.shape, 1.5)
        slope = sum(np.gradient(relief))
        rgb *= 1 + _SHADE * (depth * np.clip(slope / slope.std(), -2, 2))[..., None]
        nearer = _RELIEF * depth * relief
        xyz = (xyz * (1 - nearer[..., None] / xyz[..., 2:])).astype(np.float32)  # along the pixel's own ray
    return replace(sample, rgb=np.clip(np.rint(rgb), 0, 255).astype(np.uint8), xyz=xyz, mask=mask, label=1, defect=kind)


def find_texture(sample: Sample, part: np.ndarray) -> np.ndarray:
    """The colours (y x 3) of a part's largest free square, mirrored over the whole frame."""
    from scipy.ndimage import distance_transform_edt

    room = distance_transform_edt(part)
    row, column = np.unravel_index(room.argmax(), room.shape)
    half = max(4, int(room.max() / np.sqrt(2)))
    patch = sample.rgb[max(0, row - half) : row + half, max(0, column - half) : column + half].astype(np.float64)
    height, width = part.shape
    return np.pad(patch, ((0, height - len(patch)), (0, width - patch.shape[1]), (0, 0)), mode="symmetric")


def _place(part: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """The pixels of a part nearest to a random one of them, with a ragged outline."""
    rows, columns = np.nonzero(part)
    chosen = rng.integers(len(rows))
    y, x = np.indices(part.shape)
    away = np.hypot(y - rows[chosen], x - columns[chosen]) + _RAGGED * _smooth(rng, part.shape, 5)
    return part & (away <= np.quantile(away[part], fraction))


def _foreign_colour(own: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random colour, clearly another one but not glaring."""
    while True:
        colour = rng.uniform(30, 225, 3)
        if 60 < np.linalg.norm(colour - own) < 100:
            return colour


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """A random field with unit deviation."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.standard_normal(shape), sigma)
    return np.asarray(field / field.std())
