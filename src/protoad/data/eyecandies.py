"""Eyecandies (Bonfiglioli et al., ACCV 2022) as published, without any conversion.

ROOT/CATEGORY/SPLIT/data/ holds, for each part, 000_image_0.png to 000_image_5.png, 000_depth.png, 000_info_depth.yaml,
000_normals.png, 000_mask.png and more; the number has three digits in train and two in test_public.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from protoad.data._decode import check_file
from protoad.data.camera import Intrinsics, xyz_from_depth
from protoad.data.dataset import Dataset, MissingSplitError, Part, Report, by_stem, check_good, check_same_size, folders
from protoad.data.files import PathLike, read_mask
from protoad.data.grid import face_camera
from protoad.data.sample import Sample
from protoad.errors import DataError

__all__ = ["Eyecandies", "read_depth_range"]

_FOLDERS = {"train": "train", "validation": "val", "test": "test_public", "test_private": "test_private"}
_DEFECTS = ("bumps", "dents", "colors", "normals")
_FOCAL = 711.11  # pixels, at 512 x 512
_SIDE = 512
_LEVELS = 65535  # of a 16-bit depth image
_MAX_TEXT = 64_000  # bytes


class Eyecandies(Dataset):
    """Eyecandies.

    A part is defective if its mask has a pixel: some that the data set calls anomalous have none, and count as
    good, as everywhere in the field; `notes` says how many. The kind of defect is "bumps", "dents", "colors",
    "normals", several joined by "+", or "defect" where the masks of the kinds are missing.

    Options: `light` is the number of the image: 4 (the default) is lit from the left only, and what published results
    use; 0 has all four spotlights, 1 to 3 those from the bottom, the right and the top, 5 a diffuse light box.
    `normals` is "depth", computed from the depth image as for any sensor, or "given", the rendered ones.
    """

    title = "Eyecandies"
    splits = tuple(_FOLDERS)
    choices: ClassVar = {"light": ("4", "0", "1", "2", "3", "5"), "normals": ("depth", "given")}
    expected = "the layout is ROOT/CATEGORY/train/data/000_image_4.png and so on"

    @classmethod
    def categories(cls, root: PathLike, **options: object) -> list[str]:
        root = Path(root)
        if not os.path.isdir(root):
            raise DataError(f"{root}: no such folder; give the folder that holds the categories")
        if any(os.path.isdir(root / folder / "data") for folder in _FOLDERS.values()):
            raise DataError(f"{root}: is a category itself; give the folder above it as root: {root.parent}")
        return [
            path.name
            for path in folders(root)
            if any(os.path.isdir(path / folder / "data") for folder in _FOLDERS.values())
        ]

    @property
    def _folder(self) -> Path:
        return self.root / self.category / _FOLDERS[self.split] / "data"

    def _find(self, report: Report) -> list[Part]:
        if not os.path.isdir(self._folder):
            raise MissingSplitError(f"{self._folder}: no such folder; the category lacks its {self.split} split")
        numbered: dict[str, dict[str, Path]] = {}
        for stem, path in by_stem(self._folder, (".png", ".yaml"), report).items():
            number, _, item = stem.partition("_")
            if number.isdigit() and item:
                numbered.setdefault(number, {})[item] = path
        parts = [self._part(number, numbered[number], report) for number in sorted(numbered, key=int)]
        found = [part for part in parts if part is not None]
        self._note_empty_masks(found, numbered)
        return found

    def _part(self, number: str, items: dict[str, Path], report: Report) -> Part | None:
        """The files of one part and its defect, or None and a report of what is missing."""
        test = self.split.startswith("test")
        light = f"image_{self.options['light']}"
        files = {"rgb": light, "depth": "depth", "depth_range": "info_depth"}
        if test or "mask" in items:
            files["mask"] = "mask"
        if self.options["normals"] == "given":
            files["normals"] = "normals"
        missing = [item for item in files.values() if item not in items]
        for item in missing:
            lights = ", ".join(sorted(name.removeprefix("image_") for name in items if name.startswith("image_")))
            hint = f"this part has light {lights or 'none'}; choose one of them" if item == light else "copy it again"
            report(self._folder / f"{number}_{item}.{'yaml' if item == 'info_depth' else 'png'}", f"missing; {hint}")
        if missing:
            return None
        paths = {kind: items[item] for kind, item in files.items()}
        defect: str | None = "good"
        if test:
            masks = {kind: items[f"{kind}_mask"] for kind in _DEFECTS if f"{kind}_mask" in items}
            paths |= {f"{kind}_mask": path for kind, path in masks.items()}
            defect = _defect(paths["mask"], masks, report)
        return None if defect is None else Part(f"{_FOLDERS[self.split]}/data/{number}", defect, paths)

    def _note_empty_masks(self, parts: list[Part], numbered: Mapping[str, Mapping[str, Path]]) -> None:
        good = [part.name.rpartition("/")[2] for part in parts if part.defect == "good"]
        files = [numbered[number]["metadata"] for number in good if "metadata" in numbered[number]]
        count = sum(_called_anomalous(path) for path in files) if self.split.startswith("test") else 0
        if count:
            self.notes.append(f"{count} parts that the data set calls anomalous have an empty mask and count as good")

    def decode(self, kind: str, path: Path) -> Any:
        if kind == "depth_range":
            return read_depth_range(path)
        return super().decode("mask" if kind.endswith("_mask") else kind, path)

    def assemble(self, part: Part, arrays: Mapping[str, Any]) -> Sample:
        frames = {kind: array for kind, array in arrays.items() if kind != "depth_range"}
        check_same_size(frames, part.files)
        mask = arrays.get("mask", np.zeros(arrays["rgb"].shape[:2], dtype=bool))
        check_good(part, mask)
        low, high = arrays["depth_range"]
        height, width = arrays["depth"].shape
        focal = _FOCAL * width / _SIDE
        camera = Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2)
        xyz = xyz_from_depth(arrays["depth"] / _LEVELS * (high - low) + low, camera)
        if np.isnan(xyz).all():
            raise DataError(f"{part.files['depth']}: holds no valid depth; copy the file again")
        return Sample(
            rgb=arrays["rgb"],
            xyz=xyz,
            mask=mask,
            label=self._label(part),
            defect=part.defect,
            name=part.name,
            normals=face_camera(arrays["normals"], xyz) if "normals" in arrays else None,
            path=part.files["rgb"],
        )


def read_depth_range(path: PathLike) -> tuple[float, float]:
    """The depths in metres that the numbers 0 and 65535 of a depth image stand for, from its info_depth.yaml.

    Raises:
        DataError: if the file isn't a `normalization:` with one `min:` below one `max:`, neither below 0.
    """
    check_file(path)
    if os.path.getsize(path) > _MAX_TEXT:
        raise DataError(f"{path}: is larger than {_MAX_TEXT} bytes, which no file of its kind is; copy it again")
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line.partition("#")[0].rstrip() for line in lines if line.partition("#")[0].strip()]
    start = lines.index("normalization:") + 1 if lines.count("normalization:") == 1 else len(lines)
    block = itertools.takewhile(lambda line: line[0] in " \t", lines[start:])
    found = [tuple(word.strip() for word in line.split(":", 1)) for line in block]
    try:
        low, high = (float(number) for _, number in sorted(found, reverse=True))
    except ValueError:
        low, high = math.nan, math.nan
    if sorted(name for name, *_ in found) != ["max", "min"] or not 0 <= low < high < math.inf:
        raise DataError(f"{path}: expected normalization: with one min: below one max:, in metres; copy the file again")
    return low, high


def _defect(mask: Path, kinds: Mapping[str, Path], report: Report) -> str | None:
    """Which kinds of defect a part has, or "good"; None and a report where a mask cannot be read."""
    marked = {}
    for name, path in {"": mask, **kinds}.items():
        try:
            marked[name] = read_mask(path).any()
        except DataError as error:
            report(path, str(error).removeprefix(f"{path}: "))
            return None
        if not marked[""]:
            return "good"
    return "+".join(kind for kind in kinds if marked[kind]) or "defect"


def _called_anomalous(metadata: Path) -> bool:
    try:
        return re.search(rb"^anomalous:\s*1\s*$", metadata.read_bytes()[:_MAX_TEXT], re.MULTILINE) is not None
    except OSError:  # nothing is read from this file but a figure for a note
        return False
