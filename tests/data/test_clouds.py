"""PLY and PCD, beside Open3D where it is installed."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from types import ModuleType

import miniatures
import numpy as np
import pytest
from miniatures import pcd, ply

from protoad.data import read_cloud
from protoad.data.clouds import lay_on_grid
from protoad.errors import DataError


@pytest.mark.parametrize("coding", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize(
    "grid", ["comment width 16\ncomment height 12\n", "obj_info num_cols 16\nobj_info num_rows 12\n", ""]
)
def test_ply(coding: str, grid: str, tmp_path: Path) -> None:
    xyz = miniatures.frame(0)[1]
    xyz[3, 4] = 0
    (tmp_path / "a.ply").write_bytes(ply(xyz, coding, grid))
    found = read_cloud(tmp_path / "a.ply")
    xyz[3, 4] = np.nan
    assert found.dtype == np.float32
    assert found.shape == ((12, 16, 3) if grid else (1, 192, 3))
    np.testing.assert_array_equal(found.reshape(xyz.shape), xyz)
    np.testing.assert_array_equal(lay_on_grid(tmp_path / "a.ply", found, (12, 16)), xyz)
    if not grid:
        with pytest.raises(DataError, match=r"a\.ply: holds 192 points on no grid, the colour image 17 x 12 pixels"):
            lay_on_grid(tmp_path / "a.ply", found, (12, 17))


@pytest.mark.parametrize("coding", ["ascii", "binary"])
def test_pcd(coding: str, tmp_path: Path) -> None:
    xyz = miniatures.frame(1)[1]
    (tmp_path / "a.pcd").write_bytes(pcd(xyz, coding))
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.pcd"), xyz)


@pytest.mark.parametrize("coding", ["ascii", "binary"])
@pytest.mark.parametrize("suffix", ["ply", "pcd"])
def test_what_open3d_writes_and_what_it_reads(coding: str, suffix: str, tmp_path: Path) -> None:
    o3d = import_open3d()
    xyz = miniatures.frame(2)[1].astype(np.float64)
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(xyz.reshape(-1, 3)))
    cloud.colors = o3d.utility.Vector3dVector(np.full((192, 3), 0.5))
    path = tmp_path / f"a.{suffix}"
    assert o3d.io.write_point_cloud(str(path), cloud, write_ascii=coding == "ascii", compressed=False)
    np.testing.assert_allclose(read_cloud(path).reshape(xyz.shape), xyz, atol=1e-6)
    binary = "binary" if suffix == "pcd" else "binary_little_endian"
    ours = ply if suffix == "ply" else pcd
    (tmp_path / f"b.{suffix}").write_bytes(ours(xyz, "ascii" if coding == "ascii" else binary))
    back = o3d.io.read_point_cloud(str(tmp_path / f"b.{suffix}"), remove_nan_points=False)
    np.testing.assert_allclose(np.asarray(back.points).reshape(xyz.shape), xyz, atol=1e-6)


def import_open3d() -> ModuleType:
    with contextlib.suppress(ImportError):  # the system may have libusb
        import libusb_package

        ctypes.CDLL(str(libusb_package.get_library_path()), mode=ctypes.RTLD_GLOBAL)
    try:
        import open3d
    except (ImportError, OSError) as error:
        pytest.skip(f"Open3D can't be imported: {error}")
    return open3d


PLY, PCD = ply(miniatures.frame(0)[1]), pcd(miniatures.frame(0)[1])
BINARY = ply(miniatures.frame(0)[1], "binary_little_endian")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.ply", PCD, "not a point cloud of the kind its suffix says"),
        ("a.pcd", PLY, "its header has no end"),
        ("a.ply", PLY[:60], "its header has no end"),
        ("a.ply", PLY.replace(b"vertex 192", b"vertex 199"), "holds 193 points, its header promises 199"),
        ("a.ply", PLY.replace(b"vertex 192", b"vertex 99999999"), "its header promises 99999999 x 1 pixels"),
        ("a.ply", PLY.replace(b"vertex 192", b"vertex -1"), "'-1' where a count was expected"),
        ("a.ply", PLY.replace(b"vertex 192", b"vertex 9999"), "its header promises 79991 bytes"),
        ("a.ply", BINARY[:-100], "its header promises 3264 bytes, 3177 follow"),
        ("a.ply", PLY.replace(b"float x", b"float u"), "its points have no x"),
        ("a.ply", PLY.replace(b"float x", b"half x"), "property x is of unknown type half"),
        ("a.ply", PLY.replace(b"float x", b"list uchar int x"), "its vertices hold lists"),
        ("a.ply", PLY.replace(b"element vertex", b"element camera 1\nelement vertex"), "starts with camera"),
        ("a.ply", PLY.replace(b"ascii", b"zipped"), "tells no format known here"),
        (
            "a.ply",
            PLY.replace(b"comment by hand", b"comment width 3\ncomment height 5"),
            "a grid of 3 x 5 for 192 points",
        ),
        ("a.ply", PLY.replace(b" 7 0.5", b" 7 zero"), "holds something else than rows of numbers"),
        ("a.ply", ply(np.full((12, 16, 3), np.nan)), "holds no valid point"),
        ("a.pcd", PCD.replace(b"DATA ascii", b"DATA binary_compressed"), "is stored as binary_compressed"),
        ("a.pcd", PCD.replace(b"SIZE 4 4 4 4 4", b"SIZE 4 4 4"), "differ in length"),
        ("a.pcd", PCD.replace(b"SIZE 4 4 4 4 4", b"SIZE 3 4 4 4 4"), "field x is of unknown type F3"),
        ("a.pcd", PCD.replace(b"COUNT 1 1 1 1 3", b"COUNT 1 1 1 1 99999"), "more than 1000 numbers per point"),
        ("a.pcd", PCD.replace(b"HEIGHT 12", b"HEIGHT"), "its header lacks HEIGHT"),
        ("a.pcd", PCD[:-2000], "holds something else than rows of numbers"),
    ],
)
def test_bad_clouds(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"{name}: .*{message}"):
        read_cloud(tmp_path / name)
