"""What all data sets have in common: parts found on disk, decoded when asked for."""

from __future__ import annotations

import math
import operator
import os
import unicodedata
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, overload

import numpy as np

from protoad.data.camera import Intrinsics
from protoad.data.files import PathLike, read_depth, read_mask, read_normals, read_rgb, read_xyz
from protoad.data.sample import Sample
from protoad.errors import ConfigError, DataError

__all__ = [
    "DataWarning",
    "Dataset",
    "MissingSplitError",
    "Part",
    "Report",
    "by_stem",
    "check_same_size",
    "folders",
    "match",
    "metres",
    "refuse",
    "suspect_millimetres",
    "to_number",
]

RGB_SUFFIXES = (".png", ".jpg", ".jpeg")
XYZ_SUFFIXES = (".tiff", ".tif")
MASK_SUFFIXES = (".png",)

_FAR = 10.0  # metres from the camera that no part is inspected at
_KINDS = {
    "rgb": "colour image",
    "xyz": "point cloud",
    "depth": "depth image",
    "normals": "normal map",
    "mask": "mask",
}


class MissingSplitError(DataError):
    """A category, or its data set, lacks a split: an error for who asks for it, and news for who asks what is there."""


class DataWarning(UserWarning):
    """Data that can be read but are hardly what was meant."""


class Part(NamedTuple):
    """One part on disk.

    Attributes:
        name: such as "test/good/000", relative to the category folder.
        defect: "good", or the kind of defect.
        files: kind of file ("rgb", "xyz", "mask", ...) -> where it is.
    """

    name: str
    defect: str
    files: dict[str, Path]


Report = Callable[[Path, str], None]
"""Called with a file or folder and what is wrong with it."""


def refuse(path: Path, reason: str) -> None:
    """The `Report` of those who want to use the data: the first problem is an error."""
    raise DataError(f"{path}: {reason}")


