"""Single parts in every format that a data set may be of."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import miniatures
import numpy as np
import pytest
import tifffile
from miniatures import pcd, ply

from protoad.data import Intrinsics, PartFiles, list_files, read_part, write_xyz
from protoad.errors import DataError

WRITERS: dict[str, Callable[[Path, np.ndarray], object]] = {
    ".tiff": write_xyz,
    ".ply": lambda path, xyz: path.write_bytes(ply(xyz, "ascii", "")),
    ".pcd": lambda path, xyz: path.write_bytes(pcd(xyz, "binary")),
}
CAMERA = Intrinsics(miniatures.FOCAL, miniatures.FOCAL, 7.5, 5.5)


def _part(folder: Path, name: str = "a", grey: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rgb, xyz = miniatures.frame(0)
    miniatures.write_image(folder / "rgb" / f"{name}.png", rgb[..., 0] if grey else rgb)
    (folder / "xyz").mkdir(exist_ok=True)
    return rgb, xyz


@pytest.mark.parametrize("suffix", WRITERS)
def test_points_in_any_format_are_the_same(suffix: str, tmp_path: Path) -> None:
    rgb, xyz = _part(tmp_path)
    WRITERS[suffix](tmp_path / "xyz" / f"a{suffix}", 1000 * xyz)
    files = list_files(tmp_path)["a"]
    assert files == PartFiles(tmp_path / "rgb" / "a.png", tmp_path / "xyz" / f"a{suffix}")
    found = read_part(files, unit="mm")
    np.testing.assert_array_equal(found[0], rgb)
    np.testing.assert_allclose(found[1], xyz, rtol=1e-6)
    np.testing.assert_array_equal(read_part(files, unit="mm", camera=CAMERA)[1], found[1])  # no use for it here


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
def test_depth_images_are_seen_by_the_camera(suffix: str, tmp_path: Path) -> None:
    _, xyz = _part(tmp_path)
    depth, path = np.nan_to_num(10_000 * xyz[..., 2]).round(), tmp_path / "xyz" / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, depth)
    elif suffix == ".png":
        miniatures.write_depth(path, depth)
    else:
        tifffile.imwrite(path, depth.astype(np.float32))
    files = list_files(tmp_path, depth=True)["a"]
    found = read_part(files, unit=1e-4, camera=CAMERA)[1]
    np.testing.assert_allclose(found, xyz, atol=1e-4)
    with pytest.raises(DataError, match=rf"a\{suffix}: is 16 x 12 pixels, but its camera has 9 x 5"):
        read_part(files, camera=CAMERA._replace(size=(5, 9)))
    with pytest.raises(DataError, match=r"a depth image, which takes a camera|expected float32 \(y, x, 3\)"):
        read_part(files)


def test_an_empty_depth_image_is_none(tmp_path: Path) -> None:
    _part(tmp_path)
    miniatures.write_depth(tmp_path / "xyz" / "a.png", np.zeros(miniatures.SIZE))
    files = list_files(tmp_path, depth=True)["a"]
    assert read_part(files, camera=CAMERA)[1] is None
    with pytest.raises(DataError, match=r"a\.png: holds no valid depth"):
        read_part(files._replace(rgb=None), camera=CAMERA)


def test_grey_images_and_finer_ones(tmp_path: Path) -> None:
    rgb, xyz = _part(tmp_path, grey=True)
    write_xyz(tmp_path / "xyz" / "a.tiff", xyz)
    np.testing.assert_array_equal(read_part(list_files(tmp_path)["a"])[0], rgb[..., :1].repeat(3, axis=-1))
    miniatures.write_image(tmp_path / "rgb" / "a.png", rgb.repeat(3, axis=0).repeat(3, axis=1))
    found = read_part(list_files(tmp_path)["a"])
    np.testing.assert_array_equal(found[0], rgb)
    np.testing.assert_array_equal(found[1], xyz)
    miniatures.write_image(tmp_path / "rgb" / "a.png", rgb[:, :8])
    with pytest.raises(DataError, match=r"a\.tiff: is 16 x 12 pixels, but .*a\.png is 8 x 12"):
        read_part(list_files(tmp_path)["a"])


def test_a_half_in_a_format_that_is_not_read_does_not_pass_as_missing(tmp_path: Path) -> None:
    _, xyz = _part(tmp_path, "Gehäuse")
    _part(tmp_path, "b")
    composed = unicodedata.normalize("NFD", "Gehäuse")
    (tmp_path / "xyz" / f"{composed}.stl").write_text("solid")
    (tmp_path / "xyz" / "note.txt").write_text("not of a part")
    write_xyz(tmp_path / "xyz" / "b.tiff", xyz)
    (tmp_path / "xyz" / "b.png").write_bytes(b"a preview of the points")
    found = list_files(tmp_path)
    assert list(found) == ["Gehäuse", "b"]
    assert found["b"].xyz == tmp_path / "xyz" / "b.tiff"
    with pytest.raises(DataError, match=r"\.stl: is of no format that points are read from; expected \.tiff"):
        read_part(found["Gehäuse"])
    (tmp_path / "xyz" / "b.tiff").unlink()
    with pytest.raises(DataError, match=r"b\.png: would be a depth image, which takes a camera"):
        read_part(list_files(tmp_path)["b"])
    (tmp_path / "xyz" / "b.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.png: b\.npy has the same name"):
        list_files(tmp_path)
    shutil.rmtree(tmp_path / "xyz")
    assert list_files(tmp_path)["b"] == PartFiles(tmp_path / "rgb" / "b.png")


def test_points_on_no_grid_need_an_image(tmp_path: Path) -> None:
    _, xyz = _part(tmp_path)
    WRITERS[".ply"](tmp_path / "xyz" / "a.ply", xyz)
    with pytest.raises(DataError, match=r"a\.ply: holds 192 points on no grid, and there is no image"):
        read_part(PartFiles(xyz=tmp_path / "xyz" / "a.ply"))
