"""Data sets in the layout of MVTec 3D-AD (Bergmann et al., VISAPP 2022), 3D-ADAM among them.

ROOT/CATEGORY/SPLIT/KIND/ holds rgb/000.png, xyz/000.tiff and gt/000.png (or ground_truth/000.png), with
SPLIT one of train, validation, test and KIND "good" or a kind of defect.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from protoad.data.dataset import (
    MASK_SUFFIXES,
    RGB_SUFFIXES,
    XYZ_SUFFIXES,
    Dataset,
    MissingSplitError,
    Part,
    Report,
    by_stem,
    check_good,
    check_same_size,
    folders,
    match,
    metres,
    warn_of_millimetres,
)
from protoad.data.files import PathLike, read_mask, read_rgb, read_xyz
from protoad.data.sample import Sample
from protoad.errors import DataError

__all__ = ["ADAM3D", "MVTec3D", "load_sample"]

_MASK_FOLDERS = ("gt", "ground_truth")


class MVTec3D(Dataset):
    """MVTec 3D-AD, and parts of one's own in its layout.

    A defective part needs a mask of the same name; a good one may have one, of zeros. Option: `unit`, of the
    point clouds, "m" or "mm".

    Example:
        MVTec3D("mvtec3d", "cable_gland", "test")[0].rgb.shape
    """

    title = "MVTec 3D-AD"
    choices: ClassVar = {"unit": ("m", "mm")}

    @classmethod
    def categories(cls, root: PathLike, **options: object) -> list[str]:
        root = Path(root)
        if not os.path.isdir(root):
            raise DataError(f"{root}: no such folder; give the folder that holds the categories")
        if any(os.path.isdir(root / "train" / "good" / kind) for kind in ("rgb", "xyz")):
            raise DataError(f"{root}: is a category itself; give the folder above it as root: {root.parent}")
        return [path.name for path in folders(root) if os.path.isdir(path / "train") or os.path.isdir(path / "test")]

    def _find(self, report: Report) -> list[Part]:
        if not os.path.isdir(self._folder):
            raise MissingSplitError(f"{self._folder}: no such folder; the category lacks its {self.split} split")
        return [part for kind in folders(self._folder) for part in self._find_kind(kind, report)]

    def _find_kind(self, folder: Path, report: Report) -> list[Part]:
        good = folder.name == "good"
        found = _pairs(folder, report)
        places = {"rgb": folder / "rgb", "xyz": folder / "xyz"}
        masks = next((folder / name for name in _MASK_FOLDERS if os.path.isdir(folder / name)), None)
        if masks is not None:
            found["mask"] = by_stem(masks, MASK_SUFFIXES, report)
            places["mask"] = masks
        elif not good:
            report(folder, "has neither gt/ nor ground_truth/; defective parts need a mask each")
        parts = match(found, places, report, optional=("mask",) if good else ())
        return [Part(f"{self.split}/{folder.name}/{name}", folder.name, files) for name, files in parts.items()]

    def assemble(self, part: Part, arrays: Mapping[str, Any]) -> Sample:
        check_same_size(arrays, part.files)
        mask = arrays.get("mask", np.zeros(arrays["rgb"].shape[:2], dtype=bool))
        check_good(part, mask)
        return Sample(
            rgb=arrays["rgb"],
            xyz=arrays["xyz"] * self.unit,
            mask=mask,
            label=self._label(part),
            defect=part.defect,
            name=part.name,
            path=part.files["rgb"],
        )


class ADAM3D(MVTec3D):
    """3D-ADAM (McHard et al., 2025) as published for anomalib: MVTec 3D-AD's layout without a validation split.

    Masks are in ground_truth/, under train/good too; the alpha channel of its images is dropped.
    """

    title = "3D-ADAM"
    splits = ("train", "test")


def load_sample(
    rgb_path: PathLike, xyz_path: PathLike, mask_path: PathLike | None = None, *, unit: str | float = "m"
) -> Sample:
    """One part from its files, outside any data set.

    Without a mask the part counts as good; with one, as defective if the mask isn't empty. `unit` is that of
    the point cloud: "m", "mm", or how many metres.

    Raises:
        ConfigError: for another unit.
        DataError: if a file is missing or damaged, or the sizes differ.
    """
    files = {"rgb": rgb_path, "xyz": xyz_path, "mask": mask_path}
    arrays = {"rgb": read_rgb(rgb_path), "xyz": read_xyz(xyz_path) * metres(unit)}
    arrays["mask"] = np.zeros(arrays["rgb"].shape[:2], dtype=bool) if mask_path is None else read_mask(mask_path)
    check_same_size(arrays, {kind: path for kind, path in files.items() if path is not None})
    warn_of_millimetres(arrays["xyz"], xyz_path)
    label = int(arrays["mask"].any())
    name = Path(rgb_path).stem
    return Sample(**arrays, label=label, defect="defect" if label else "good", name=name, path=Path(rgb_path))


def _pairs(folder: Path, report: Report) -> dict[str, dict[str, Path]]:
    return {
        "rgb": by_stem(folder / "rgb", RGB_SUFFIXES, report),
        "xyz": by_stem(folder / "xyz", XYZ_SUFFIXES, report),
    }
