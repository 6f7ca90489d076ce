"""Single parts as a station sends them: files in two folders."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from protoad.data.camera import Intrinsics
from protoad.data.clouds import lay_on_grid
from protoad.data.dataset import RGB_SUFFIXES, Report, add_file, by_stem, listed, metres, refuse, warn_of_millimetres
from protoad.data.files import EmptyCloudError, PathLike, read_rgb
from protoad.data.grid import share_grid
from protoad.data.points import CLOUD_SUFFIXES, DEPTH_SUFFIXES, read_points
from protoad.errors import DataError

__all__ = ["PartFiles", "list_files", "read_part"]


class PartFiles(NamedTuple):
    """Where the halves of a part lie; None where one is not there."""

    rgb: Path | None = None
    xyz: Path | None = None


def list_files(folder: PathLike, report: Report = refuse, *, depth: bool = False) -> dict[str, PartFiles]:
    """Gives name -> files of the parts in a folder with rgb/ and xyz/, paired by file name, in order of the names.

    A part may lack one of its files, and a folder may be missing. A file of another format, but with the name of a part
    that lacks this half, is taken for it: it must not pass as missing, and `read_part` says what is wrong with it.

    Args:
        folder: that holds rgb/ (PNG, JPEG), xyz/ (TIFF, PLY, PCD) or both.
        report: gets each problem, such as two files of one name; by default the first is an error.
        depth: whether xyz/ may hold depth images as well (PNG, .npy).

    Raises:
        DataError: if neither folder is there.
    """
    folder = Path(folder)
    there = [kind for kind in PartFiles._fields if os.path.isdir(folder / kind)]
    if not there:
        raise DataError(f"{folder}: has neither rgb/ nor xyz/; put the images and the point clouds of the parts there")
    suffixes = {"rgb": RGB_SUFFIXES, "xyz": (*CLOUD_SUFFIXES, *(DEPTH_SUFFIXES if depth else ()))}
    found = {kind: by_stem(folder / kind, suffixes[kind], report) for kind in there}
    names = sorted({name for files in found.values() for name in files})
    for kind in there:
        others = _of_other_formats(folder / kind, set(names) - found[kind].keys(), report)
        found[kind] |= others
    return {name: PartFiles(**{kind: files.get(name) for kind, files in found.items()}) for name in names}


def _of_other_formats(folder: Path, names: set[str], report: Report) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for entry in listed(folder):
        path = folder / entry
        if not entry.startswith(".") and unicodedata.normalize("NFC", path.stem) in names and os.path.isfile(path):
            add_file(files, path.stem, path, report)
    return files


def read_part(
    files: PartFiles, *, unit: str | float = "m", camera: Intrinsics | None = None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Gives (rgb, xyz) of a part, either of them None if there is no such file; a cloud without a point is none either.

    Images may be in colour or grey; points may come as depth images; both may differ in size, and then come on the
    coarser of the two grids.

    Args:
        files: of the part.
        unit: of points and depths: "m", "mm", or how many metres; what is given is in metres.
        camera: that depth images are seen by.

    Raises:
        ConfigError: for another unit.
        DataError: if there is nothing to read, a file is damaged, or the shapes of the frames differ.
    """
    rgb = None if files.rgb is None else read_rgb(files.rgb, grey=True)
    xyz = None
    if files.xyz is not None:
        try:
            xyz = read_points(files.xyz, unit=metres(unit), camera=camera)
        except EmptyCloudError:
            if rgb is None:
                raise
    if xyz is None or files.xyz is None:
        return rgb, None
    if rgb is not None and files.rgb is not None:
        xyz = lay_on_grid(files.xyz, xyz, rgb.shape[:2])
        shared = share_grid({"rgb": rgb, "xyz": xyz}, {"rgb": files.rgb, "xyz": files.xyz})
        rgb, xyz = shared["rgb"], shared["xyz"]
    elif len(xyz) == 1:
        raise DataError(f"{files.xyz}: holds {xyz.shape[1]} points on no grid, and there is no image to lay them on")
    warn_of_millimetres(xyz, files.xyz)
    return rgb, xyz
