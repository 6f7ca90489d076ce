"""Data sets in the layout of MVTec 3D-AD (Bergmann et al., VISAPP 2022).

ROOT/CATEGORY/SPLIT/KIND/ holds rgb/000.png, xyz/000.tiff and gt/000.png (or ground_truth/000.png), with
SPLIT one of train, validation, test and KIND "good" or a kind of defect.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from protoad.data.files import PathLike, read_mask, read_rgb, read_xyz
from protoad.data.sample import Sample
from protoad.errors import DataError

__all__ = ["MVTec3D", "list_categories", "load_sample", "pair_files"]

_SPLITS = ("train", "validation", "test")
_MASK_FOLDERS = ("gt", "ground_truth")
_RGB_SUFFIXES = (".png", ".jpg", ".jpeg")
_XYZ_SUFFIXES = (".tiff", ".tif")
_MASK_SUFFIXES = (".png",)


class _Files(NamedTuple):
    name: str
    defect: str
    rgb: Path
    xyz: Path
    mask: Path | None


class MVTec3D(Sequence[Sample]):
    """The parts of one split of one category; files are decoded only when a part is asked for.

    Args:
        root: the folder that holds the categories.
        category: such as "cable_gland".
        split: "train", "validation" or "test".

    Raises:
        DataError: if a folder is missing or empty, the category or split is unknown, or a file lacks its
            partner; names it. Damaged files and sizes that differ show when the part is read.
    """

    def __init__(self, root: PathLike, category: str, split: str) -> None:
        if split not in _SPLITS:
            raise DataError(f"unknown split {split!r}, expected one of {', '.join(_SPLITS)}")
        categories = list_categories(root)
        if category not in categories:
            found = ", ".join(categories) or "none (the layout is ROOT/CATEGORY/train/good/rgb)"
            raise DataError(f"{root}: has no category {category!r}; found: {found}")
        folder = Path(root) / category / split
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; the category lacks its {split} split")
        self.root, self.category, self.split = Path(root), category, split
        self._files = [files for kind in _folders(folder) for files in _pair(kind, split)]
        if not self._files:
            raise DataError(f"{folder}: holds no parts; expected {folder}/good/rgb/000.png and so on")

    @property
    def names(self) -> list[str]:
        """Such as "test/good/000", sorted by kind of defect and number."""
        return [files.name for files in self._files]

    @property
    def defects(self) -> list[str]:
        """Kind of defect of each part, "good" if none."""
        return [files.defect for files in self._files]

    @property
    def labels(self) -> list[int]:
        """0 good, 1 defective, by folder."""
        return [int(files.defect != "good") for files in self._files]

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [_load(files) for files in self._files[index]]
        return _load(self._files[operator.index(index)])

    def __iter__(self) -> Iterator[Sample]:
        return (_load(files) for files in self._files)

    def __repr__(self) -> str:
        return f"MVTec3D({str(self.root)!r}, {self.category!r}, {self.split!r}): {len(self)} parts"


def list_categories(root: PathLike) -> list[str]:
    """Sorted names of the folders in `root` that hold a train or test split.

    Raises:
        DataError: if `root` isn't a folder, or is itself a category.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder that holds the categories")
    if any((root / "train" / "good" / kind).is_dir() for kind in ("rgb", "xyz")):
        raise DataError(f"{root}: is a category itself; give the folder above it as root: {root.parent}")
    return [path.name for path in _folders(root) if (path / "train").is_dir() or (path / "test").is_dir()]


def load_sample(rgb_path: PathLike, xyz_path: PathLike, mask_path: PathLike | None = None) -> Sample:
    """One part from its files, outside any data set.

    Without a mask the part counts as good; with one, as defective if the mask isn't empty.

    Raises:
        DataError: if a file is missing or damaged, or the sizes differ.
    """
    name = Path(rgb_path).stem
    rgb, xyz, mask = _read(rgb_path, xyz_path, mask_path)
    label = int(mask.any())
    return Sample(rgb=rgb, xyz=xyz, mask=mask, label=label, defect="defect" if label else "good", name=name)


def _load(files: _Files) -> Sample:
    rgb, xyz, mask = _read(files.rgb, files.xyz, files.mask)
    good = files.defect == "good"
    if good and mask.any():
        raise DataError(f"{files.mask}: outlines a defect, but its folder is for good parts; move the part")
    return Sample(rgb=rgb, xyz=xyz, mask=mask, label=int(not good), defect=files.defect, name=files.name)


def _read(
    rgb_path: PathLike, xyz_path: PathLike, mask_path: PathLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rgb = read_rgb(rgb_path)
    xyz = read_xyz(xyz_path)
    mask = np.zeros(rgb.shape[:2], dtype=bool) if mask_path is None else read_mask(mask_path)
    for path, array in ((xyz_path, xyz), (mask_path, mask)):
        if array.shape[:2] != rgb.shape[:2]:
            raise DataError(
                f"{path}: is {_size(array)} pixels, but {rgb_path} is {_size(rgb)}; "
                "all files of a part must share one pixel grid"
            )
    return rgb, xyz, mask


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"


def pair_files(folder: PathLike) -> dict[str, tuple[Path, Path]]:
    """Gives name -> (colour image, point cloud) of the parts in a folder with rgb/ and xyz/, paired by file name.

    Raises:
        DataError: if a folder or a partner is missing, a name comes twice, or there is no folder.
    """
    folder = Path(folder)
    rgb = _by_stem(folder / "rgb", _RGB_SUFFIXES)
    xyz = _by_stem(folder / "xyz", _XYZ_SUFFIXES)
    _check_partners(rgb, xyz, "point cloud", folder / "xyz")
    _check_partners(xyz, rgb, "colour image", folder / "rgb")
    return {stem: (rgb[stem], xyz[stem]) for stem in sorted(rgb)}


def _pair(folder: Path, split: str) -> list[_Files]:
    """The parts of one kind of defect: files with the same stem belong together."""
    pairs = pair_files(folder)
    rgb = {stem: pair[0] for stem, pair in pairs.items()}
    good = folder.name == "good"
    mask_folder = next((folder / name for name in _MASK_FOLDERS if (folder / name).is_dir()), None)
    if mask_folder is None and not good:
        raise DataError(f"{folder}: has neither gt/ nor ground_truth/; defective parts need a mask each")
    masks = {} if mask_folder is None else _by_stem(mask_folder, _MASK_SUFFIXES)
    if mask_folder is not None:
        _check_partners(masks, rgb, "colour image", folder / "rgb")
        if not good:
            _check_partners(rgb, masks, "mask", mask_folder)
    return [
        _Files(f"{split}/{folder.name}/{stem}", folder.name, *pair, masks.get(stem)) for stem, pair in pairs.items()
    ]


def _check_partners(files: dict[str, Path], partners: dict[str, Path], kind: str, folder: Path) -> None:
    orphans = [path for stem, path in sorted(files.items()) if stem not in partners]
    if orphans:
        more = f" (and {len(orphans) - 1} more)" if len(orphans) > 1 else ""
        raise DataError(f"{orphans[0]}{more}: no {kind} of the same name in {folder}; add it or remove the orphan")


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected files ending in {' or '.join(suffixes)} there")
    files: dict[str, Path] = {}
    for entry in sorted(os.listdir(folder)):
        path = folder / entry
        if entry.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        if path.stem in files:
            raise DataError(f"{path}: {files[path.stem].name} has the same name; keep one of them")
        files[path.stem] = path
    return files


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
