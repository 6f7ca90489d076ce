"""The foreground against built scenes and real parts."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import numpy as np
import pytest
from shapes import camera_rays, seen_plane, seen_sphere

from protoad.data import (
    EVERYTHING_KEPT,
    MVTec3D,
    Sample,
    find_foreground,
    foreground,
    foreground_mask,
    plane_distance,
    prepare,
)
from protoad.errors import ConfigError, ShapeError


def _scene(
    part: np.ndarray, *, height: float | np.ndarray = 0.02, noise: float = 2e-4, holes: float = 0.0
) -> np.ndarray:
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
    xyz = _scene(part, height=height, noise=0)
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
    xyz = _scene(part, height=rng.uniform(0.02, 0.2, part.shape))
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


def test_the_plane_is_the_table_and_faces_the_camera() -> None:
    found = find_foreground(_scene(_block(), holes=0.3))
    assert found.plane is not None
    normal, offset = found.plane
    truth = np.array([0.1, 0.4, -1]) / np.linalg.norm([0.1, 0.4, -1])
    assert normal @ truth > np.cos(np.radians(0.05))
    assert offset == pytest.approx(0.6 * truth[2], abs=2e-4)
    assert found.reason == "The table was removed, 83% of the points within 5 mm of a plane."


def test_the_plane_is_that_of_open3d() -> None:
    ctypes.CDLL(str(pytest.importorskip("libusb_package").get_library_path()), mode=ctypes.RTLD_GLOBAL)
    open3d = pytest.importorskip("open3d")
    xyz = _scene(_block(), holes=0.3)
    open3d.utility.random.seed(0)
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz[np.isfinite(xyz[..., 0])].astype(float)))
    (*normal, offset), _ = cloud.segment_plane(0.001, 3, 1000)
    found = find_foreground(xyz).plane
    assert found is not None
    sign = np.sign(found[0] @ normal)
    assert sign * (found[0] @ normal) > np.cos(np.radians(0.2))
    assert found[1] == pytest.approx(-sign * offset, abs=5e-4)


def test_a_part_in_pieces_stays_whole() -> None:
    part = _block()
    part[40:100, 100:110] = False  # broken in two
    part[115:121, 30:40] = True  # and a splinter
    part[10:14, 100:104] = True
    found = find_foreground(_scene(part))
    np.testing.assert_array_equal(found.mask, part)
    assert found.reason.endswith("of a plane.")


def test_the_floor_beyond_the_edge_of_the_table_goes() -> None:
    part, floor = _block(), np.zeros((160, 200), dtype=bool)
    floor[:, 150:] = True  # the part stands at the edge: only depth tells the two apart
    found = find_foreground(_scene(part | floor, height=np.where(floor, -0.2, 0.02)))
    np.testing.assert_array_equal(found.mask, part)
    assert found.reason.endswith("The floor behind it went too.")


def test_a_part_that_reaches_below_the_table_stays_whole() -> None:
    part = _block()
    height = np.zeros(part.shape)
    height[40:100, 60:150] = np.linspace(0.02, -0.02, 60)[:, None]  # tilted in a pocket
    floor = np.zeros_like(part)
    floor[:, 190:] = True
    found = foreground_mask(_scene(part | floor, height=np.where(floor, -0.2, height)), distance=0.002)
    thin = np.zeros_like(part)
    thin[66:74, 60:150] = True  # where it passes through the plane
    np.testing.assert_array_equal(found & ~thin, part & ~thin)


@pytest.mark.parametrize("open_side", [None, 0, 1])
def test_a_rim_around_the_scene_goes(open_side: int | None) -> None:
    part, rim = _block(), np.ones((160, 200), dtype=bool)
    rim[3:-3, 3:-3] = False
    rim[20:40, :60] = True  # reaches in until it touches the part in the image
    if open_side is not None:
        rim[3:-3, -3:] = rim[3:-3, :3] = False
        rim[-3:] = False
        rim[3:60, [0, 1, 2, -3, -2, -1]] = True
    found = find_foreground(_scene(part | rim, height=np.where(rim, 0.1, 0.02)))
    np.testing.assert_array_equal(found.mask, part)
    assert found.reason.endswith("The rim around went too.")


def test_a_part_that_meets_three_sides_is_no_rim() -> None:
    part = np.zeros((160, 200), dtype=bool)
    part[60:, 30:80] = True
    part[60:110, :] = True
    part[20:26, 90:110] = True  # a crumb beside it
    np.testing.assert_array_equal(foreground_mask(_scene(part)), part)
    part[20:26, 90:110] = False
    np.testing.assert_array_equal(foreground_mask(_scene(part)), part)


def test_a_part_from_side_to_side_is_no_rim() -> None:
    part = np.zeros((160, 200), dtype=bool)
    part[60:90, :] = True
    part[110:130, 40:100] = True  # a piece of it
    np.testing.assert_array_equal(foreground_mask(_scene(part)), part)


def test_pieces_are_those_of_dbscan() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(3)
    mask = np.kron(rng.random((8, 10)) < 0.5, np.ones((6, 6))).astype(bool) & (rng.random((48, 60)) < 0.4)
    height = np.kron(rng.integers(1, 4, (8, 10)), np.ones((6, 6))) * 0.03
    xyz = _scene(mask, height=height, noise=0)
    pieces, count = foreground._pieces(mask, xyz.astype(float), 0.005)
    assert (pieces[~mask] == -1).all()
    rows, columns = np.nonzero(mask)
    # in pixels and, much enlarged, in height: what is two pixels off is a neighbour, what is a step off is not
    oracle = cluster.DBSCAN(eps=2.9, min_samples=1).fit_predict(np.stack([rows, columns, height[mask] * 1000], axis=-1))
    pairs = set(zip(pieces[mask].tolist(), oracle.tolist(), strict=True))
    assert len(pairs) == count == oracle.max() + 1 > 10


def test_it_says_why_everything_was_kept() -> None:
    rough = camera_rays(120, 120) * np.random.default_rng(0).uniform(0.4, 0.8, (120, 120, 1))
    frame = np.ones((120, 120), dtype=bool)
    frame[40:80, 40:80] = False
    reasons = {
        "there is no valid point": np.full((40, 40, 3), np.nan),
        "no plane holds most of the frame's border": rough,
        "nothing stands more than 5 mm off the border's plane": _scene(np.zeros((120, 120), dtype=bool)),
        "all that stands off the border's plane lies behind it": _scene(~frame, height=-0.05),
    }
    for reason, xyz in reasons.items():
        found = find_foreground(xyz)
        assert found.reason == f"{EVERYTHING_KEPT}: {reason}."
        assert found.plane is None
        np.testing.assert_array_equal(found.mask, np.isfinite(xyz).all(axis=-1))


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (3, 2), (40, 50)])
def test_broken_clouds_end_in_a_mask(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(*shape, 3))
    one = np.full((*shape, 3), np.nan)
    one[0, 0] = 1
    line = np.linspace(0, 1, shape[0] * shape[1]).reshape(*shape, 1) * [1, 2, 3] + 1
    some_inf = np.where(rng.random((*shape, 1)) < 0.5, np.inf, noise)
    for xyz in (
        one,
        np.ones((*shape, 3)),
        noise,
        1e30 * noise,
        1e-30 * noise,
        line,
        some_inf,
        0 * noise,
        -np.inf * one,
    ):
        for dtype in (np.float32, np.float64):
            cloud = xyz.astype(dtype)
            found = find_foreground(cloud)
            assert found.mask.shape == shape
            if not (np.isfinite(cloud).all(axis=-1) & (cloud != 0).any(axis=-1)).any():
                assert not found.mask.any()


def test_bad_arguments() -> None:
    for distance in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="distance: expected metres above 0"):
            find_foreground(_scene(_block()), distance=distance)
    with pytest.raises(ShapeError, match="xyz"):
        find_foreground(np.zeros((4, 5)))


def test_the_distance_goes_by_category_and_reaches_prepare() -> None:
    assert (plane_distance("dowel"), plane_distance("cable_gland")) == (0.002, 0.005)
    part = _block()
    xyz = _scene(part, height=0.003, noise=0)
    sample = Sample(np.zeros((160, 200, 3), np.uint8), xyz, part, 1, "flat", "flat")
    frame = np.isfinite(xyz).all(axis=-1).sum()
    assert prepare(sample, 200).foreground.sum() == frame  # nothing stands off by 5 mm: all is kept
    assert prepare(sample, 200, plane_distance=0.002).foreground.sum() == part.sum()


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


def _candy(number: str) -> tuple[np.ndarray, np.ndarray]:
    """Points (y x 3) and the mask of the defect (y x) of a rendered sweet, by the data set's own formulas."""
    folder = _data() / "eyecandies" / "CandyCane" / "test_public" / "data"
    folder = folder if folder.is_dir() else folder.parent
    limits = dict(re.findall(r"(min|max): *([-.e0-9]+)", (folder / f"{number}_info_depth.yaml").read_text()))
    low, high = float(limits["min"]), float(limits["max"])
    image = pytest.importorskip("PIL.Image")
    depth = np.asarray(image.open(folder / f"{number}_depth.png")).astype(float) / 65535 * (high - low) + low
    y, x = (np.mgrid[: depth.shape[0], : depth.shape[1]] - 255.5) / 711.11
    mask = np.asarray(image.open(folder / f"{number}_mask.png").convert("L")) > 0
    return np.stack([x * depth, y * depth, depth], axis=-1).astype(np.float32), mask


def test_a_rendered_sweet_without_the_walls_of_its_stage() -> None:
    for number in ("00", "25", "29"):
        xyz, mask = _candy(number)
        found = find_foreground(xyz)
        assert found.reason.endswith("The rim around went too.")
        assert 0.04 < found.mask.mean() < 0.065
        assert not found.mask[:, :20].any()
        assert found.mask[mask].all()


def test_a_bin_full_of_things_is_kept_as_it_is() -> None:
    for number in (0, 1):
        folder = _data() / "rgbd" / "phoxi"
        depth = np.load(folder / f"depth_{number}.npy").squeeze()
        y, x = np.mgrid[: depth.shape[0], : depth.shape[1]]
        xyz = np.stack([(x - 255.5) / 552.5 * depth, (y - 191.75) / 552.5 * depth, depth], axis=-1)
        things = np.asarray(pytest.importorskip("PIL.Image").open(folder / f"segmask_{number}.png")) > 0
        found = find_foreground(xyz)
        assert found.reason.startswith(EVERYTHING_KEPT)
        assert found.mask[things & (depth > 0)].all()
