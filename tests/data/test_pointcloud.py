"""Normals against closed forms, brute force, Open3D and a renderer."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from shapes import camera_rays, degrees, seen_plane, seen_sphere

from protoad.data import encode_normals, foreground_mask, normals_from_xyz, pointcloud
from protoad.data.pointcloud import _smallest_eigenvector
from protoad.errors import ShapeError


def _brute_force(xyz: np.ndarray, row: int, column: int, count: int = 30) -> np.ndarray:
    cloud = xyz[np.isfinite(xyz).all(axis=-1)].astype(float)
    here = xyz[row, column].astype(float)
    nearest = cloud[np.argsort(((cloud - here) ** 2).sum(axis=1))[:count]]
    normal = np.linalg.svd(nearest - nearest.mean(axis=0))[2][2]
    return -normal if normal @ here > 0 else normal


@pytest.mark.parametrize("method", ["grid", "knn"])
@pytest.mark.parametrize("normal", [(0, 0, -1), (0.3, 0, -1), (0, -0.5, -1), (-0.8, 0.9, -1)])
def test_plane_is_exact_up_to_the_frame(method: str, normal: tuple[float, float, float]) -> None:
    xyz, truth = seen_plane(camera_rays(30, 40), normal, 0.6)
    found = normals_from_xyz(xyz.astype(np.float32), method=method)  # type: ignore[arg-type]
    assert found.valid.all()
    assert found.normals.dtype == np.float32
    assert degrees(found.normals, truth).max() < 0.01


@pytest.mark.parametrize(("method", "median", "worst"), [("grid", 0.15, 3.0), ("knn", 0.15, 4.0)])
def test_sphere(method: str, median: float, worst: float) -> None:
    xyz, truth = seen_sphere(camera_rays(120, 120), 0.6, 0.1)
    found = normals_from_xyz(xyz.astype(np.float32), method=method)  # type: ignore[arg-type]
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
    xyz = np.where(inside[..., None], near, far).astype(np.float32)
    truth = np.where(inside[..., None], near_normal, far_normal)
    found = normals_from_xyz(xyz)
    assert found.valid.all()
    assert degrees(found.normals, truth).max() < 0.1
    monkeypatch.setattr(pointcloud, "_SCALES", pointcloud._SCALES[:1])
    assert degrees(normals_from_xyz(xyz).normals, truth)[4:7].max() > 5  # the bar needs the small windows
    monkeypatch.setattr(pointcloud, "_SHIFT_PENALTY", np.inf)
    assert (degrees(normals_from_xyz(xyz).normals, truth) > 5).mean() > 0.15  # and the block the shifted ones


def test_crease_stays_sharp() -> None:
    rays = camera_rays(40, 60)
    left, left_normal = seen_plane(rays, (-0.5, 0, -1), 0.6)
    right, right_normal = seen_plane(rays, (0.5, 0, -1), 0.6)
    nearer = left[..., 2:] < right[..., 2:]  # a ridge: the nearer of both planes
    xyz = np.where(nearer, left, right).astype(np.float32)
    truth = np.where(nearer, left_normal, right_normal)
    assert degrees(normals_from_xyz(xyz).normals, truth).max() < 0.1
    assert (degrees(normals_from_xyz(xyz, method="knn").normals, truth) > 5).mean() > 0.05


def test_silhouette_keeps_the_normals_of_its_own_side(monkeypatch: pytest.MonkeyPatch) -> None:
    rays = camera_rays(120, 120)
    ball, ball_normal = seen_sphere(rays, 0.6, 0.08)
    wall, wall_normal = seen_plane(rays, (0, 0.3, -1), 0.62)
    inside = np.isfinite(ball[..., 0]) & (ball[..., 2] < wall[..., 2])
    xyz = np.where(inside[..., None], ball, wall).astype(np.float32)
    truth = np.where(inside[..., None], ball_normal, wall_normal)
    off = degrees(normals_from_xyz(xyz).normals, truth)
    assert off.mean() < 0.5
    monkeypatch.setattr(pointcloud, "_OWN_POINT", np.inf)
    assert off.mean() < 0.8 * degrees(normals_from_xyz(xyz).normals, truth).mean()


def test_noise_is_averaged_over_the_window() -> None:
    rng = np.random.default_rng(0)
    xyz, truth = seen_plane(camera_rays(80, 80), (0.2, 0, -1), 0.6)
    noisy = xyz + xyz / 0.6 * rng.normal(0, 2e-5, (80, 80, 1))
    found = normals_from_xyz(noisy.astype(np.float32))
    # slope of a least-squares line over 25 points, 2 mm apart: sigma / (pitch * sqrt(50)) a side
    expected = np.degrees(2e-5 / (0.002 * np.sqrt(50)) * np.sqrt(np.pi / 2))
    assert np.degrees(1e-6) < expected
    assert 0.5 * expected < degrees(found.normals, truth)[2:-2, 2:-2].mean() < 1.6 * expected


@pytest.mark.parametrize("method", ["grid", "knn"])
def test_every_normal_faces_the_camera_with_unit_length(method: str) -> None:
    rng = np.random.default_rng(1)
    xyz = (camera_rays(30, 30) * rng.uniform(0.5, 0.6, (30, 30, 1))).astype(np.float32)
    xyz[rng.random((30, 30)) < 0.3] = np.nan
    normals, valid = normals_from_xyz(xyz, method=method)  # type: ignore[arg-type]
    assert ((normals * xyz).sum(axis=-1)[valid] < 0).all()
    np.testing.assert_allclose(np.linalg.norm(normals[valid], axis=-1), 1, atol=1e-6)
    assert (normals[~valid] == 0).all()


@pytest.mark.parametrize("method", ["grid", "knn"])
@pytest.mark.parametrize("nothing", [(0, 0, 0), (np.nan,) * 3, (np.inf, 0, 0.5), (0, 0, -np.inf)])
def test_invalid_points_get_no_normal_and_spoil_none(method: str, nothing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(2)
    xyz, truth = seen_plane(camera_rays(40, 40), (0.4, 0.1, -1), 0.6)
    holes = rng.random((40, 40)) < 0.35
    xyz[holes] = nothing
    before = xyz.copy()
    normals, valid = normals_from_xyz(xyz, method=method)  # type: ignore[arg-type]
    np.testing.assert_array_equal(xyz, before)
    assert not valid[holes].any()
    assert (normals[holes] == 0).all()
    assert valid[~holes].mean() > 0.99
    assert degrees(normals, truth)[valid].max() < 0.01


@pytest.mark.parametrize("method", ["grid", "knn"])
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
        normals, valid = normals_from_xyz(xyz, method=method)  # type: ignore[arg-type]
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


def test_knn_equals_open3d() -> None:
    open3d = _import_open3d()
    rng = np.random.default_rng(4)
    xyz, _ = seen_sphere(camera_rays(60, 60), 0.6, 0.1)
    xyz = (xyz + rng.normal(0, 1e-4, xyz.shape)).astype(np.float32)
    found = normals_from_xyz(xyz, method="knn")
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz[found.valid].astype(float)))
    cloud.estimate_normals(open3d.geometry.KDTreeSearchParamKNN(30))
    cloud.orient_normals_towards_camera_location(np.zeros(3))
    assert degrees(found.normals[found.valid], np.asarray(cloud.normals)).max() < 0.01


def test_closed_form_eigenvector_equals_lapack() -> None:
    rng = np.random.default_rng(5)
    axes = np.linalg.qr(rng.normal(size=(500, 3, 3)))[0]
    values = np.sort(rng.uniform(0.1, 1, (500, 3)), axis=1) * np.array([1e-4, 1, 1])
    matrices = axes * values[:, None] @ np.swapaxes(axes, 1, 2)
    six = [matrices[:, i, j] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))]
    found, vector = _smallest_eigenvector(*six)
    truth, vectors = np.linalg.eigh(matrices)
    np.testing.assert_allclose(np.stack(found, axis=-1), truth, atol=1e-12)
    assert np.abs((vector * vectors[:, :, 0]).sum(axis=-1)).min() > 1 - 1e-12


def test_wrong_arguments() -> None:
    xyz, _ = seen_plane(camera_rays(8, 8), (0, 0, -1), 0.6)
    with pytest.raises(ShapeError, match=r"xyz: expected \(y x 3\), got \(64, 3\)"):
        normals_from_xyz(xyz.reshape(-1, 3))
    with pytest.raises(ShapeError):
        foreground_mask(xyz[..., :2])
    with pytest.raises(ValueError, match="orient: expected 'camera', got 'tangent_plane'"):
        normals_from_xyz(xyz, orient="tangent_plane")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="method: expected 'grid' or 'knn', got 'mesh'"):
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
    z = np.asarray(image.open(f"{stem}_depth.png")) / 65535 * (far - near) + near
    v, u = np.mgrid[:512, :512]
    xyz = np.stack([(u - 255.5) / 711.11 * z, (v - 255.5) / 711.11 * z, z], axis=-1)
    truth = np.asarray(image.open(f"{stem}_normals.png"))[..., :3] / 127.5 - 1.0
    truth *= np.array([1, -1, -1])  # written with y up and z towards the viewer
    part = foreground_mask(xyz, distance=0.05)
    found = normals_from_xyz(xyz.astype(np.float32))
    assert found.valid.mean() > 0.99
    off = degrees(found.normals, truth)
    assert np.median(off[found.valid]) < 0.3
    assert np.median(off[found.valid & part]) < 5
    assert np.percentile(off[found.valid], 90) < 8


def _import_open3d() -> ModuleType:
    try:
        import libusb_package

        ctypes.CDLL(str(libusb_package.get_library_path()), mode=ctypes.RTLD_GLOBAL)
    except ImportError:
        pass  # the system may have libusb
    try:
        import open3d
    except (ImportError, OSError) as error:
        pytest.skip(f"Open3D can't be imported: {error}")
    return open3d  # type: ignore[no-any-return]
