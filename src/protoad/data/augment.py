"""Copies of a prepared part, flipped, turned and shifted; its normals turn with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from protoad.data.prepare import Prepared

__all__ = ["augment", "random_copies"]


def augment(
    part: Prepared, *, flip: bool = False, angle: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)
) -> Prepared:
    """The part as if it lay differently on the table: mirrored first, then turned about the centre, then shifted.

    Turning an image of normals is not enough: a vector that leaned to the right must lean where the right has
    gone. What comes in from outside is black, invalid and background.

    Args:
        part: on its square grid; left as it is.
        flip: mirror left and right. Only for parts whose mirror image is a good part too: no thread, no lettering.
        angle: radians, counterclockwise as seen.
        shift: (down, right) as shares of the side.

    Returns:
        The moved copy: colour and normals bilinear, masks and points nearest. Points turn about the optical axis and
        are not shifted in space, where only their places towards each other matter.
    """
    if flip:
        part = _flipped(part)
    if not angle and not any(shift):
        return part
    cos, sin = np.cos(angle), np.sin(angle)
    down, right = 2 * np.asarray(shift)  # the sides of the grid are 2 long
    # where an output pixel comes from: shifted back, then turned back; y points down, so the signs look swapped
    theta = torch.tensor([[[cos, -sin, sin * down - cos * right], [sin, cos, -sin * right - cos * down]]])
    grid = functional.affine_grid(theta, [1, 1, *part.valid.shape], align_corners=False).float()
    masks = torch.stack([part.valid, part.foreground, part.mask]).float()
    valid, foreground, mask = _sampled(masks, grid, "nearest") > 0.5
    x, y, z = _sampled(torch.where(part.valid, 2 * part.normals - 1, 0), grid, "bilinear")
    turned = torch.stack([cos * x - sin * y, sin * x + cos * y, z])
    normals = torch.where(valid, functional.normalize(turned, dim=0, eps=1e-6) * 0.5 + 0.5, 0.5)
    xyz = None if part.xyz is None else _turned_points(part.xyz, grid, cos, sin)
    return Prepared(_sampled(part.rgb, grid, "bilinear").clamp(0, 1), normals, valid, foreground, mask, xyz)


def random_copies(
    parts: Sequence[Prepared],
    count: int,
    *,
    seed: int,
    first: int = 0,
    max_angle: float = np.pi,
    max_shift: float = 0.04,
    flip: bool = False,
) -> list[Prepared]:
    """Moved copies of good parts, to learn from besides the parts themselves.

    Args:
        parts: left as they are.
        count: copies of each.
        seed: of the draws; more copies or parts don't change those drawn before.
        first: position of the first of these parts among all: a few of many get the copies they get among the many.
        max_angle: radians; the angle is drawn evenly from both senses.
        max_shift: share of the side, drawn evenly along both axes.
        flip: whether every other copy, by chance, is mirrored.

    Returns:
        `count` copies of the first part, then of the second, and so on.
    """
    copies = []
    for index, part in enumerate(parts, start=first):
        rng = np.random.default_rng((seed, index))
        for _ in range(count):
            angle, down, right, coin = rng.uniform(-1, 1, 4)
            shift = (max_shift * down, max_shift * right)
            copies.append(augment(part, flip=flip and coin > 0, angle=max_angle * angle, shift=shift))
    return copies


def _flipped(part: Prepared) -> Prepared:
    rgb, normals, valid, foreground, mask = (tensor.flip(-1) for tensor in part[:5])  # copies
    normals[0] = 1 - normals[0]  # n_x changes sign; 0.5, where invalid, stays
    xyz = None if part.xyz is None else part.xyz.flip(-1) * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    return Prepared(rgb, normals, valid, foreground, mask, xyz)


def _turned_points(xyz: Tensor, grid: Tensor, cos: float, sin: float) -> Tensor:
    """Points (3 y x) in camera axes, whose y points down, as seen after a turn; NaN where none comes from."""
    there = xyz.isfinite().all(0, keepdim=True)
    x, y, z = _sampled(torch.where(there, xyz, 0), grid, "nearest")
    turned = torch.stack([cos * x + sin * y, cos * y - sin * x, z])
    return torch.where(_sampled(there.float(), grid, "nearest") > 0.5, turned, torch.nan)


def _sampled(image: Tensor, grid: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(image[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]
