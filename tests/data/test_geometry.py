"""One map for everything: a checkerboard comes out the same in colour, points, normals, mask and validity."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from protoad.data import Sample, SquareMap, prepare
from protoad.errors import DataError

CELL = 12
FRAMES = [(96, 96), (60, 132), (131, 72), (97, 97)]
LEFT, RIGHT = np.array([-0.6, 0, -0.8], np.float32), np.array([0.6, 0, -0.8], np.float32)


class Expected(NamedTuple):
    """At the output's pixel centres, by hand: the cell's parity, and distances to its edge and the frame's, in output
    pixels.
    """

    dark: np.ndarray
    to_edge: np.ndarray
    inside: np.ndarray


def _expected(height: int, width: int, size: int) -> Expected:
    side = max(height, width)
    scale = side / size
    axes = [(np.arange(size) + 0.5) * scale - (side - length) // 2 for length in (height, width)]
    cells = [np.floor(axis / CELL).astype(int) for axis in axes]
    to_edge = [np.abs((axis + CELL / 2) % CELL - CELL / 2) / scale for axis in axes]
    to_frame = [np.minimum(axis, length - axis) / scale for axis, length in zip(axes, (height, width), strict=True)]
    outer = [np.add.outer(*cells), np.minimum.outer(*to_edge), np.minimum.outer(*to_frame)]
    return Expected(outer[0] % 2 == 1, outer[1], outer[2])


def _board(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (y // CELL + x // CELL) % 2 == 1


def _sample(board: np.ndarray, *, holes: bool) -> Sample:
    rgb = np.repeat(np.where(board, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)
    xyz = np.zeros((*board.shape, 3), np.float32)
    xyz[..., 2] = np.where(board, 0.5, np.nan if holes else 0.7)
    normals = np.where(board[..., None], LEFT, RIGHT)
    if holes:
        normals[~board] = 0
    return Sample(rgb, xyz, board, 1, "checks", "test/checks/000", normals)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("size", [56, 96, 210])
def test_a_checkerboard_through_all_five(frame: tuple[int, int], size: int) -> None:
    board, expected = _board(*frame), _expected(*frame, size)
    full, holed = (_sample(board, holes=holes) for holes in (False, True))
    prepared, with_holes = (prepare(sample, size, foreground=False) for sample in (full, holed))
    points = SquareMap(*frame, size).nearest(full.xyz)

    clear = (expected.to_edge > 0.05) & (expected.inside > 0)  # sure to a twentieth of an output pixel
    found = {
        "points": points[..., 2] < 0.6,
        "mask": prepared.mask.numpy(),
        "validity": with_holes.valid.numpy(),
    }
    for name, pattern in found.items():
        np.testing.assert_array_equal(pattern[clear], expected.dark[clear], err_msg=name)
    # a symmetric filter passes half-way exactly at the edge; near the frame's own it also sees the black beside
    inner = (expected.to_edge > 0.1) & (expected.inside > 2)
    found = {
        "colour": prepared.rgb[0].numpy() > 0.5,
        "normals": prepared.normals[0].numpy() < 0.5,
    }
    for name, pattern in found.items():
        np.testing.assert_array_equal(pattern[inner], expected.dark[inner], err_msg=name)

    beside = expected.inside < 0
    assert np.isnan(points[beside]).all()
    assert not (prepared.mask | prepared.valid | prepared.foreground).numpy()[beside].any()
    assert (prepared.normals.numpy()[:, beside] == 0.5).all()
    assert (prepared.rgb.numpy()[:, expected.inside < -3] == 0).all()


@pytest.mark.parametrize("frame", FRAMES)
def test_points_are_never_mixed(frame: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    xyz = rng.normal(size=(*frame, 3)).astype(np.float32)
    xyz[rng.random(frame) < 0.4] = np.nan
    for size in (40, 250):
        picked = SquareMap(*frame, size).nearest(xyz)
        seen = {row.tobytes() for row in xyz.reshape(-1, 3)}
        assert {row.tobytes() for row in picked[np.isfinite(picked).all(axis=-1)]} <= seen


def test_the_nearest_pixel_is_that_of_torch() -> None:
    for side, size in ((400, 224), (256, 224), (512, 224), (800, 448), (97, 224), (224, 224)):
        index = np.arange(side)
        oracle = torch.nn.functional.interpolate(torch.arange(side).float()[None, None], size, mode="nearest-exact")
        picked = SquareMap(side, side, size).nearest(np.repeat(index[:, None], side, axis=1))
        np.testing.assert_array_equal(picked[:, 0], oracle[0, 0].numpy())


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("size", [56, 210])
def test_there_and_back(frame: tuple[int, int], size: int) -> None:
    square = SquareMap(*frame, size)
    spots = np.random.default_rng(0).uniform(0, min(frame), (50, 2))
    np.testing.assert_allclose(square.to_source(square.from_source(spots)), spots, atol=1e-9)
    # the output's pixel centre lies over the source pixel that `nearest` takes
    rows, columns = np.mgrid[: frame[0], : frame[1]]
    picked = square.nearest(np.stack([rows, columns], axis=-1).astype(np.float32))
    centres = np.stack(np.mgrid[:size, :size], axis=-1) + 0.5
    inside = np.isfinite(picked).all(axis=-1)
    assert inside.mean() > 0.4
    np.testing.assert_array_equal(np.floor(square.to_source(centres)[inside] + 1e-9), picked[inside])


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("size", [56, 210])
def test_a_heatmap_lands_where_its_part_was(frame: tuple[int, int], size: int) -> None:
    square = SquareMap(*frame, size)
    spot = np.array([0.4 * frame[0], 0.55 * frame[1]])
    y, x = np.mgrid[:size, :size] + 0.5
    at = square.from_source(spot)
    heat = torch.from_numpy(np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * (size / 25) ** 2)))
    back = square.restore(torch.stack([heat, 2 * heat]))
    assert back.shape == (2, *frame)
    assert square.restore(heat).shape == frame
    weights = back[1].numpy()
    y, x = np.mgrid[: frame[0], : frame[1]] + 0.5
    centre = np.array([(weights * y).sum(), (weights * x).sum()]) / weights.sum()
    assert np.abs(centre - spot).max() < 0.1


def test_sizes_below_one() -> None:
    with pytest.raises(DataError, match="size: expected 1 pixel or more, got 0"):
        SquareMap(4, 4, 0)
    with pytest.raises(DataError, match="height: expected 1 pixel or more, got 0"):
        SquareMap(0, 4, 4)
