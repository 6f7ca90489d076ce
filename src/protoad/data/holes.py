"""Holes in the depth: normals guessed from around, how much was seen, and holes made on purpose to calibrate with."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, normalize

from protoad.data.foreground import PLANE_DISTANCE, foreground_mask
from protoad.data.sample import Sample
from protoad.errors import ConfigError

__all__ = ["HoleKind", "fill_normals", "lose_depth"]

HoleKind = Literal["specks", "blobs"]
"""Single pixels, or discs."""

_RADIUS = (0.02, 0.08)  # of a blob, shares of the frame's longer side


def lose_depth(
    sample: Sample, share: float, kind: HoleKind, *, seed: int, plane_distance: float = PLANE_DISTANCE
) -> Sample:
    """The same part as a sensor would have seen it that lost some of its depth: shine, soot, a steep wall.

    Args:
        sample: a part; its own normals, if it brings them, get the same holes.
        share: of the part's pixels that become invalid, in [0, 1).
        kind: "specks": single pixels all over the frame; "blobs": discs centred on the part.
        seed: of the places.
        plane_distance: as in `find_foreground`, to know the part by.

    Raises:
        ConfigError: if share or kind is not one of these.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"share: expected one in [0, 1), got {share}")
    if kind not in get_args(HoleKind):
        raise ConfigError(f"kind: expected one of {', '.join(get_args(HoleKind))}, got {kind!r}")
    rng = np.random.default_rng(seed)
    if kind == "specks":
        lost = rng.random(sample.mask.shape) < share
    else:
        lost = _blobs(foreground_mask(sample.xyz, distance=plane_distance), share, rng)
    xyz = sample.xyz.copy()
    xyz[lost] = np.nan
    normals = None if sample.normals is None else np.where(lost[..., None], np.float32(0), sample.normals)
    return replace(sample, xyz=xyz, normals=normals)


def _blobs(part: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Discs of random sizes, until they cover the share of the part."""
    centres = np.argwhere(part)
    y, x = np.ogrid[: part.shape[0], : part.shape[1]]
    lost = np.zeros_like(part)
    while (lost & part).sum() < share * len(centres):
        row, column = centres[rng.integers(len(centres))]
        radius = rng.uniform(*_RADIUS) * max(part.shape)
        lost |= (y - row) ** 2 + (x - column) ** 2 < radius**2
    return lost


def fill_normals(normals: Tensor, valid: Tensor) -> Tensor:
    """Continues a normal map smoothly into its holes (push-pull; Gortler et al., The Lumigraph, SIGGRAPH 1996).

    Means over ever larger blocks of the known directions are laid into the holes, the finest that knows anything there.
    Known directions stay as they are.

    Args:
        normals: (b 3 y x) in [0, 1], n * 0.5 + 0.5, as in `Prepared`.
        valid: (b y x) bool, where they are known.

    Returns:
        (b 3 y x); 0.5 everywhere in a map of which nothing is known.
    """
    known = valid.unsqueeze(1)
    weights = known.to(normals.dtype)
    filled = normalize(_pull_push((2 * normals - 1) * weights, weights), dim=1, eps=1e-6)
    return torch.where(known, normals, filled * 0.5 + 0.5)


def _pull_push(vectors: Tensor, weights: Tensor) -> Tensor:
    """Sums of vectors (b 3 y x) over blocks with weights (b 1 y x) as means, holes taken from blocks twice as wide."""
    means = vectors / weights.clamp_min(1e-6)
    if max(weights.shape[-2:]) == 1:
        return means
    wider = _pull_push(avg_pool2d(vectors, 2, ceil_mode=True), avg_pool2d(weights, 2, ceil_mode=True))
    guess = interpolate(wider, size=weights.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(weights > 0, means, guess)