class Dataset(Sequence[Sample]):
    """The parts of one split of one category; files are decoded only when a part is asked for.

    Args:
        root: the folder that holds the categories.
        category: such as "cable_gland".
        split: "train", "validation" or "test".
        report: what to do about a folder or file that is missing or superfluous; the default raises. One that returns
            leaves the part out.
        options: see the class's `choices`.

    Attributes:
        parts: of the split, sorted.
        labelled: whether `labels` mean something.
        unit: of its point clouds and depth images, in metres.
        camera: that its depth images are seen by; None where there are points, or every part has a camera of its own.
        notes: what is worth knowing and not wrong.

    Raises:
        DataError: if a folder is missing or empty, the category or split is unknown, or a file lacks its
            partner; names it. Damaged files and sizes that differ show when the part is read.
        ConfigError: for an unknown option, or a value it doesn't have.
    """

    title: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Option -> its values, the default first."""
    expected: ClassVar[str] = "the layout is ROOT/CATEGORY/train/good/rgb/000.png and so on"

    def __init__(
        self, root: PathLike, category: str, split: str, *, report: Report = refuse, **options: object
    ) -> None:
        self.options = self._checked(options)
        self.unit = metres(self.options["unit"]) if "unit" in self.choices else 1.0
        self.camera: Intrinsics | None = None
        self.root, self.split = Path(root), split
        self.labelled, self.notes, self._warned = True, list[str](), False
        if split not in self.splits:
            raise MissingSplitError(
                f"unknown split {split!r}, expected one of {', '.join(self.splits)} in {self.title}"
            )
        self.category = self.find_category(self.root, category, **self.options)
        self.parts = self._find(report)
        if not self.parts and report is refuse:
            raise DataError(f"{self._folder}: holds no parts; {self.expected}")

    @classmethod
    @abstractmethod
    def categories(cls, root: PathLike, **options: object) -> list[str]:
        """Sorted names of the categories in `root`.

        Raises:
            DataError: if `root` isn't a folder, or is itself a category.
        """

    @abstractmethod
    def _find(self, report: Report) -> list[Part]:
        """The parts of the split."""

    @abstractmethod
    def assemble(self, part: Part, arrays: Mapping[str, Any]) -> Sample:
        """A part from its decoded files.

        Raises:
            DataError: where they contradict each other.
        """

    def decode(self, kind: str, path: Path) -> Any:
        """What one file of a part holds.

        Raises:
            DataError: if it cannot be read.
        """
        read: Callable[[Path], np.ndarray] = _READERS[kind]
        return read(path)

    @classmethod
    def find_category(cls, root: PathLike, category: str, **options: object) -> str:
        """The name of the category's folder.

        Raises:
            DataError: if there is none; lists those there are.
        """
        found = cls.categories(root, **options)
        if category not in found:
            listed = ", ".join(found) or f"none ({cls.expected})"
            raise DataError(f"{root}: has no category {category!r}; found: {listed}")
        return category

    @property
    def _folder(self) -> Path:
        return self.root / self.category / self.split

    @classmethod
    def _checked(cls, options: Mapping[str, object]) -> dict[str, Any]:
        """All options, those not given at their default."""
        chosen = {name: values[0] for name, values in cls.choices.items()}
        for name, value in options.items():
            if name not in chosen:
                known = ", ".join(f"{key}={'|'.join(values)}" for key, values in cls.choices.items()) or "none"
                raise ConfigError(f"{cls.title} has no option {name!r}; its options: {known}")
            if str(value) not in cls.choices[name]:
                raise ConfigError(f"option {name}: expected {' or '.join(cls.choices[name])}, got {value!r}")
            chosen[name] = str(value)
        return chosen

    @property
    def names(self) -> list[str]:
        """Such as "test/good/000", sorted by kind of defect and number."""
        return [part.name for part in self.parts]

    @property
    def defects(self) -> list[str]:
        """Kind of defect of each part, "good" if none."""
        return [part.defect for part in self.parts]

    @property
    def labels(self) -> list[int]:
        """0 good, 1 defective; all 0 where nothing is `labelled`."""
        return [self._label(part) for part in self.parts]

    def files(self, index: int) -> dict[str, Path]:
        """Kind of file -> path, for all files that one part is read from."""
        return dict(self.parts[index].files)

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self._load(part) for part in self.parts[index]]
        return self._load(self.parts[operator.index(index)])

    def __iter__(self) -> Iterator[Sample]:
        return (self._load(part) for part in self.parts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r}, {self.category!r}, {self.split!r}): {len(self)} parts"

    def _label(self, part: Part) -> int:
        return int(self.labelled and part.defect != "good")

    def _load(self, part: Part) -> Sample:
        sample = self.assemble(part, {kind: self.decode(kind, path) for kind, path in part.files.items()})
        suspicion = suspect_millimetres(sample.xyz)
        if suspicion is not None and not self._warned:
            self._warned = True  # the others of a data set are no news
            warnings.warn(f"{part.name} in {self.root}: {suspicion}", DataWarning, stacklevel=3)
        return sample


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    "rgb": read_rgb,
    "xyz": read_xyz,
    "depth": read_depth,
    "mask": read_mask,
    "normals": read_normals,
}


def suspect_millimetres(xyz: np.ndarray) -> str | None:
    """A sentence if the points (y x 3) are too far away for metres, else None. Nothing is converted."""
    few = xyz[:: max(1, xyz.shape[0] // 64), :: max(1, xyz.shape[1] // 64)].reshape(-1, 3).astype(np.float64)
    distance = np.linalg.norm(few, axis=-1)
    distance = distance[np.isfinite(distance)]
    if not distance.size or np.median(distance) < _FAR:
        return None
    return f"its points lie {np.median(distance):.4g} from the camera; if that is millimetres, give the option unit=mm"


def warn_of_millimetres(xyz: np.ndarray, path: PathLike) -> None:
    """Warns if the points (y x 3) of a file are too far away for metres."""
    suspicion = suspect_millimetres(xyz)
    if suspicion is not None:
        warnings.warn(f"{path}: {suspicion}", DataWarning, stacklevel=3)


def metres(unit: str | float) -> float:
    """How many metres a unit is: "m", "mm", or their number itself.

    Raises:
        ConfigError: for anything else.
    """
    value = {"m": 1.0, "mm": 0.001}[unit] if unit in ("m", "mm") else to_number(unit)
    if not 0 < value < math.inf:
        raise ConfigError(f'unit is {unit!r}, expected "m", "mm", or how many metres it is')
    return value


def to_number(value: Any) -> float:
    """A number, or one as text; NaN for anything else."""
    try:
        return math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def check_good(part: Part, mask: np.ndarray) -> None:
    """Raises a `DataError` if a good part has an outlined defect."""
    if part.defect == "good" and mask.any():
        raise DataError(f"{part.files['mask']}: outlines a defect, but its folder is for good parts; move the part")


def check_same_size(arrays: Mapping[str, np.ndarray], files: Mapping[str, PathLike]) -> None:
    """Raises a `DataError` if a frame is of another size than the colour image; names both files."""
    rgb = arrays["rgb"]
    for kind, array in arrays.items():
        if array.shape[:2] != rgb.shape[:2]:
            raise DataError(
                f"{files[kind]}: is {_size(array)} pixels, but {files['rgb']} is {_size(rgb)}; "
                "all files of a part must share one pixel grid"
            )


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"


def match(
    found: Mapping[str, Mapping[str, Path]],
    places: Mapping[str, Path | str],
    report: Report,
    *,
    optional: Sequence[str] = (),
) -> dict[str, dict[str, Path]]:
    """Parts by name, from their files: what has the same name belongs together, whatever its place in the list.

    Args:
        found: kind of file, the colour image first -> name -> file.
        places: kind -> where its files are, for messages.
        report: hears of every file without a partner.
        optional: kinds that a part may lack.

    Returns:
        Name -> kind -> file, sorted by name.
    """
    rgb = found["rgb"]
    for kind in list(found)[1:]:
        if kind not in optional:
            for name in sorted(rgb.keys() - found[kind].keys()):
                report(rgb[name], _orphan(kind, places))
        for name in sorted(found[kind].keys() - rgb.keys()):
            report(found[kind][name], _orphan("rgb", places))
    whole = [name for name in sorted(rgb) if all(name in found[kind] or kind in optional for kind in found)]
    return {name: {kind: files[name] for kind, files in found.items() if name in files} for name in whole}


def _orphan(kind: str, places: Mapping[str, Path | str]) -> str:
    return f"no {_KINDS[kind]} of the same name in {places[kind]}; add it or remove the orphan"


def by_stem(folder: Path, suffixes: tuple[str, ...], report: Report) -> dict[str, Path]:
    """Name without suffix -> file, for the files of a kind in a folder; hidden and foreign ones don't count."""
    if not os.path.isdir(folder):
        report(folder, f"no such folder; expected files ending in {' or '.join(suffixes)} there")
        return {}
    files: dict[str, Path] = {}
    for entry in listed(folder):
        path = folder / entry
        if not entry.startswith(".") and path.suffix.lower() in suffixes:
            add_file(files, path.stem, path, report)
    return files


def add_file(files: dict[str, Path], name: str, path: Path, report: Report) -> None:
    """Adds a file under its name, in one spelling of accented letters: file systems differ in theirs."""
    name = unicodedata.normalize("NFC", name)
    if name in files:
        report(path, f"{files[name].name} has the same name; keep one of them")
        return
    files[name] = path


def folders(folder: Path) -> list[Path]:
    """Sorted folders in a folder, without hidden ones."""
    return [folder / name for name in listed(folder) if os.path.isdir(folder / name) and not name.startswith(".")]


def listed(folder: Path) -> list[str]:
    """Sorted names in a folder.

    Raises:
        DataError: if it may not be looked into.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be looked into ({error.strerror}); check its permissions") from error
