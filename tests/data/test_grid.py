"""Frames of several sizes on one grid, without a shift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from protoad.data.grid import share_grid, take_nearest
from protoad.errors import DataError

FILES = {name: Path(f"{name}.file") for name in ("rgb", "xyz", "mask", "normals")}


@pytest.mark.parametrize(("old", "new"), [((12, 16), (6, 8)), ((6, 8), (12, 16)), ((11, 16), (5, 7)), ((9, 9), (9, 9))])
def test_nearest_is_that_of_pixel_centres(old: tuple[int, int], new: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).random((*old, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(frame).permute(2, 0, 1)[None], size=new, mode="nearest-exact"
    )
    np.testing.assert_array_equal(take_nearest(frame, new), expected[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("finer", ["rgb", "xyz"])
def test_the_coarser_grid_wins_and_nothing_moves(finer: str, factor: int) -> None:
    """A blob has the same centre of mass in all frames, in units of the frame."""
    coarse = (30, 40)
    frames = {}
    for name in FILES:
        height, width = (side * (factor if name in (finer, "mask") else 1) for side in coarse)
        y, x = np.mgrid[:height, :width]
        inside = (((y + 0.5) / height - 0.4) ** 2 + ((x + 0.5) / width - 0.6) ** 2) < 0.04
        kind = {"rgb": np.uint8, "mask": bool}.get(name, np.float32)
        frames[name] = np.asarray((255 if name == "rgb" else 1) * inside).astype(kind)
        if name != "mask":
            frames[name] = np.repeat(frames[name][..., None], 3, axis=-1)
    shared = share_grid(frames, FILES)
    assert {frame.shape[:2] for frame in shared.values()} == {coarse}
    y, x = np.mgrid[: coarse[0], : coarse[1]] + 0.5
    for name, frame in shared.items():
        tolerance = 0.3 if name == finer == "xyz" and factor == 2 else 0.06  # pixels; a centre between two points
        weight = frame.reshape(*coarse, -1)[..., 0].astype(float)
        assert (weight * y).sum() / weight.sum() / coarse[0] == pytest.approx(0.4, abs=tolerance / coarse[0]), name
        assert (weight * x).sum() / weight.sum() / coarse[1] == pytest.approx(0.6, abs=tolerance / coarse[1]), name


def test_colour_is_averaged_over_whole_blocks() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    xyz = np.zeros((6, 8, 3), np.float32)
    shared = share_grid({"rgb": rgb, "xyz": xyz}, FILES)
    blocks = rgb.reshape(6, 2, 8, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(shared["rgb"] - blocks).max() <= 1


def test_a_mask_goes_by_majority() -> None:
    mask = np.zeros((12, 16), dtype=bool)
    mask[2:5, 3:8] = True
    shared = share_grid({"rgb": np.zeros((12, 16, 3), np.uint8), "xyz": np.zeros((6, 8, 3)), "mask": mask}, FILES)
    share = mask.reshape(6, 2, 8, 2).mean(axis=(1, 3))
    np.testing.assert_array_equal(shared["mask"], share >= 0.5)


def test_equal_sizes_are_left_alone() -> None:
    frames = {"rgb": np.zeros((6, 8, 3), np.uint8), "xyz": np.ones((6, 8, 3), np.float32)}
    assert all(share_grid(frames, FILES)[name] is frame for name, frame in frames.items())


def test_other_shapes_of_frame() -> None:
    frames = {
        "rgb": np.zeros((48, 64, 3), np.uint8),
        "xyz": np.ones((24, 32, 3), np.float32),
        "mask": np.ones((48, 48)),
    }
    with pytest.raises(
        DataError, match=r"mask\.file: is 48 x 48 pixels, but rgb\.file is 64 x 48; frames of other shap"
    ):
        share_grid(frames, FILES)
    frames["mask"] = np.ones((100, 132), dtype=bool)  # a pixel short of twice 3 : 4
    assert share_grid(frames, FILES)["mask"].shape == (24, 32)
