"""Moved copies against scenes that were rendered moved."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protoad.data import Prepared, Sample, augment, prepare, random_copies

SIZE = 97


def _scene(matrix: np.ndarray, move: np.ndarray) -> Prepared:
    """A smooth scene whose part coordinates (x right, y up, in half sides) are moved by p -> matrix p + move.

    Colour and height are formulas of the part's own coordinates; the height's slope gives the normals exactly.
    """
    rows, columns = np.mgrid[:SIZE, :SIZE]
    seen = np.stack([(columns + 0.5) * 2 / SIZE - 1, 1 - (rows + 0.5) * 2 / SIZE], axis=-1)
    back = np.linalg.inv(matrix)
    x, y = np.moveaxis((seen - move) @ back.T, -1, 0)
    colour = np.stack([0.5 + 0.4 * np.sin(3 * x + y), 0.5 + 0.4 * np.cos(2 * y), 0.5 + 0.3 * x * np.exp(-y * y)], -1)
    slope = np.stack([0.6 * np.cos(2 * x) * np.cos(y), -0.3 * np.sin(2 * x) * np.sin(y) + 0.2], axis=-1)
    slope = slope @ back  # the chain rule: gradients go with the transposed inverse
    viewer = np.concatenate([-slope, np.ones((SIZE, SIZE, 1))], axis=-1)
    viewer /= np.linalg.norm(viewer, axis=-1, keepdims=True)
    normals = (viewer * [1, -1, -1]).astype(np.float32)
    spot = (x - 0.3) ** 2 / 0.04 + (y - 0.2) ** 2 / 0.01 < 1
    hole = (x + 0.2) ** 2 + (y + 0.3) ** 2 < 0.02
    normals[hole] = 0
    height = 0.3 * np.sin(2 * x) * np.cos(y) + 0.2 * y
    xyz = np.stack([seen[..., 0], -seen[..., 1], 2 - height], axis=-1).astype(np.float32)
    xyz[hole] = np.nan
    sample = Sample((255 * colour).round().astype(np.uint8), xyz, spot, 1, "spot", "scene", normals)
    return prepare(sample, SIZE, foreground=False, points=True)


def _turn(angle: float, *, flip: bool = False) -> np.ndarray:
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turned @ np.diag([-1.0, 1.0]) if flip else turned


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 2, -2.0])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.05, -0.08)])
def test_a_moved_copy_is_the_moved_scene(flip: bool, angle: float, shift: tuple[float, float]) -> None:
    still = _scene(np.eye(2), np.zeros(2))
    moved = augment(still, flip=flip, angle=angle, shift=shift)
    rendered = _scene(_turn(angle, flip=flip), np.array([2 * shift[1], -2 * shift[0]]))
    inside = moved.foreground  # all that is not from outside the old frame
    assert inside.float().mean() > 0.6
    assert (moved.mask != rendered.mask)[inside].float().mean() < 0.01
    assert (moved.valid != rendered.valid)[inside].float().mean() < 0.01
    erode = torch.nn.functional.max_pool2d
    near_hole = erode((~(moved.valid & rendered.valid)).float()[None], 5, 1, 2)[0] > 0
    smooth = inside & ~near_hole
    assert (moved.rgb - rendered.rgb)[:, smooth].abs().max() < 0.02
    assert (moved.normals - rendered.normals)[:, smooth].abs().max() < 0.005
    shifted = torch.tensor([2 * shift[1], 2 * shift[0], 0.0])[:, None, None]  # what points are not
    assert (moved.xyz + shifted - rendered.xyz)[:, smooth].abs().max() < 0.02  # a pixel is 0.021 wide


def test_flips_and_quarter_turns_move_pixels_whole() -> None:
    still = _scene(np.eye(2), np.zeros(2))
    twice = augment(augment(still, flip=True), flip=True)
    for before, after in zip(still, twice, strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=1e-7, equal_nan=True)
    quarter = augment(still, angle=np.pi / 2)
    for name in ("rgb", "valid", "foreground", "mask"):
        before, after = getattr(still, name), getattr(quarter, name)
        torch.testing.assert_close(after.float(), before.rot90(1, (-2, -1)).float(), rtol=0, atol=1e-4)
    x, y, z = (2 * still.normals - 1).rot90(1, (-2, -1))
    torch.testing.assert_close(2 * quarter.normals - 1, torch.stack([-y, x, z]), rtol=0, atol=1e-4)
    x, y, z = still.xyz.rot90(1, (-2, -1))
    torch.testing.assert_close(quarter.xyz, torch.stack([y, -x, z]), rtol=0, atol=1e-6, equal_nan=True)


def test_points_are_moved_only_where_there_are_any() -> None:
    still = _scene(np.eye(2), np.zeros(2))
    bare = augment(still._replace(xyz=None), flip=True, angle=0.4, shift=(0.1, 0.0))
    assert bare.xyz is None
    for one, other in zip(bare[:5], augment(still, flip=True, angle=0.4, shift=(0.1, 0.0))[:5], strict=True):
        assert torch.equal(one, other)


def test_what_comes_in_from_outside_is_background() -> None:
    moved = augment(_scene(np.eye(2), np.zeros(2)), shift=(10 / SIZE, 0.0))
    assert not (moved.valid | moved.foreground | moved.mask)[:10].any()
    assert (moved.normals[:, :10] == 0.5).all()
    assert (moved.rgb[:, :9] == 0).all()
    assert moved.xyz[:, :10].isnan().all()
    assert moved.foreground[10:].all()


def test_normals_stay_unit_and_the_part_as_it_was() -> None:
    part = _scene(np.eye(2), np.zeros(2))
    before = [tensor.clone() for tensor in part]
    moved = augment(part, flip=True, angle=0.7, shift=(0.1, 0.1))
    lengths = (2 * moved.normals - 1).norm(dim=0)
    torch.testing.assert_close(lengths[moved.valid], torch.ones(int(moved.valid.sum())), rtol=0, atol=1e-5)
    assert (lengths[~moved.valid] == 0).all()
    assert [tensor.dtype for tensor in moved] == [tensor.dtype for tensor in part]
    for old, now in zip(before, part, strict=True):
        torch.testing.assert_close(old, now, rtol=0, atol=0, equal_nan=True)
    assert augment(part) is part


def test_copies_are_drawn_by_seed_alone() -> None:
    parts = [_scene(np.eye(2), np.zeros(2)), _scene(_turn(1.0), np.zeros(2))]
    assert random_copies(parts, 0, seed=0) == []
    two, three = (random_copies(parts, count, seed=0) for count in (2, 3))
    assert (len(two), len(three)) == (4, 6)
    for few, many in ((0, 0), (1, 1), (2, 3), (3, 4)):
        assert torch.equal(two[few].rgb, three[many].rgb)
    assert not torch.equal(two[0].rgb, two[1].rgb)
    assert not torch.equal(two[0].rgb, random_copies(parts, 2, seed=1)[0].rgb)


def test_copies_are_mirrored_only_on_demand() -> None:
    part = _scene(np.eye(2), np.zeros(2))
    still = {"max_angle": 0.0, "max_shift": 0.0}
    assert all(torch.equal(copy.rgb, part.rgb) for copy in random_copies([part], 8, seed=0, **still))
    mirrored = [
        torch.equal(copy.rgb, part.rgb.flip(-1)) for copy in random_copies([part], 8, seed=0, flip=True, **still)
    ]
    assert 0 < sum(mirrored) < 8
