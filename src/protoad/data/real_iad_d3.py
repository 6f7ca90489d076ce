"""Real-IAD D3 (Zhu et al., CVPR 2025), as published or in the folders its authors' code reads.

As published, ROOT/realiad_d3_jsons/CATEGORY.json lists the files of each part, below ROOT/realiad_d3_raw/CATEGORY/, to
be unpacked first. The other layout is ROOT/CATEGORY/SPLIT/KIND/ with rgb/PART/*L05*RGB*.jpg (or rgb/PART.png),
xyz/PART.tiff, ps/PART.jpg, and gt/rgb/PART.png or gt/PART.png, where KIND is GOOD, good or a kind of defect.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from protoad.data._decode import check_file
from protoad.data.dataset import (
    MASK_SUFFIXES,
    RGB_SUFFIXES,
    XYZ_SUFFIXES,
    Dataset,
    DataWarning,
    MissingSplitError,
    Part,
    Report,
    add_file,
    by_stem,
    check_good,
    folders,
    listed,
    match,
    refuse,
)
from protoad.data.files import PathLike, read_normals
from protoad.data.grid import face_camera, share_grid
from protoad.data.sample import Sample
from protoad.errors import DataError

__all__ = ["RealIADD3"]

_LISTS, _RAW = "realiad_d3_jsons", "realiad_d3_raw"
_FIELDS = {"rgb": "image_path", "xyz": "xyz_path", "normals": "ps_path", "mask": "mask_path"}
_LIGHT = re.compile(r".*L05.*RGB.*\.(jpg|jpeg|png)", re.IGNORECASE)  # of several per part, the one its authors use
_GOOD = ("good", "ok")
_SIMILAR = 0.8
_MAX_LIST = 50_000_000  # bytes


class RealIADD3(Dataset):
    """Real-IAD D3.

    Files are matched by name, never by their place in a sorted list. Where colour image and cloud differ in size, both
    go to the coarser grid. Categories are found under other spellings too: papers have several.

    Options: `normals` is "xyz" (the default), computed from the point cloud, or "ps", taken from the photometric-stereo
    picture. The data set's documentation doesn't say what that picture holds; we read it as the usual colour-coded
    normal map, n * 127.5 + 127.5 with x right, y up and z towards the viewer. `unit` is that of the clouds, "m" or
    "mm": it isn't documented either, and a warning tells when "m" cannot be.
    """

    title = "Real-IAD D3"
    choices: ClassVar = {"normals": ("xyz", "ps"), "unit": ("m", "mm")}
    expected = f"the layout is ROOT/{_LISTS} and ROOT/{_RAW}, or ROOT/CATEGORY/train/GOOD/rgb, xyz, ps"

    @classmethod
    def categories(cls, root: PathLike, **options: object) -> list[str]:
        root = Path(root)
        if not os.path.isdir(root):
            raise DataError(f"{root}: no such folder; give the folder that holds the categories, or {_LISTS}")
        if os.path.isdir(root / _LISTS):
            return sorted(by_stem(root / _LISTS, (".json",), refuse))
        if os.path.isdir(root / "train") or os.path.isdir(root / "test"):
            raise DataError(f"{root}: is a category itself; give the folder above it as root: {root.parent}")
        return [path.name for path in folders(root) if os.path.isdir(path / "train") or os.path.isdir(path / "test")]

    @classmethod
    def find_category(cls, root: PathLike, category: str, **options: object) -> str:
        """The folder a name means: papers write knob_zap for knob-cap."""
        found = cls.categories(root)
        plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in found}
        asked = re.sub(r"[^a-z0-9]", "", category.lower())
        if category in found or asked in plain:
            return category if category in found else plain[asked]
        close = [name for key, name in plain.items() if SequenceMatcher(None, asked, key).ratio() > _SIMILAR]
        if len(close) != 1:
            return super().find_category(root, category)
        warnings.warn(f"{root}: takes {close[0]!r} for {category!r}", DataWarning, stacklevel=3)
        return close[0]

    def _find(self, report: Report) -> list[Part]:
        if os.path.isdir(self.root / _LISTS):
            return self._find_listed(report)
        if not os.path.isdir(self._folder):
            raise MissingSplitError(f"{self._folder}: no such folder; the category lacks its {self.split} split")
        return [part for kind in folders(self._folder) for part in self._find_kind(kind, report)]

    def _find_kind(self, folder: Path, report: Report) -> list[Part]:
        defect = "good" if folder.name.lower() in _GOOD else folder.name
        places = {"rgb": folder / "rgb", "xyz": folder / "xyz"}
        found = {"rgb": _colour(folder / "rgb", report), "xyz": by_stem(folder / "xyz", XYZ_SUFFIXES, report)}
        if self.options["normals"] == "ps":
            places["normals"] = folder / "ps"
            found["normals"] = by_stem(folder / "ps", RGB_SUFFIXES, report)
        masks = next((path for path in (folder / "gt" / "rgb", folder / "gt") if os.path.isdir(path)), folder / "gt")
        if defect != "good" or os.path.isdir(masks):
            places["mask"] = masks
            found["mask"] = by_stem(masks, MASK_SUFFIXES, report)
        parts = match(found, places, report, optional=("mask",) if defect == "good" else ())
        return [Part(f"{self.split}/{folder.name}/{name}", defect, files) for name, files in parts.items()]

    def _find_listed(self, report: Report) -> list[Part]:
        path = self.root / _LISTS / f"{self.category}.json"
        raw = self.root / _RAW / self.category
        if not os.path.isdir(raw):
            archive = raw.with_name(f"{raw.name}.zip")
            hint = f"unpack {archive.name} beside it" if os.path.isfile(archive) else "download and unpack it"
            report(raw, f"no such folder; {hint}")
            return []
        parts: dict[str, Part] = {}
        for entry in _entries(path, self.split):
            part = self._listed_part(path, raw, entry, report)
            if part is not None and part.name in parts:
                report(path, f"lists {part.files['rgb']} twice in {self.split}; keep one of them")
            elif part is not None:
                parts[part.name] = part
        return [parts[name] for name in sorted(parts)]

    def _listed_part(self, path: Path, raw: Path, entry: Mapping[str, Any], report: Report) -> Part | None:
        kind = str(entry.get("anomaly_class") or "")
        defect = "good" if kind.lower() in _GOOD else kind
        needed = {"rgb", "xyz"} | ({"normals"} if self.options["normals"] == "ps" else set())
        needed |= {"mask"} if defect != "good" else set()
        files = {}
        for name in sorted(needed):
            told = entry.get(_FIELDS[name])
            if not isinstance(told, str) or not told or not kind:
                report(
                    path, f"an entry of {self.split} lacks {_FIELDS[name] if kind else 'anomaly_class'}: {entry!r:.200}"
                )
                return None
            inside = PurePosixPath(told.replace("\\", "/"))
            if inside.is_absolute() or not inside.parts or ".." in inside.parts or ":" in inside.parts[0]:
                report(path, f"lists {told}, which leaves {raw}; expected a path below it")
                return None
            files[name] = raw / inside
            if not os.path.isfile(files[name]):
                report(files[name], f"no such file, though {path} lists it in {self.split}; copy it again")
                return None
        stem = files["rgb"].relative_to(raw).with_suffix("").as_posix()
        return Part(f"{self.split}/{stem}", defect, {"rgb": files.pop("rgb"), **files})

    def decode(self, kind: str, path: Path) -> Any:
        return read_normals(path) if kind == "normals" else super().decode(kind, path)

    def assemble(self, part: Part, arrays: Mapping[str, Any]) -> Sample:
        mask = arrays.get("mask", np.zeros(arrays["rgb"].shape[:2], dtype=bool))
        check_good(part, mask)
        frames = share_grid({**arrays, "mask": mask}, part.files)
        xyz = frames["xyz"] * self.unit
        return Sample(
            rgb=frames["rgb"],
            xyz=xyz,
            mask=frames["mask"],
            label=self._label(part),
            defect=part.defect,
            name=part.name,
            normals=face_camera(frames["normals"], xyz) if "normals" in frames else None,
            path=part.files["rgb"],
        )


def _colour(folder: Path, report: Report) -> dict[str, Path]:
    """Part -> its colour image: the one under light L05 in a folder of several, or the file itself."""
    if not os.path.isdir(folder) or not folders(folder):
        return by_stem(folder, RGB_SUFFIXES, report)
    files: dict[str, Path] = {}
    for part in folders(folder):
        lit = [name for name in listed(part) if _LIGHT.fullmatch(name) and not name.startswith(".")]
        if len(lit) == 1:
            add_file(files, part.name, part / lit[0], report)
        else:
            report(part, f"holds {len(lit)} images named *L05*RGB*.jpg, expected one; copy the folder again")
    return files


def _entries(path: Path, split: str) -> list[Mapping[str, Any]]:
    """What a list of the data set says about a split."""
    check_file(path)
    if path.stat().st_size > _MAX_LIST:
        raise DataError(f"{path}: is larger than {_MAX_LIST} bytes, which no list is; copy it again")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))[split]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: holds no list of {split} parts ({type(error).__name__}); copy it again") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path}: holds no list of {split} parts; copy it again")
    return entries
