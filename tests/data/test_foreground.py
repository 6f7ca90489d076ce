"""The foreground against built scenes and real parts."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from shapes import camera_rays, seen_plane, seen_sphere

from protoad.data import MVTec3D, foreground_mask


def _scene(part: np.ndarray, *, height: float = 0.02, noise: float = 2e-4, holes: float = 0.0) -> np.ndarray:
    """A part of some height on a tilted table, pixels 0.5 mm apart."""
    rng = np.random.default_rng(6)
    rays = camera_rays(*part.shape) * np.array([0.25, 0.25, 1])
    table, _ = seen_plane(rays, (0.1, 0.4, -1), 0.6)
    xyz = table - rays * (part * height)[..., None] + rays * rng.normal(0, noise, (*part.shape, 1))
    xyz[rng.random(part.shape) < holes] = np.nan
    return xyz.astype(np.float32)


def _block(height: int = 160, width: int = 200) -> np.ndarray:
    part = np.zeros((height, width), dtype=bool)
    part[40:100, 60:150] = True
    return part


@pytest.mark.parametrize("holes", [0.0, 0.45])
def test_the_part_is_found_on_a_tilted_table(holes: float) -> None:
    part = _block()
    xyz = _scene(part, holes=holes)
    before = xyz.copy()
    found = foreground_mask(xyz)
    np.testing.assert_array_equal(xyz, before)
    valid = np.isfinite(xyz).all(axis=-1)
    np.testing.assert_array_equal(found & valid, part & valid)
    assert (found & ~part).mean() < 0.001
    np.testing.assert_array_equal(found, foreground_mask(xyz))


def test_every_seed_finds_the_same_part() -> None:
    xyz = _scene(_block(), holes=0.3)
    first = foreground_mask(xyz, seed=0)
    for seed in range(1, 10):
        assert (foreground_mask(xyz, seed=seed) != first).sum() <= 2


def test_what_is_flatter_than_the_distance_is_table() -> None:
    part = _block()
    part[110:140, 60:150] = True
    height = np.where(np.arange(160)[:, None] < 105, 0.02, 0.003)
    xyz = _scene(part, height=height, noise=0)  # type: ignore[arg-type]
    assert not foreground_mask(xyz)[110:140].any()
    assert foreground_mask(xyz, distance=0.002)[110:140, 60:150].all()


def test_a_background_that_returns_nothing_is_no_gap_within_the_part() -> None:
    part = _block()
    xyz = _scene(part)
    xyz[12:-12, 12:-12][~part[12:-12, 12:-12]] = np.nan  # table only along the frame, then nothing, then the part
    xyz[:12] = np.nan
    np.testing.assert_array_equal(foreground_mask(xyz), part)


def test_specks_go_and_thin_parts_stay() -> None:
    part = _block()
    thin = np.zeros_like(part)
    thin[120:122, 20:180] = True  # a wire of two pixels, seen in dashes
    specks = np.zeros_like(part)
    specks[10:150:20, 10] = specks[30, 20:180:15] = True
    xyz = _scene(part | thin | specks)
    xyz[120:122, 24:180:8] = xyz[120:122, 25:180:8] = np.nan
    found = foreground_mask(xyz)
    assert found[thin & np.isfinite(xyz[..., 0])].all()
    assert not found[specks].any()
    assert found[part].all()


def test_a_part_that_reaches_over_the_border_is_still_a_part() -> None:
    part = _block()
    part[40:100, :] = True
    np.testing.assert_array_equal(foreground_mask(_scene(part)), part)


def test_without_a_table_everything_valid_is_foreground() -> None:
    rng = np.random.default_rng(7)
    dome, _ = seen_sphere(camera_rays(120, 120), 0.6, 0.5)
    tile = _scene(np.zeros((120, 120), dtype=bool))
    cloud = camera_rays(120, 120) * rng.uniform(0.4, 0.8, (120, 120, 1))
    point = np.full((120, 120, 3), np.nan)
    point[3, 4] = 0.5
    for xyz in (dome, tile, cloud, point, np.full((120, 120, 3), np.nan)):
        gappy = np.where(rng.random((120, 120, 1)) < 0.1, np.nan, xyz)
        np.testing.assert_array_equal(foreground_mask(gappy), np.isfinite(gappy).all(axis=-1))


def test_a_plane_counts_only_if_most_of_the_border_agrees() -> None:
    part = np.ones((120, 120), dtype=bool)
    part[40:80, 40:80] = False
    part[:30, :] = False  # the table shows in less than half of the border
    rng = np.random.default_rng(8)
    xyz = _scene(part, height=rng.uniform(0.02, 0.2, part.shape))  # type: ignore[arg-type]
    assert foreground_mask(xyz).all()


def test_a_border_without_points_is_widened() -> None:
    part = _block()
    xyz = _scene(part)
    xyz[:12] = xyz[-12:] = np.nan
    xyz[:, :12] = xyz[:, -12:] = np.nan
    np.testing.assert_array_equal(foreground_mask(xyz), part)


def test_gaps_and_holes_within_the_part_belong_to_it_and_shadows_beside_it_do_not() -> None:
    part = _block()
    hole, gap, shadow = (np.zeros_like(part) for _ in range(3))
    hole[45:55, 70:80] = True  # drilled through: shows the table
    gap[60:75, 80:110] = True  # shows nothing
    gap[74:100, 95] = True  # and leaks to the outside by a pixel
    shadow[40:100, 48:60] = True
    xyz = _scene(part & ~hole)
    xyz[gap | shadow] = np.nan
    np.testing.assert_array_equal(foreground_mask(xyz), part)


def _data() -> Path:
    data = os.environ.get("PROTOAD_DATA")
    if not data:
        pytest.skip("set PROTOAD_DATA to a folder with mvtec3d/ and eyecandies/ to read real frames")
    return Path(data)


def test_real_parts_stand_out_from_their_table() -> None:
    test = MVTec3D(_data() / "mvtec3d", "cable_gland", "test")
    covered = []
    for sample in test:
        valid = np.isfinite(sample.xyz).all(axis=-1)
        part = foreground_mask(sample.xyz)
        assert 0.18 < (part & valid).sum() / valid.sum() < 0.35
        assert not part[:20].any()
        if sample.label:
            covered.append(part[sample.mask].mean())
    assert np.mean(covered) > 0.88
