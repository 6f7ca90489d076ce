"""A user's own files, wherever they lie, as a small protoad.toml says."""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from protoad.data._decode import check_file
from protoad.data.camera import Intrinsics
from protoad.data.clouds import lay_on_grid
from protoad.data.dataset import (
    Dataset,
    MissingSplitError,
    Part,
    Report,
    add_file,
    check_good,
    folders,
    listed,
    match,
    metres,
    to_number,
)
from protoad.data.files import PathLike, read_mask, read_normals, read_rgb
from protoad.data.grid import face_camera, share_grid
from protoad.data.points import read_depth_points, read_points
from protoad.data.sample import Sample
from protoad.errors import ConfigError, DataError

__all__ = ["CONFIG_NAME", "TEMPLATE", "Folder"]

CONFIG_NAME = "protoad.toml"
"""The file that declares a folder."""

TEMPLATE = """\
unit = "mm"                         # of depths and points: "m" (the default), "mm", or metres per unit, 1e-4
camera = "camera.json"              # for depth images: a JSON file with fx, fy, cx, cy in pixels, or the numbers:
# camera = { fx = 552.5, fy = 552.5, cx = 255.5, cy = 191.75 }

[train]                             # good parts to learn from
rgb = "good/*_color.png"            # colour or grey; what "*" stands for names the part
depth = "good/*_depth.png"          # 16-bit PNG, TIFF or .npy; instead: xyz = "good/*.tiff", .ply or .pcd

[test.good]                         # to measure: a table for good parts, and one for each kind of defect
rgb = "test/ok/*_color.png"
depth = "test/ok/*_depth.png"

[test.scratch]
rgb = "test/scratch/*_color.png"
depth = "test/scratch/*_depth.png"
mask = "test/scratch/*_mask.png"    # may be left out for all kinds: then images are measured, not pixels
"""
"""An example of protoad.toml."""

_KINDS = ("rgb", "xyz", "depth", "mask", "normals")
_SPLITS = ("train", "validation", "test")
_SETTINGS = ("unit", "camera", *_SPLITS)
_CAMERA = ("fx", "fy", "cx", "cy")
_UNSORTED = "unsorted"
_MAX_TEXT = 1_000_000  # bytes


