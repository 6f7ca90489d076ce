"""The five tensors lie on one grid, and each holds what it says."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from protoad.data import MVTec3D, Sample, encode_normals, normals_from_xyz, prepare, without_depth
from protoad.errors import ConfigError, DataError


def _scene(height: int, width: int, centre: tuple[float, float], radius: float) -> Sample:
    """A disc that is white, flat on top, 20 mm over a tilted black table, and a defect: one blob in all five."""
    y, x = np.mgrid[:height, :width].astype(float)
    disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    pitch = 0.0004
    z = np.where(disc, 0.55, 0.60 + 0.3 * pitch * (x - width / 2))
    xyz = np.stack([(x - width / 2) * pitch, (y - height / 2) * pitch, z], axis=-1)
    rgb = np.repeat(disc[..., None] * np.uint8(255), 3, axis=-1)
    return Sample(rgb, xyz.astype(np.float32), disc, 1, "blob", "test/blob/000")


def _centroid(weights: torch.Tensor) -> np.ndarray:
    """Centre of mass in pixels, pixel i covering [i, i + 1)."""
    values = weights.double().numpy()
    y, x = np.mgrid[: values.shape[0], : values.shape[1]] + 0.5
    return np.array([(values * y).sum(), (values * x).sum()]) / values.sum()


def _flat(normals: torch.Tensor) -> torch.Tensor:
    """How much of the table's tilt is missing: 1 on the disc, 0 on the table."""
    tilt = 0.5 + 0.5 * 0.3 / np.hypot(0.3, 1)
    red = normals[0].double()
    return ((red - tilt) / (0.5 - tilt)).clamp(0, 1)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((400, 400), 224), ((300, 420), 160), ((251, 200), 224), ((97, 97), 160), ((224, 224), 100)],
)
def test_no_shift_between_the_five(shape: tuple[int, int], size: int) -> None:
    height, width = shape
    centre, side = (height * 0.45, width * 0.55), max(height, width)
    prepared = prepare(_scene(height, width, centre, 0.25 * min(shape)), size)
    offset = np.array([(side - height) // 2, (side - width) // 2])
    expected = (np.array(centre) + 0.5 + offset) * size / side
    inside = torch.zeros(size, size, dtype=torch.bool)
    top, left = np.ceil(offset * size / side).astype(int) + 2
    inside[top : size - top or None, left : size - left or None] = True
    blobs = {
        "rgb": prepared.rgb.mean(dim=0),
        "normals": _flat(prepared.normals) * prepared.valid * inside,
        "foreground": prepared.foreground,
        "mask": prepared.mask,
    }
    for name, blob in blobs.items():
        assert np.abs(_centroid(blob) - expected).max() < 0.15, name
    assert prepared.valid[inside].all()
    holed = _scene(height, width, centre, 0.25 * min(shape))
    holed.xyz[holed.mask] = np.nan
    missing = ~prepare(holed, size).valid & inside
    assert np.abs(_centroid(missing) - expected).max() < 0.15


def test_shapes_types_and_ranges() -> None:
    prepared = prepare(_scene(300, 420, (150, 200), 60), 96)
    assert prepared.rgb.shape == prepared.normals.shape == (3, 96, 96)
    assert prepared.rgb.dtype == prepared.normals.dtype == torch.float32
    for image in (prepared.rgb, prepared.normals):
        assert image.min() >= 0
        assert image.max() <= 1
    for mask in (prepared.valid, prepared.foreground, prepared.mask):
        assert mask.shape == (96, 96)
        assert mask.dtype == torch.bool


def test_a_frame_that_is_not_square_is_centred() -> None:
    prepared = prepare(_scene(200, 400, (100, 200), 50), 100, foreground=False)
    frame = torch.zeros(100, 100, dtype=torch.bool)
    frame[25:75] = True
    assert torch.equal(prepared.foreground, frame)  # without a search the frame counts, what is beside it never
    assert torch.equal(prepared.valid, frame)
    assert (prepared.normals[:, ~frame] == 0.5).all()
    assert (prepared.rgb[:, :23] == 0).all()


def test_at_full_size_nothing_is_resampled() -> None:
    sample = _scene(64, 64, (30, 34), 12)
    sample.xyz[5:9, 40:44] = np.nan
    prepared = prepare(sample, 64)
    np.testing.assert_allclose(prepared.rgb.permute(1, 2, 0), sample.rgb / 255, atol=1e-6)
    np.testing.assert_array_equal(prepared.mask, sample.mask)
    normals, valid = normals_from_xyz(sample.xyz)
    np.testing.assert_array_equal(prepared.valid, valid)
    colours = (255 * prepared.normals.permute(1, 2, 0)).round().to(torch.uint8).numpy()
    assert np.abs(colours.astype(int) - encode_normals(normals, valid)).max() <= 1
    np.testing.assert_array_equal(colours[valid], encode_normals(normals, valid)[valid])


def test_colour_is_antialiased() -> None:
    sample = _scene(400, 400, (200, 200), 80)
    grain = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    inner = prepare(Sample(grain, sample.xyz, sample.mask, 1, "blob", "grain"), 100).rgb
    assert abs(inner.mean() - 0.5) < 0.01
    assert inner.std() < 0.12  # four by four grains average out: 0.29 / 4, a little more for the sharp kernel


def test_normals_are_averaged_over_valid_pixels_only_and_stay_unit() -> None:
    sample = _scene(200, 200, (100, 100), 40)
    sample.xyz[np.random.default_rng(0).random((200, 200)) < 0.5] = np.nan
    prepared = prepare(sample, 100)
    vectors = 2 * prepared.normals.permute(1, 2, 0).numpy() - 1
    np.testing.assert_allclose(np.linalg.norm(vectors[prepared.valid], axis=-1), 1, atol=1e-5)
    assert (vectors[~prepared.valid] == 0).all()
    table = prepared.valid.numpy().copy()
    table[25:75, 25:75] = False
    expected = np.array([0.3, 0, 1]) / np.hypot(0.3, 1)
    assert np.abs(vectors[table] - expected).max() < 1e-3


def test_inputs_are_left_alone_and_the_result_repeats() -> None:
    sample = _scene(120, 150, (60, 80), 30)
    before = [array.copy() for array in (sample.rgb, sample.xyz, sample.mask)]
    first, second = prepare(sample, 64), prepare(sample, 64)
    for a, b in zip(first[:5], second[:5], strict=True):
        assert torch.equal(a, b)
    for array, copy in zip((sample.rgb, sample.xyz, sample.mask), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_points_come_when_asked_for_and_change_nothing_else() -> None:
    sample = _scene(120, 150, (60, 80), 30)
    sample.xyz[40:50, 60:70] = 0
    sample.xyz[70, 70] = np.inf
    bare, part = prepare(sample, 150), prepare(sample, 150, points=True)
    assert bare.xyz is None
    assert without_depth(bare).xyz is None
    for a, b in zip(bare[:5], part[:5], strict=True):
        assert torch.equal(a, b)
    expected = np.full((150, 150, 3), np.nan, np.float32)  # as large as the square: every pixel is one of the frame
    expected[15:135] = sample.xyz
    expected[15 + 40 : 15 + 50, 60:70] = expected[15 + 70, 70] = np.nan
    assert part.xyz.dtype == torch.float32
    np.testing.assert_array_equal(part.xyz.movedim(0, -1).numpy(), expected)
    assert without_depth(part).xyz.isnan().all()


def test_cloud_without_a_surface() -> None:
    sample = _scene(40, 40, (20, 20), 8)
    sample.xyz[:] = np.nan
    with pytest.raises(DataError, match="test/blob/000: its point cloud holds no surface"):
        prepare(sample)
    with pytest.raises(ConfigError, match="size: expected 1 pixel or more, got 0"):
        prepare(_scene(40, 40, (20, 20), 8), 0)


def test_real_frame() -> None:
    data = os.environ.get("PROTOAD_DATA")
    if not data:
        pytest.skip("set PROTOAD_DATA to a folder with mvtec3d/ to read real frames")
    test = MVTec3D(Path(data) / "mvtec3d", "cable_gland", "test")
    prepared = prepare(test[test.names.index("test/cut/000")])
    assert 0.12 < prepared.foreground.float().mean() < 0.22
    assert prepared.foreground[prepared.mask].float().mean() > 0.9
    on_part, on_table = prepared.foreground, ~prepared.foreground & prepared.valid
    assert prepared.rgb[:, on_part].mean() > 4 * prepared.rgb[:, on_table].mean()  # white part, black table
