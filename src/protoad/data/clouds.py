"""Organised point clouds in PLY and PCD files, as scanners export them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protoad.data._decode import PathLike, check_file, check_size
from protoad.data.files import invalid_to_nan
from protoad.errors import DataError

__all__ = ["lay_on_grid", "read_cloud"]

_MAX_HEADER = 64_000  # bytes
_MAX_FIELDS = 1000
_PLY_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_PCD_TYPES = {"I": "i", "U": "u", "F": "f"}


class _Header(NamedTuple):
    """What the head of a file promises: rows of named numbers, and how they lie on the sensor's grid."""

    fields: list[tuple[str, str]]  # name, numpy type without byte order
    grid: tuple[int, int]  # (y, x) points; y = 1 where none is told
    coding: str  # "ascii", "<" or ">"
    start: int  # of the rows, bytes


def read_cloud(path: PathLike) -> np.ndarray:
    """The points in a PLY or PCD file, ASCII or uncompressed binary.

    A PCD file tells its grid as WIDTH and HEIGHT; a PLY file may in a line such as "comment width 640" or
    "obj_info num_cols 640", and likewise height or num_rows.

    Args:
        path: of the file; its suffix says which kind.

    Returns:
        (y x 3) float32 in the file's unit and axes, y = 1 if it tells no grid; NaN where a point isn't finite or
        (0, 0, 0).

    Raises:
        DataError: if the file is missing, damaged, compressed, or holds no valid point.
    """
    check_file(path)
    try:
        with open(path, "rb") as file:
            head = file.read(_MAX_HEADER)
        header = _ply_header(path, head) if Path(path).suffix.lower() == ".ply" else _pcd_header(path, head)
        points = _rows(path, header).reshape(*header.grid, 3)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return invalid_to_nan(path, points)