class Folder(Dataset):
    """A user's own files, declared by a protoad.toml such as `TEMPLATE`.

    It lies in the root, whose name is then the only category, or in folders of the root, which are the categories then.
    Files are matched by what the "*" of their patterns stands for. Colour, depth and mask may differ in size, not in
    the shape of the frame: all go to the coarser grid. A table `[test]` without kinds is for parts that nobody sorted:
    with masks, one that isn't empty makes a defect; without, there is nothing to measure, only to inspect.

    Options: `config`, the path of the TOML file if it lies elsewhere. Any other is an entry of that file, instead of it
    or over it, its tables joined by dots: `**{"train.rgb": "good/*.png", "unit": "mm"}`.
    """

    title = "folder"

    @classmethod
    def categories(cls, root: PathLike, **options: object) -> list[str]:
        root = Path(root)
        if not os.path.isdir(root):
            raise DataError(f"{root}: no such folder; give the folder that holds {CONFIG_NAME}")
        if _is_declared(root, options):
            return [Path(os.path.abspath(root)).name]
        found = [path.name for path in folders(root) if os.path.isfile(path / CONFIG_NAME)]
        if not found:
            raise DataError(
                f"{root}: no {CONFIG_NAME} there or one folder below, which says where files are; docs/data.md has one"
            )
        return found

    @classmethod
    def _checked(cls, options: Mapping[str, object]) -> dict[str, Any]:
        return {name: str(value) for name, value in options.items()}

    def _find(self, report: Report) -> list[Part]:
        self._base = self.root if _is_declared(self.root, self.options) else self.root / self.category
        self._config, place = _load_config(self._base, self.options)
        tables = _tables(self._config, place, self.split)
        self.unit = _unit(self._config.get("unit", "m"), place)
        self._shared = {"config": place} if os.path.isfile(place) else {}
        if any("depth" in table for table in tables.values()):
            self._read_camera(place)
        parts = [part for defect, table in tables.items() for part in self._find_kind(defect, table, report)]
        self._judge_masks(tables, place)
        return sorted(parts, key=lambda part: part.name)

    def _read_camera(self, place: Path) -> None:
        camera = self._config.get("camera")
        if isinstance(camera, str):
            place = self._base / camera
            self._shared["camera"], camera = place, _read_json(place)
        self.camera = _intrinsics(camera, place)

    def _judge_masks(self, tables: Mapping[str, Mapping[str, str]], place: Path) -> None:
        defective = {"mask" in table for defect, table in tables.items() if defect != "good"}
        if len(defective) == 2:
            raise DataError(
                f"{place}: some kinds in [{self.split}] have masks and some none; give all of them, or none"
            )
        self.labelled = "" not in tables or defective == {True}
        if not self.labelled:
            self.notes.append("nobody sorted these parts, and they have no masks: for inspection only")
        elif defective == {False}:
            self.notes.append("its defects have no masks: images can be measured, pixels cannot")

    def _find_kind(self, defect: str, table: Mapping[str, str], report: Report) -> list[Part]:
        found = {kind: _matching(self._base, table[kind], report) for kind in _KINDS if kind in table}
        parts = []
        for name, files in match(found, table, report).items():
            kind: str | None = defect
            if not defect:
                kind = _sort(files["mask"], report) if "mask" in files else _UNSORTED
            if kind is not None:
                parts.append(Part("/".join(filter(None, (self.split, defect, name))), kind, {**files, **self._shared}))
        return parts

    def decode(self, kind: str, path: Path) -> Any:
        if kind == "rgb":
            return read_rgb(path, grey=True)
        if kind == "depth" and self.camera is not None:
            return read_depth_points(path, self.camera, unit=self.unit)
        if kind == "xyz":
            return read_points(path, unit=self.unit)
        readers = {"mask": read_mask, "normals": read_normals}
        return readers[kind](path) if kind in readers else None  # the rest was read with the list

    def assemble(self, part: Part, arrays: Mapping[str, Any]) -> Sample:
        source = "depth" if "depth" in arrays else "xyz"
        files = {**part.files, "xyz": part.files[source]}
        xyz = lay_on_grid(files["xyz"], arrays[source], arrays["rgb"].shape[:2])
        mask = arrays.get("mask", np.zeros(arrays["rgb"].shape[:2], dtype=bool))
        check_good(part, mask)
        given = {"normals": arrays["normals"]} if "normals" in arrays else {}
        frames = share_grid({"rgb": arrays["rgb"], "xyz": xyz, "mask": mask, **given}, files)
        return Sample(
            rgb=frames["rgb"],
            xyz=frames["xyz"],
            mask=frames["mask"],
            label=self._label(part),
            defect=part.defect,
            name=part.name,
            normals=face_camera(frames["normals"], frames["xyz"]) if given else None,
            path=part.files["rgb"],
        )


def _is_declared(root: Path, options: Mapping[str, object]) -> bool:
    """Whether the files of this very folder are declared, rather than those of folders in it."""
    return os.path.isfile(root / CONFIG_NAME) or any(name.split(".")[0] in ("config", *_SPLITS) for name in options)


def _sort(mask: Path, report: Report) -> str | None:
    """What a mask says about its part; None and a report if it cannot be read."""
    try:
        return "defect" if read_mask(mask).any() else "good"
    except DataError as error:
        report(mask, str(error).removeprefix(f"{mask}: "))
        return None


def _load_config(base: Path, options: Mapping[str, str]) -> tuple[dict[str, Any], Path]:
    """The entries of the TOML file with those of the options over them, and where they come from."""
    place, config = Path(options.get("config", base / CONFIG_NAME)), {}
    if "config" in options or os.path.isfile(place):
        config = _read_toml(place)
    else:
        place = base
    for name, value in options.items():
        *tables, key = name.split(".")
        inner: Any = config
        for table in tables:
            inner = inner.setdefault(table, {}) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or isinstance(inner.get(key), dict):
            raise DataError(f"{place}: option {name} stands where the file has something else; give one of them")
        if name != "config":
            inner[key] = value
    _check_names(config, _SETTINGS, place, "entry")
    return config, place


