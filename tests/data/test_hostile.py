"""Files that nobody vouches for: no crash, no hang, little memory, and one kind of error that names the file."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import miniatures
import numpy as np
import pytest
import tifffile
from PIL import Image

from protoad.data import DataWarning, load_sample, prepare, read_cloud, read_depth, read_rgb, read_xyz, write_rgb
from protoad.errors import DataError

TESTS = Path(__file__).resolve().parents[1]


def test_two_thousand_mutated_files() -> None:
    """In a process of its own, whose address space may grow by a gigabyte, with an alarm of ten seconds per file."""
    pytest.importorskip("resource")
    command = [sys.executable, "-W", "error", str(TESTS / "fuzz_files.py"), "2000", "0"]
    path = [str(TESTS.parent / "src"), str(TESTS.parent / "kernels"), str(TESTS)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env={"PYTHONPATH": ":".join(path), "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""  # decoders' own logs would stand beside the one sentence
    found = json.loads(done.stdout)
    assert found["failures"] == []
    assert found["files"] == 2000
    assert 1000 < found["refused"] < 1900  # some wounds heal, and some files are read in spite of them
    assert found["peak_mb"] < 1024


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.npy", "a.ply", "a.pcd"])
def test_files_cut_anywhere(name: str, tmp_path: Path) -> None:
    rgb, xyz = miniatures.frame(0, (8, 9))
    write_rgb(tmp_path / "a.png", rgb)
    tifffile.imwrite(tmp_path / "a.tiff", xyz, photometric="rgb", compression="zlib")
    np.save(tmp_path / "a.npy", xyz[..., 2])
    (tmp_path / "a.ply").write_bytes(miniatures.ply(xyz, "binary_little_endian"))
    (tmp_path / "a.pcd").write_bytes(miniatures.pcd(xyz, "binary"))
    read = {".png": read_rgb, ".tiff": read_xyz, ".npy": read_depth}.get(Path(name).suffix, read_cloud)
    path = tmp_path / name
    data = path.read_bytes()
    read(path)
    last = len(data) - 30  # of a PNG the end mark may lack, of a PLY the faces
    for end in range(0, last, max(1, last // 60)):
        path.write_bytes(data[:end])
        with pytest.raises(DataError, match=rf"{name}: "):
            read(path)


def test_a_chunk_longer_than_its_file_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    write_rgb(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    data = (tmp_path / "a.png").read_bytes()
    body = b"iCCP" + bytes(8)
    chunk = struct.pack(">I", 0x7FFFFFF0) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
    with pytest.raises(DataError, match=r"a\.png: not a readable image \(ends in the middle of a chunk"):
        read_rgb(tmp_path / "a.png")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_page_that_cannot_be_in_its_file_is_refused_before_it_is_allocated(
    compression: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, np.ones((8, 9, 3), np.float32), photometric="rgb", compression=compression)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["ImageWidth"].overwrite(7000)
        file.pages[0].tags["ImageLength"].overwrite(7000)
    with pytest.raises(
        DataError, match=r"a\.tiff: its header promises 588000000 bytes of pixels, which its \d+ cannot"
    ):
        read_xyz(path)
    tifffile.imwrite(path, np.ones((8, 9, 3), np.float32), photometric="rgb", compression=compression)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["StripByteCounts"].overwrite(2**31)
    with pytest.raises(DataError, match=r"a\.tiff: "):
        read_xyz(path)


def test_a_compression_that_needs_another_package_says_which(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, np.ones((8, 9, 3), np.float32), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["Compression"].overwrite(5)
    with pytest.raises(DataError, match=r"a\.tiff: is compressed by LZW; run: pip install imagecodecs"):
        read_xyz(path)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[print, 1]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy: not a readable NumPy array"):
        read_depth(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.ones((8, 9), np.uint8), "uint8 of shape"),
        (np.ones((8, 9, 3), np.uint16), "uint16 of shape"),
        (np.ones((8, 9), complex), "complex128 of shape"),
        (np.ones((8,), np.float32), "float32 of shape"),
        (np.ones((0, 9), np.float32), r"float32 of shape \(0, 9\)"),
        (np.ones((2, 8, 9, 1), np.float32), "float32 of shape"),
    ],
)
def test_wrong_channels_and_dtype_of_depth(array: np.ndarray, found: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=rf"a\.npy: holds {found}.*expected a depth image of 16 bits or more"):
        read_depth(tmp_path / "a.npy")


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float16, np.float64])
def test_depth_comes_as_it_stands_in_the_file(dtype: type, tmp_path: Path) -> None:
    depth = np.random.default_rng(0).integers(0, 2000, (8, 9)).astype(dtype)
    np.save(tmp_path / "a.npy", depth)
    tifffile.imwrite(tmp_path / "a.tiff", depth)
    names = ["a.npy", "a.tiff"]
    if dtype is np.uint16:
        Image.fromarray(depth).save(tmp_path / "a.png")
        names.append("a.png")
    for name in names:
        found = read_depth(tmp_path / name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, depth.astype(np.float32), err_msg=name)


CLOUDS = {
    "one point": lambda xyz: np.where(np.arange(12)[:, None, None] * 16 + np.arange(16)[:, None] == 50, xyz, np.nan),
    "three points": lambda xyz: np.where(np.arange(16)[:, None] * np.ones((12, 1, 1)) < 3, xyz, np.nan)[:1],
    "one row": lambda xyz: np.where(np.arange(12)[:, None, None] == 5, xyz, np.nan),
    "exactly flat": lambda xyz: xyz * (1, 1, 0) + (0, 0, 0.5),
    "all the same": lambda xyz: np.broadcast_to(np.float32([0.1, 0.1, 0.5]), xyz.shape),
    "huge": lambda xyz: xyz * 1e30,
    "tiny": lambda xyz: xyz * 1e-30,
    "behind the camera": lambda xyz: xyz * (1, 1, -1),
    "mixed holes": lambda xyz: np.where(
        np.random.default_rng(0).random((12, 16, 1)) < 0.5,
        np.random.default_rng(1).choice(np.float32([0, np.nan, np.inf, -np.inf]), (12, 16, 3)),
        xyz,
    ),
}


# Less than a window needs, all in one place, beyond 1e12 metres, or so small that squares of distances vanish.
NO_SURFACE = ("one point", "three points", "all the same", "huge", "tiny")


@pytest.mark.parametrize("name", CLOUDS)
def test_degenerate_clouds_are_prepared_or_refused(name: str, tmp_path: Path) -> None:
    rgb, xyz = miniatures.frame(0)
    cloud = np.ascontiguousarray(CLOUDS[name](np.nan_to_num(xyz, nan=0.5)), dtype=np.float32)
    write_rgb(tmp_path / "a.png", rgb[: len(cloud)])
    tifffile.imwrite(tmp_path / "a.tiff", cloud, photometric="rgb")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        sample = load_sample(tmp_path / "a.png", tmp_path / "a.tiff")
    assert (np.isnan(sample.xyz).all(axis=-1) == np.isnan(sample.xyz).any(axis=-1)).all()
    if name in NO_SURFACE:
        with pytest.raises(DataError, match="a: its point cloud holds no surface; check the unit"):
            prepare(sample, 16)
    else:
        assert all(tensor.isfinite().all() for tensor in prepare(sample, 16)[:5])  # no points were asked for


def test_what_follows_the_end_of_a_picture_is_nobodys_business(tmp_path: Path) -> None:
    rgb, _ = miniatures.frame(0)
    write_rgb(tmp_path / "a.png", rgb)
    with (tmp_path / "a.png").open("ab") as file:
        file.write(b"\xff" * 20)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), rgb)
