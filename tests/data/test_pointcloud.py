"""Normals against closed forms, brute force, Open3D and a renderer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from shapes import camera_rays, degrees, seen_plane, seen_sphere

from protoad._lazy import require_open3d
from protoad.data import encode_normals, foreground_mask, normals_from_xyz, normals_grid
from protoad.data.camera import Intrinsics, xyz_from_depth
from protoad.errors import MissingExtraError, ShapeError

SOURCE = Path(normals_grid.__file__).parents[2]


def _open3d() -> ModuleType:
    try:
        return require_open3d()
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["grid", "knn", "open3d"])
def method(request: pytest.FixtureRequest) -> str:
    if request.param == "open3d":
        _open3d()
    return request.param


def _brute_force(xyz: np.ndarray, row: int, column: int, count: int = 30) -> np.ndarray:
    cloud = xyz[np.isfinite(xyz).all(axis=-1)].astype(float)
    here = xyz[row, column].astype(float)
    nearest = cloud[np.argsort(((cloud - here) ** 2).sum(axis=1))[:count]]
    normal = np.linalg.svd(nearest - nearest.mean(axis=0))[2][2]
    return -normal if normal @ here > 0 else normal


@pytest.mark.parametrize("normal", [(0, 0, -1), (0.3, 0, -1), (0, -0.5, -1), (-0.8, 0.9, -1)])
def test_plane_is_exact_up_to_the_frame(method: str, normal: tuple[float, float, float]) -> None:
    xyz, truth = seen_plane(camera_rays(30, 40), normal, 0.6)
    found = normals_from_xyz(xyz.astype(np.float32), method=method)
    assert found.valid.all()
    assert found.normals.dtype == np.float32
    assert degrees(found.normals, truth).max() < 0.01


@pytest.mark.parametrize(("method", "median", "worst"), [("grid", 0.15, 3.0), ("knn", 0.15, 4.0)])
def test_sphere(method: str, median: float, worst: float) -> None:
    xyz, truth = seen_sphere(camera_rays(120, 120), 0.6, 0.1)
    found = normals_from_xyz(xyz.astype(np.float32), method=method)
    steep = (truth * xyz).sum(axis=-1) / np.linalg.norm(xyz, axis=-1) > -0.3
    off = degrees(found.normals, truth)[found.valid & ~steep]
    assert len(off) > 6000
    assert np.median(off) < median
    assert np.percentile(off, 99) < worst


def test_depth_edge_does_not_smear(monkeypatch: pytest.MonkeyPatch) -> None:
    rays = camera_rays(40, 60)
    far, far_normal = seen_plane(rays, (0.2, 0.1, -1), 0.7)
    near, near_normal = seen_plane(rays, (-0.3, 0.2, -1), 0.6)
    inside = np.zeros((40, 60), dtype=bool)
    inside[12:32, 20:41] = True
    inside[4:7, 5:50] = True  # a bar of three pixels
    inside[35:37, 5:50] = True  # and one of two
    xyz = np.where(inside[..., None], near, far).astype(np.float32)
    truth = np.where(inside[..., None], near_normal, far_normal)
    found = normals_from_xyz(xyz)
    assert found.valid.all()
    assert degrees(found.normals, truth).max() < 0.1
    monkeypatch.setattr(normals_grid, "_REACH", 1e6)
    assert degrees(normals_from_xyz(xyz).normals, truth)[35:37].max() > 5  # the bar needs to know its neighbours
    monkeypatch.setattr(normals_grid, "_SHIFT_PENALTY", np.inf)
    assert (degrees(normals_from_xyz(xyz).normals, truth) > 5).mean() > 0.15  # the block can do with other windows


def test_wire_of_one_pixel_gets_no_normal_of_the_wall() -> None:
    rays = camera_rays(30, 40)
    far, far_normal = seen_plane(rays, (0.2, 0.1, -1), 0.7)
    near, _ = seen_plane(rays, (0, 0, -1), 0.5)
    wire = np.zeros((30, 40), dtype=bool)
    wire[15, 5:35] = True
    xyz = np.where(wire[..., None], near, far).astype(np.float32)
    found = normals_from_xyz(xyz)
    assert not found.valid[wire].any()
    assert found.valid[~wire].all()
    assert degrees(found.normals, far_normal)[~wire].max() < 0.1


def test_crease_stays_sharp(monkeypatch: pytest.MonkeyPatch) -> None:
    rays = camera_rays(40, 60)
    left, left_normal = seen_plane(rays, (-0.5, 0, -1), 0.6)
    right, right_normal = seen_plane(rays, (0.5, 0, -1), 0.6)
    nearer = left[..., 2:] < right[..., 2:]  # a ridge: the nearer of both planes
    xyz = np.where(nearer, left, right).astype(np.float32)
    truth = np.where(nearer, left_normal, right_normal)
    assert degrees(normals_from_xyz(xyz).normals, truth).max() < 0.1
    assert (degrees(normals_from_xyz(xyz, method="knn").normals, truth) > 5).mean() > 0.05
    monkeypatch.setattr(normals_grid, "_SHIFT_PENALTY", np.inf)
    assert degrees(normals_from_xyz(xyz).normals, truth).max() > 10


def test_silhouette_keeps_the_normals_of_its_own_side(monkeypatch: pytest.MonkeyPatch) -> None:
    rays = camera_rays(120, 120)
    ball, ball_normal = seen_sphere(rays, 0.6, 0.08)
    wall, wall_normal = seen_plane(rays, (0, 0.3, -1), 0.62)
    inside = np.isfinite(ball[..., 0]) & (ball[..., 2] < wall[..., 2])
    xyz = np.where(inside[..., None], ball, wall).astype(np.float32)
    truth = np.where(inside[..., None], ball_normal, wall_normal)
    off = degrees(normals_from_xyz(xyz).normals, truth).mean()
    assert off < 0.2
    for name, value in (("_REACH", 1e6), ("_OWN_POINT", np.inf), ("_WINDOWS", (({1, 2, 5, 9, 10}, 3),))):
        with monkeypatch.context() as changed:
            changed.setattr(normals_grid, name, value)
            assert degrees(normals_from_xyz(xyz).normals, truth).mean() > 1.2 * off


def test_noise_is_averaged_over_the_window() -> None:
    rng = np.random.default_rng(0)
    xyz, truth = seen_plane(camera_rays(80, 80), (0.2, 0, -1), 0.6)
    noisy = xyz + xyz / 0.6 * rng.normal(0, 2e-5, (80, 80, 1))
    found = normals_from_xyz(noisy.astype(np.float32))
    # slope of a least-squares line over 29 points, 2 mm apart, whose squared columns add up to 84: a Gaussian a side
    expected = np.degrees(2e-5 / (0.002 * np.sqrt(84)) * np.sqrt(np.pi / 2))
    assert 0.9 * expected < degrees(found.normals, truth)[3:-3, 3:-3].mean() < 1.15 * expected


def test_every_normal_faces_the_camera_with_unit_length(method: str) -> None:
    rng = np.random.default_rng(1)
    xyz = (camera_rays(30, 30) * rng.uniform(0.5, 0.6, (30, 30, 1))).astype(np.float32)
    xyz[rng.random((30, 30)) < 0.3] = np.nan
    normals, valid = normals_from_xyz(xyz, method=method)
    assert ((normals * xyz).sum(axis=-1)[valid] < 0).all()
    np.testing.assert_allclose(np.linalg.norm(normals[valid], axis=-1), 1, atol=1e-6)
    assert (normals[~valid] == 0).all()


@pytest.mark.parametrize("nothing", [(0, 0, 0), (np.nan,) * 3, (np.inf, 0, 0.5), (0, 0, -np.inf)])
def test_invalid_points_get_no_normal_and_spoil_none(method: str, nothing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(2)
    xyz, truth = seen_plane(camera_rays(40, 40), (0.4, 0.1, -1), 0.6)
    holes = rng.random((40, 40)) < 0.35
    xyz[holes] = nothing
    before = xyz.copy()
    normals, valid = normals_from_xyz(xyz, method=method)
    np.testing.assert_array_equal(xyz, before)
    assert not valid[holes].any()
    assert (normals[holes] == 0).all()
    assert valid[~holes].mean() > 0.99
    assert degrees(normals, truth)[valid].max() < 0.01


def test_points_that_span_no_plane_get_no_normal(method: str) -> None:
    plane, _ = seen_plane(camera_rays(30, 30), (0, 0, -1), 0.6)
    nothing = np.full_like(plane, np.nan)
    lone, pair, line, triangle, same = (nothing.copy() for _ in range(5))
    lone[5, 5] = plane[5, 5]
    pair[5, 5:7] = plane[5, 5:7]
    line[7, 3:25] = plane[7, 3:25]
    same[4:9, 4:9] = plane[6, 6]
    triangle[5:7, 5] = plane[5:7, 5]
    triangle[5, 6] = plane[5, 6]
    for xyz in (nothing, lone, pair, line, same):
        normals, valid = normals_from_xyz(xyz, method=method)
        assert not valid.any()
        assert (normals == 0).all()
    assert normals_from_xyz(triangle, method=method).valid.sum() == 3  # type: ignore[arg-type]


def test_knn_equals_brute_force() -> None:
    rng = np.random.default_rng(3)
    xyz, _ = seen_sphere(camera_rays(50, 50), 0.6, 0.1)
    xyz = (xyz + rng.normal(0, 1e-4, xyz.shape)).astype(np.float32)
    found = normals_from_xyz(xyz, method="knn")
    for row, column in rng.permutation(np.argwhere(found.valid))[:40]:
        assert degrees(found.normals[row, column], _brute_force(xyz, row, column)) < 0.01


def test_knn_counts_points_that_coincide_once() -> None:
    rng = np.random.default_rng(6)
    xyz, _ = seen_sphere(camera_rays(30, 30), 0.6, 0.1)
    xyz = (xyz + rng.normal(0, 1e-4, xyz.shape)).astype(np.float32)
    twice = np.concatenate([xyz, xyz[:, ::-1]], axis=1)
    once = normals_from_xyz(xyz, method="knn")
    both = normals_from_xyz(twice, method="knn")
    np.testing.assert_array_equal(both.normals[:, :30], once.normals)
    np.testing.assert_array_equal(both.normals[:, :29:-1], once.normals)


def test_knn_and_open3d_are_those_of_open3d() -> None:
    open3d = _open3d()
    rng = np.random.default_rng(4)
    xyz, _ = seen_sphere(camera_rays(60, 60), 0.6, 0.1)
    xyz = (xyz + rng.normal(0, 1e-4, xyz.shape)).astype(np.float32)
    found = normals_from_xyz(xyz, method="knn")
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz[found.valid].astype(float)))
    cloud.estimate_normals(open3d.geometry.KDTreeSearchParamKNN(30))
    cloud.orient_normals_towards_camera_location(np.zeros(3))
    assert degrees(found.normals[found.valid], np.asarray(cloud.normals)).max() < 0.01
    theirs = normals_from_xyz(xyz, method="open3d")
    np.testing.assert_array_equal(theirs.valid, found.valid)
    assert degrees(theirs.normals, found.normals)[found.valid].max() < 0.01


def test_without_open3d_it_says_how_to_get_it() -> None:
    code = (
        "import sys, numpy; sys.modules['open3d'] = None; from protoad.data import normals_from_xyz\n"
        "try: normals_from_xyz(numpy.ones((4, 4, 3)), method='open3d')\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SOURCE)
    assert "pip install 'protoad[open3d]'" in run.stdout


HOSTILE = [0.0, np.nan, np.inf, -np.inf, 1e15, -1e15, 3e38, 1e12, 9e11, 1e-38, -1e-20]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(12))
def test_whatever_comes_in_normals_are_unit_vectors_or_nothing(method: str, seed: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 13, 2)
    xyz = camera_rays(height, width) * 0.6
    if seed % 3:  # else exactly flat
        xyz += rng.normal(0, 10.0 ** rng.integers(-8, 1), xyz.shape)
    if seed % 4 == 1:  # few places for many points
        xyz = rng.choice([0.1, 0.2], xyz.shape)
    if seed % 4 == 2:  # on a line
        xyz[..., 1:] = 1
    hit = rng.random(xyz.shape) < rng.random() * 0.6
    xyz = np.where(hit, rng.choice(HOSTILE, xyz.shape), xyz).astype(dtype)
    for orient in ("camera", "tangent_plane"):
        normals, valid = normals_from_xyz(xyz, method=method, orient=orient)
        assert normals.shape == xyz.shape
        assert normals.dtype == np.float32
        assert np.isfinite(normals).all()
        assert (normals[~valid] == 0).all()
        np.testing.assert_allclose(np.linalg.norm(normals[valid], axis=-1), 1, atol=1e-5)
        nowhere = ~np.isfinite(xyz).all(axis=-1) | (xyz == 0).all(axis=-1) | (np.abs(xyz) > 1e13).any(axis=-1)
        assert not valid[nowhere].any()
        again = normals_from_xyz(xyz, method=method, orient=orient)
        np.testing.assert_array_equal(again.normals, normals)


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 5, 3), (1, 1, 3), (1, 9, 3), (9, 1, 3)])
def test_clouds_too_small_for_a_plane(method: str, shape: tuple[int, int, int]) -> None:
    xyz = np.random.default_rng(0).uniform(0.5, 1, shape)
    xyz[..., 1:] = 1
    normals, valid = normals_from_xyz(xyz, method=method)
    assert normals.shape == shape
    assert not valid.any()


def test_any_array_of_numbers_will_do() -> None:
    xyz, _ = seen_plane(camera_rays(9, 7), (0.3, 0.2, -1), 0.6)
    expected = normals_from_xyz(xyz).normals
    for other in (xyz[:, ::-1].copy()[:, ::-1], np.asfortranarray(xyz), xyz.astype(">f8"), xyz.astype(np.float32)):
        other.flags.writeable = False
        np.testing.assert_allclose(normals_from_xyz(other).normals, expected, atol=1e-5)
    assert normals_from_xyz(np.round(100 * camera_rays(90, 70)).astype(np.int64)).valid.all()


@pytest.mark.parametrize("times", [2, 3])
def test_enlarged_clouds_keep_their_normals(times: int) -> None:
    """As when someone resized a cloud to the size of its image: pixels that share a point."""
    xyz, truth = seen_plane(camera_rays(12, 14), (0.3, 0.2, -1), 0.6)
    large, expected = (array.repeat(times, axis=0).repeat(times, axis=1) for array in (xyz, truth))
    normals, valid = normals_from_xyz(large)
    assert valid.all()
    assert degrees(normals, expected).max() < 0.01


def test_tangent_planes_agree_with_the_camera_where_it_sees_a_surface(method: str) -> None:
    rng = np.random.default_rng(7)
    xyz, _ = seen_sphere(camera_rays(60, 60), 0.6, 0.1)
    xyz = xyz + rng.normal(0, 1e-4, xyz.shape)
    xyz[:4, :4] = camera_rays(60, 60)[:4, :4] * 0.9  # a part of its own
    camera = normals_from_xyz(xyz, method=method)
    tangent = normals_from_xyz(xyz, method=method, orient="tangent_plane")
    np.testing.assert_array_equal(tangent.valid, camera.valid)
    np.testing.assert_array_equal(tangent.normals, camera.normals)


def test_wrong_arguments() -> None:
    xyz, _ = seen_plane(camera_rays(8, 8), (0, 0, -1), 0.6)
    with pytest.raises(ShapeError, match=r"xyz: expected \(y x 3\), got \(64, 3\)"):
        normals_from_xyz(xyz.reshape(-1, 3))
    with pytest.raises(ShapeError):
        foreground_mask(xyz[..., :2])
    with pytest.raises(ValueError, match="orient: expected one of 'camera', 'tangent_plane', got 'away'"):
        normals_from_xyz(xyz, orient="away")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="method: expected one of 'grid', 'knn', 'open3d', got 'mesh'"):
        normals_from_xyz(xyz, method="mesh")  # type: ignore[arg-type]


def test_colours_of_a_normal_map() -> None:
    normals = np.array([[(0, 0, -1), (1, 0, 0), (0, -1, 0), (0, 0, -1)]], dtype=np.float32)
    colours = encode_normals(normals, np.array([[True, True, True, False]]))
    assert colours.dtype == np.uint8
    # facing is blue, right is red, up is green, nothing is grey
    assert colours.tolist() == [[[128, 128, 255], [255, 128, 128], [128, 255, 128], [128, 128, 128]]]


# --- real and rendered data ---------------------------------------------------------------------------------


def _data() -> Path:
    data = os.environ.get("PROTOAD_DATA")
    if not data:
        pytest.skip("set PROTOAD_DATA to a folder with mvtec3d/ and eyecandies/ to read real frames")
    return Path(data)


def test_rendered_candy_has_the_normals_of_its_renderer() -> None:
    image = pytest.importorskip("PIL.Image")
    stem = str(_data() / "eyecandies" / "CandyCane" / "test_public" / "data" / "00")
    info = Path(f"{stem}_info_depth.yaml").read_text()
    near, far = (float(info.split(f"{key}:")[1].split()[0]) for key in ("min", "max"))
    depth = np.asarray(image.open(f"{stem}_depth.png")) / 65535 * (far - near) + near
    xyz = xyz_from_depth(depth, Intrinsics(711.11, 711.11, 255.5, 255.5))
    truth = np.asarray(image.open(f"{stem}_normals.png"))[..., :3] / 127.5 - 1.0
    truth *= np.array([1, -1, -1])  # written with y up and z towards the viewer
    part = foreground_mask(xyz, distance=0.05)
    found = normals_from_xyz(xyz)
    assert found.valid.mean() > 0.99
    off = degrees(found.normals, truth)
    assert np.median(off[found.valid]) < 0.3
    assert np.median(off[found.valid & part]) < 5
    assert np.percentile(off[found.valid], 90) < 8