def _tables(config: Mapping[str, Any], place: Path, split: str) -> dict[str, dict[str, str]]:
    """Kind of defect -> kind of file -> pattern; "" for parts that nobody sorted."""
    table = config.get(split)
    if table is None:
        raise MissingSplitError(f"{place}: has no table [{split}]; the category lacks its {split} split")
    if not isinstance(table, dict):
        raise DataError(f"{place}: [{split}] is {table!r}, expected a table of patterns")
    if all(isinstance(value, dict) for value in table.values()) and table:
        kinds = table
    else:
        kinds = {"" if split == "test" else "good": table}
    for kind, patterns in kinds.items():
        where = f"[{split}.{kind}]" if kinds is table else f"[{split}]"
        _check_names(patterns, _KINDS, place, f"kind of file in {where}")
        if "rgb" not in patterns or ("xyz" in patterns) == ("depth" in patterns):
            raise DataError(f"{place}: {where} has {', '.join(patterns) or 'nothing'}; expected rgb, and xyz or depth")
        for name, pattern in patterns.items():
            _check_pattern(pattern, place, f"{where} {name}")
    return kinds


def _check_names(found: Mapping[str, Any], known: tuple[str, ...], place: Path, what: str) -> None:
    for name in found:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise DataError(f"{place}: unknown {what}: {name}; expected some of {', '.join(known)}{hint}")


def _check_pattern(pattern: Any, place: Path, where: str) -> None:
    if not isinstance(pattern, str) or pattern.count("*") != 1:
        raise DataError(f"{place}: {where} is {pattern!r}, expected a path with one *, which names the part")
    if Path(pattern).is_absolute() or PurePosixPath(pattern).is_absolute():
        raise DataError(
            f"{place}: {where} is {pattern!r}, expected a path below the folder, not from the top of the disk"
        )


def _matching(base: Path, pattern: str, report: Report) -> dict[str, Path]:
    """What "*" stands for -> file. Case of letters doesn't matter, hidden entries don't count."""
    parts = PurePosixPath(pattern.replace("\\", "/")).parts
    place = next(i for i, part in enumerate(parts) if "*" in part)
    folder = base.joinpath(*parts[:place])
    files: dict[str, Path] = {}
    for entry, name in _stars(folder, parts[place]):
        path = folder.joinpath(entry, *parts[place + 1 :])
        if os.path.isfile(path):
            add_file(files, name, path, report)
    if not files:
        report(
            folder,
            f"no file there matches {pattern!r}; check the pattern" if os.path.isdir(folder) else "no such folder",
        )
    return files


def _stars(folder: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """Entries of a folder that match, and what "*" stands for in each."""
    before, after = pattern.split("*")
    regex = re.compile(f"{re.escape(before)}(.+){re.escape(after)}", re.IGNORECASE | re.DOTALL)
    for entry in listed(folder) if os.path.isdir(folder) else ():
        matched = regex.fullmatch(entry)
        if matched and not entry.startswith("."):
            yield entry, matched[1]


def _unit(unit: Any, place: Path) -> float:
    try:
        return metres(unit)
    except ConfigError as error:
        raise DataError(f"{place}: {error}") from None


def _intrinsics(camera: Any, place: Path) -> Intrinsics:
    """A camera's numbers; some files put a _ before the names."""
    told = {str(name).lstrip("_").lower(): value for name, value in camera.items()} if isinstance(camera, dict) else {}
    fx, fy, cx, cy = (to_number(told.get(name)) for name in _CAMERA)
    if not all(map(math.isfinite, (fx, fy, cx, cy))) or min(fx, fy) <= 0:
        raise DataError(
            f"{place}: depth images need a camera with {', '.join(_CAMERA)} in pixels, or the path of a JSON file"
        )
    size = (to_number(told.get("height")), to_number(told.get("width")))
    return Intrinsics(fx, fy, cx, cy, (int(size[0]), int(size[1])) if all(map(math.isfinite, size)) else None)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a TOML file ({error}); mind quotes and brackets") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error}); expected {', '.join(_CAMERA)} by name") from error


def _text(path: Path) -> str:
    check_file(path)
    if path.stat().st_size > _MAX_TEXT:
        raise DataError(f"{path}: is larger than {_MAX_TEXT} bytes; expected a small text file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
