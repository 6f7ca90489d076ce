"""Single parts as a station sends them: files in two folders, of any kind that a data set may be of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from protoad.data.camera import Intrinsics
from protoad.data.clouds import lay_on_grid
from protoad.data.dataset import RGB_SUFFIXES, Report, by_stem, listed, metres, refuse, warn_of_millimetres
from protoad.data.files import EmptyCloudError, PathLike, read_rgb
from protoad.data.grid import share_grid
from protoad.data.points import POINT_SUFFIXES, read_points
from protoad.errors import DataError

__all__ = ["PartFiles", "list_files", "read_part"]


class PartFiles(NamedTuple):
    """Where the halves of a part lie; None where one is not there."""

    rgb: Path | None = None
    xyz: Path | None = None


def list_files(folder: PathLike, report: Report = refuse) -> dict[str, PartFiles]:
    """Gives name -> files of the parts in a folder with rgb/ and xyz/, paired by file name, in order of the names.

    A part may lack one of its files, and a folder may be missing.

    Args:
        folder: that holds rgb/, xyz/ or both; xyz/ holds points (TIFF, PLY, PCD) or depth images (PNG, TIFF, .npy).
        report: gets each problem, such as two files of one name, or a half of a part in a format that is not read; by
            default the first is an error.

    Raises:
        DataError: if neither folder is there.
    """
    folder = Path(folder)
    there = [kind for kind in PartFiles._fields if os.path.isdir(folder / kind)]
    if not there:
        raise DataError(f"{folder}: has neither rgb/ nor xyz/; put the images and the point clouds of the parts there")
    found = {kind: by_stem(folder / kind, _SUFFIXES[kind], report) for kind in there}
    names = sorted({name for files in found.values() for name in files})
    for kind in there:
        _report_unread(folder / kind, _SUFFIXES[kind], set(names) - found[kind].keys(), report)
    return {name: PartFiles(**{kind: files.get(name) for kind, files in found.items()}) for name in names}


_SUFFIXES = {"rgb": RGB_SUFFIXES, "xyz": POINT_SUFFIXES}


def _report_unread(folder: Path, suffixes: tuple[str, ...], lacking: set[str], report: Report) -> None:
    """A part that lacks a half may have it in a format that is not read: it must not pass as missing."""
    for entry in listed(folder):
        path = folder / entry
        if path.stem in lacking and not entry.startswith("."):
            report(path, f"is of no format that is read here; expected {', '.join(suffixes)}")


def read_part(
    files: PartFiles, *, unit: str | float = "m", camera: Intrinsics | None = None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Gives (rgb, xyz) of a part, either of them None if there is no such file; a cloud without a point is none either.

    Files may be what a `Folder` reads: colour or grey, points or depth images, of different sizes; both come on the
    coarser grid of the two.

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
