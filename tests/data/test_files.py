"""Files go in and come out unchanged, and every damaged one is a DataError that names it."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from protoad.data import read_mask, read_rgb, read_xyz, write_mask, write_rgb, write_xyz
from protoad.data.files import MAX_PIXELS
from protoad.errors import DataError

Image = pytest.importorskip("PIL.Image")
tifffile = pytest.importorskip("tifffile")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _xyz(rng: np.random.Generator, height: int = 20, width: int = 30) -> np.ndarray:
    return rng.normal(0.5, 0.1, (height, width, 3)).astype(np.float32)


def test_written_rgb_reads_back_and_other_readers_agree(tmp_path: Path, rng: np.random.Generator) -> None:
    rgb = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    write_rgb(tmp_path / "new" / "a.png", rgb)
    np.testing.assert_array_equal(read_rgb(tmp_path / "new" / "a.png"), rgb)
    cv2 = pytest.importorskip("cv2")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "new" / "a.png"))[..., ::-1], rgb)


def test_written_xyz_reads_back_in_x_y_z_order(tmp_path: Path, rng: np.random.Generator) -> None:
    xyz = _xyz(rng)
    xyz[2, 3], xyz[4, 5, 1], xyz[6, 7, 2] = np.nan, np.inf, np.nan
    write_xyz(str(tmp_path / "a.tiff"), xyz)
    found = read_xyz(str(tmp_path / "a.tiff"))
    gone = np.zeros((20, 30), dtype=bool)
    gone[[2, 4, 6], [3, 5, 7]] = True
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found).all(axis=-1), gone)
    np.testing.assert_array_equal(found[~gone], xyz[~gone])
    raw = tifffile.imread(tmp_path / "a.tiff")
    assert (raw[gone] == 0).all()
    cv2 = pytest.importorskip("cv2")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.tiff"), -1)[..., ::-1], raw)


@pytest.mark.parametrize("nothing", [(0, 0, 0), (np.nan,) * 3, (np.inf, 0, 1), (0, 0, -np.inf), (1, np.nan, 1)])
def test_every_way_to_say_invalid_becomes_nan(tmp_path: Path, nothing: tuple[float, ...]) -> None:
    xyz = np.ones((4, 5, 3), dtype=np.float32)
    xyz[0] = (0, 0, 0.4)  # a coordinate may well be zero
    xyz[1, 2] = nothing
    tifffile.imwrite(tmp_path / "a.tiff", xyz, photometric="rgb")
    invalid = np.isnan(read_xyz(tmp_path / "a.tiff"))
    assert invalid[1, 2].all()
    assert invalid.sum() == 3


def test_mask_reads_every_kind_of_defect_as_defect(tmp_path: Path) -> None:
    levels = np.zeros((6, 7), dtype=np.uint8)
    levels[1], levels[2], levels[3] = 255, 252, 1
    Image.fromarray(levels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), levels > 0)
    mask = np.eye(8, dtype=bool)
    write_mask(tmp_path / "b.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "b.png"), mask)
    assert set(np.unique(np.asarray(Image.open(tmp_path / "b.png")))) == {0, 255}


def test_alpha_is_dropped_not_blended(tmp_path: Path, rng: np.random.Generator) -> None:
    rgba = rng.integers(0, 256, (5, 6, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), rgba[..., :3])


READERS = [(read_rgb, "a.png"), (read_mask, "a.png"), (read_xyz, "a.tiff")]


@pytest.mark.parametrize(("read", "name"), READERS)
def test_missing_folder_empty_and_text(tmp_path: Path, read: Callable[[Path], np.ndarray], name: str) -> None:
    path = tmp_path / name
    with pytest.raises(DataError, match=rf"{name}: no such file"):
        read(path)
    path.mkdir()
    with pytest.raises(DataError, match=rf"{name}: is a folder"):
        read(path)
    path.rmdir()
    path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name}: is empty"):
        read(path)
    path.write_text("not a picture at all\n" * 20)
    with pytest.raises(DataError, match=rf"{name}: not a readable"):
        read(path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.97])
def test_truncated_png(tmp_path: Path, rng: np.random.Generator, keep: float) -> None:
    path = tmp_path / "a.png"
    write_rgb(path, rng.integers(0, 256, (50, 60, 3), dtype=np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DataError, match=r"a\.png"):
        read_rgb(path)


@pytest.mark.parametrize("keep", [0.001, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_truncated_tiff(tmp_path: Path, rng: np.random.Generator, keep: float, compression: str | None) -> None:
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, _xyz(rng, 50, 60), photometric="rgb", compression=compression)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DataError, match=r"a\.tiff"):
        read_xyz(path)


def test_wrong_kinds_of_image(tmp_path: Path, rng: np.random.Generator) -> None:
    Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / "colour.png")
    with pytest.raises(DataError, match=r"grey\.png: is an image of kind L, expected an 8-bit colour"):
        read_rgb(tmp_path / "grey.png")
    with pytest.raises(DataError, match=r"colour\.png: is an image of kind RGB, expected a mask"):
        read_mask(tmp_path / "colour.png")
    with pytest.raises(DataError, match=r"grey\.png: has \d+ grey levels, expected a mask"):
        read_mask(tmp_path / "grey.png")


def test_16_bit_colour_is_refused_not_darkened(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + struct.pack(">9H", *([4095] * 9)) for _ in range(3))
    (tmp_path / "a.png").write_bytes(_png(3, 3, 16, rows))
    with pytest.raises(DataError, match=r"a\.png: is an image of kind 16-bit RGB"):
        read_rgb(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.ones((8, 9), np.float32), "float32 of shape"),
        (np.ones((8, 9, 4), np.float32), "float32 of shape"),
        (np.ones((8, 9, 3), np.uint16), "uint16 of shape"),
        (np.ones((8, 9, 3), np.float16), "float16 of shape"),
    ],
)
def test_wrong_channels_and_dtype_of_xyz(tmp_path: Path, array: np.ndarray, found: str) -> None:
    tifffile.imwrite(tmp_path / "a.tiff", array)
    with pytest.raises(DataError, match=rf"a\.tiff: holds {found}.*expected float32 \(y, x, 3\)"):
        read_xyz(tmp_path / "a.tiff")


def test_cloud_without_points(tmp_path: Path) -> None:
    write_xyz(tmp_path / "a.tiff", np.full((8, 9, 3), np.nan, np.float32))
    with pytest.raises(DataError, match=r"a\.tiff: holds no valid point"):
        read_xyz(tmp_path / "a.tiff")


@pytest.mark.parametrize("side", [8100, 12000, 30000])  # below, between and above Pillow's own two limits
def test_header_bomb_is_refused_before_decoding(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(_png(side, side, 8, b"\0" * 1000))
    for read in (read_rgb, read_mask):
        with pytest.raises(DataError, match=rf"a\.png: .*{MAX_PIXELS}"):
            read(tmp_path / "a.png")


def test_tiff_bomb_is_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, np.ones((8, 9, 3), np.float32), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["ImageWidth"].overwrite(60000)
        file.pages[0].tags["ImageLength"].overwrite(60000)
    with pytest.raises(DataError, match=rf"a\.tiff: its header promises 60000 x 60000 pixels.*{MAX_PIXELS}"):
        read_xyz(path)


def test_mutated_files_raise_nothing_but_data_errors(tmp_path: Path, rng: np.random.Generator) -> None:
    write_rgb(tmp_path / "a.png", rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    write_xyz(tmp_path / "a.tiff", _xyz(rng))
    refused = 0
    for read, name in ((read_rgb, "a.png"), (read_xyz, "a.tiff")):
        clean = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(150):
            data = clean.copy()
            where = rng.integers(0, min(400, len(data)), size=4)
            data[where] = rng.integers(0, 256, size=4)
            (tmp_path / f"b{name}").write_bytes(data.tobytes())
            try:
                read(tmp_path / f"b{name}")
            except DataError as error:
                assert f"b{name}" in str(error)  # noqa: PT017
                refused += 1
    assert refused > 20


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_rgb(path, np.zeros((4, 4, 3), np.uint8))
    old = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match=r"a\.png: cannot be written \(disk full\)"):
        write_rgb(path, np.ones((4, 4, 3), np.uint8))
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.png"]


def test_writers_refuse_wrong_arrays(tmp_path: Path) -> None:
    for write, array in (
        (write_rgb, np.zeros((4, 4, 3), np.float32)),
        (write_rgb, np.zeros((4, 4), np.uint8)),
        (write_mask, np.zeros((4, 4), np.uint8)),
        (write_xyz, np.zeros((4, 4, 3), np.uint8)),
        (write_xyz, np.zeros((4, 4), np.float32)),
    ):
        with pytest.raises(DataError, match="cannot write"):
            write(tmp_path / "a", array)


def _png(width: int, height: int, depth: int, rows: bytes) -> bytes:
    """A colour PNG by hand: any size in its header, any bytes as its rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data