def lay_on_grid(path: PathLike, cloud: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A cloud of `read_cloud` as (y x 3): one that tells no grid has the colour image's `size` (y, x) if it fits.

    Raises:
        DataError: if it doesn't.
    """
    if cloud.shape[0] > 1:
        return cloud
    if cloud.shape[1] == size[0] * size[1]:
        return cloud.reshape(*size, 3)
    raise DataError(
        f"{path}: holds {cloud.shape[1]} points on no grid, the colour image {size[1]} x {size[0]} pixels; each pixel "
        "needs its point: export the cloud organised, with invalid points kept as NaN or 0, or as a depth image"
    )


def _rows(path: PathLike, header: _Header) -> np.ndarray:
    """The three coordinates (n 3) of all points, as float64."""
    count = header.grid[0] * header.grid[1]
    check_size(path, count, 1)
    names = [name for name, _ in header.fields]
    columns = [names.index(axis) for axis in "xyz"]
    held = os.path.getsize(path) - header.start
    if header.coding == "ascii":
        _check_held(path, 2 * count * len(names) - 1, held)  # a digit and a space for each number
        with open(path, encoding="latin-1") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty table is an error below
            file.seek(header.start)
            try:
                rows = np.loadtxt(file, comments=None, usecols=columns, max_rows=count, ndmin=2)
            except ValueError as error:
                raise DataError(f"{path}: holds something else than rows of numbers ({error})") from error
        if len(rows) < count:
            raise DataError(f"{path}: holds {len(rows)} points, its header promises {count}; copy it again")
        return rows
    sizes = [int(kind[1:]) for _, kind in header.fields]
    dtype = np.dtype(
        {
            "names": list("xyz"),
            "formats": [header.coding + header.fields[column][1] for column in columns],
            "offsets": [sum(sizes[:column]) for column in columns],
            "itemsize": sum(sizes),
        }
    )
    _check_held(path, count * dtype.itemsize, held)
    table = np.fromfile(path, dtype, count=count, offset=header.start)
    with np.errstate(invalid="ignore"):  # a NaN of the signalling kind is a NaN
        return np.stack([table[axis].astype(np.float64) for axis in "xyz"], axis=-1)


def _check_held(path: PathLike, promised: int, held: int) -> None:
    if promised > held:
        raise DataError(f"{path}: its header promises {promised} bytes, {held} follow; copy the file again")


def _ply_header(path: PathLike, head: bytes) -> _Header:
    lines, start = _header_lines(path, head, b"ply", b"end_header")
    coding, count, grid, elements, fields = "", 0, {}, 0, []
    for words in lines:
        match words:
            case ["format", kind, *_]:
                coding = {"ascii": "ascii", "binary_little_endian": "<", "binary_big_endian": ">"}.get(kind, "")
            case ["element", name, number]:
                elements += 1
                if elements == 1 and name != "vertex":
                    raise DataError(f"{path}: starts with {name}, expected its vertices first; export them alone")
                count = _whole(path, number) if elements == 1 else count
            case ["property", "list", *_] if elements == 1:
                raise DataError(f"{path}: its vertices hold lists; export x, y, z and nothing of changing length")
            case ["property", kind, name] if elements == 1:
                if kind not in _PLY_TYPES:
                    raise DataError(f"{path}: property {name} is of unknown type {kind}")
                fields.append((name, _PLY_TYPES[kind]))
            case ["comment" | "obj_info", "width" | "num_cols", number]:
                grid["x"] = _whole(path, number)
            case ["comment" | "obj_info", "height" | "num_rows", number]:
                grid["y"] = _whole(path, number)
    if not coding:
        raise DataError(f"{path}: tells no format known here; export it as ASCII or binary PLY")
    if len(grid) == 2 and grid["x"] * grid["y"] != count:
        raise DataError(
            f"{path}: tells a grid of {grid['x']} x {grid['y']} for {count} points; export it with all points"
        )
    return _Header(_with_xyz(path, fields), (grid["y"], grid["x"]) if len(grid) == 2 else (1, count), coding, start)


def _pcd_header(path: PathLike, head: bytes) -> _Header:
    lines, start = _header_lines(path, head, b"", b"DATA")
    told: dict[str, list[str]] = {words[0]: words[1:] for words in lines if words}
    lacking = [name for name in ("FIELDS", "SIZE", "TYPE", "WIDTH", "HEIGHT", "DATA") if not told.get(name)]
    if lacking:
        raise DataError(f"{path}: not a PCD file, its header lacks {', '.join(lacking)}; copy or export it again")
    if told["DATA"][0] not in ("ascii", "binary"):
        raise DataError(f"{path}: is stored as {told['DATA'][0]}; export it as ascii or binary, uncompressed")
    fields: list[tuple[str, str]] = []
    counts = told.get("COUNT") or ["1"] * len(told["FIELDS"])
    columns = (told["FIELDS"], told["TYPE"], told["SIZE"], counts)
    if len({len(column) for column in columns}) != 1:
        raise DataError(f"{path}: not a PCD file, its FIELDS, TYPE, SIZE and COUNT differ in length; export it again")
    for name, kind, size, count in zip(*columns, strict=True):
        code = f"{_PCD_TYPES.get(kind, '?')}{size}"
        if code not in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"):
            raise DataError(f"{path}: field {name} is of unknown type {kind}{size}")
        fields += [(name, code)] * min(_whole(path, count), _MAX_FIELDS)
        if len(fields) > _MAX_FIELDS:
            raise DataError(f"{path}: its header promises more than {_MAX_FIELDS} numbers per point; export x, y and z")
    grid = (_whole(path, told["HEIGHT"][0]), _whole(path, told["WIDTH"][0]))
    coding = "ascii" if told["DATA"][0] == "ascii" else "<"
    return _Header(_with_xyz(path, fields), grid, coding, start)


def _header_lines(path: PathLike, head: bytes, first: bytes, last: bytes) -> tuple[list[list[str]], int]:
    """The words of each header line up to the one that starts with `last`, and where the next line begins."""
    if not head.startswith(first):
        raise DataError(f"{path}: not a point cloud of the kind its suffix says; copy or export it again")
    lines, start = [], 0
    while start < len(head):
        end = head.find(b"\n", start)
        line = head[start : end if end >= 0 else len(head)]
        start = end + 1 if end >= 0 else len(head)
        lines.append(line.decode("latin-1").split())
        if line.startswith(last):
            return lines, start
    raise DataError(f"{path}: its header has no end; copy or export it again")


def _with_xyz(path: PathLike, fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
    lacking = [axis for axis in "xyz" if axis not in dict(fields)]
    if lacking:
        raise DataError(f"{path}: its points have no {', '.join(lacking)}; export x, y and z")
    return fields


def _whole(path: PathLike, word: Any) -> int:
    if not (isinstance(word, str) and word.isascii() and word.isdigit() and len(word) < 10):
        raise DataError(f"{path}: its header has {word!r} where a count was expected; copy or export it again")
    return int(word)
