"""A data set prepared once, on disk: one file per part, and a manifest per category that says how it was made.

CACHE/CATEGORY/manifest.json, and CACHE/CATEGORY/SPLIT/KIND/000.npz as the parts are named.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch

import protoad
from protoad._atomic import write_atomically
from protoad.data.camera import Intrinsics
from protoad.data.dataset import MissingSplitError, metres
from protoad.data.files import PathLike
from protoad.data.prepare import Prepared, PrepareSettings
from protoad.data.registry import Source
from protoad.errors import ConfigError, DataError

__all__ = [
    "MANIFEST",
    "RECIPE",
    "Manifest",
    "PreparedSet",
    "StoredPart",
    "check_manifest",
    "list_prepared",
    "part_path",
    "read_manifest",
    "read_part",
    "settings_entry",
    "write_manifest",
    "write_part",
]

MANIFEST = "manifest.json"

RECIPE = 1
"""One more whenever `prepare` gives something else or the files change: caches of another recipe are refused."""

_MASKS = ("valid", "foreground", "mask")
_AGAIN = "prepare the data set again: only what is missing is made"
_ELSEWHERE = "delete that folder, or prepare into another"


class StoredPart(NamedTuple):
    """What a file of the cache holds: the part, `Foreground.reason`, and the digest of what it was made from."""

    part: Prepared
    reason: str
    key: str


class Manifest(NamedTuple):
    """How a category was prepared.

    Attributes:
        source: data set it was read from, and options.
        unit: of the points in its files, in metres.
        camera: that its depth images are seen by, where there is one.
        settings: of `prepare`.
        splits: split -> a dict per part with name, defect, label, key, foreground, reason and error; none yet if
            the first run was cut short.
    """

    source: Source
    unit: float
    camera: Intrinsics | None
    settings: PrepareSettings
    splits: dict[str, list[dict[str, Any]]]


class PreparedSet(Sequence[Prepared]):
    """The prepared parts of one split of one category; a file is read only when its part is asked for.

    Args:
        root: the cache, as `prepare_dataset` wrote it.
        category: such as "cable_gland".
        split: "train", "validation" or "test".
        settings: what the parts must have been prepared with; None takes any.

    Raises:
        DataError: if the cache lacks the category or split, or was made with other settings. Parts that could not be
            prepared, and missing or damaged files, show when the part is read.
    """

    def __init__(self, root: PathLike, category: str, split: str, settings: PrepareSettings | None = None) -> None:
        self.root, self.category, self.split = Path(root), category, split
        self._folder = self.root / category
        manifest = read_manifest(self._folder)
        if manifest is None:
            raise DataError(f"{self._folder / MANIFEST}: no such file; {_AGAIN}")
        self.settings, self.source = manifest.settings, manifest.source
        self.unit, self.camera = manifest.unit, manifest.camera
        if settings is not None:
            spare = self.settings.points and not settings.points  # points that nobody asks for do no harm
            _check_settings(self._folder, replace(self.settings, points=False) if spare else self.settings, settings)
        if split not in manifest.splits:
            found = ", ".join(manifest.splits) or "none, it was interrupted"
            raise MissingSplitError(f"{self._folder}: has no prepared split {split!r}; found: {found}; {_AGAIN}")
        self._parts = manifest.splits[split]

    @property
    def names(self) -> list[str]:
        """As the data set names its parts, in its order."""
        return [part["name"] for part in self._parts]

    @property
    def defects(self) -> list[str]:
        """Kind of defect of each part, "good" if none."""
        return [part["defect"] for part in self._parts]

    @property
    def labels(self) -> list[int]:
        """0 good, 1 defective; all 0 where nothing is `labelled`."""
        return [part["label"] or 0 for part in self._parts]

    @property
    def labelled(self) -> bool:
        """Whether `labels` mean something."""
        return all(part["label"] is not None for part in self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Prepared: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prepared]: ...

    def __getitem__(self, index: int | slice) -> Prepared | list[Prepared]:
        if isinstance(index, slice):
            return [self._read(part) for part in self._parts[index]]
        return self._read(self._parts[operator.index(index)])

    def __iter__(self) -> Iterator[Prepared]:
        return (self._read(part) for part in self._parts)

    def _read(self, part: Mapping[str, Any]) -> Prepared:
        path = part_path(self.root, self.category, part["name"])
        if part["error"]:
            raise DataError(f"{path}: could not be prepared: {part['error']}; mend that, and {_AGAIN}")
        stored = read_part(path)
        if stored.key != part["key"]:
            raise DataError(f"{path}: is not the file that {MANIFEST} lists; {_AGAIN}")
        return stored.part

    def __repr__(self) -> str:
        return f"PreparedSet({str(self.root)!r}, {self.category!r}, {self.split!r}): {len(self)} parts"


def list_prepared(root: PathLike) -> list[str]:
    """Sorted names of the categories that a cache holds; none if the folder isn't a cache."""
    return sorted(path.parent.name for path in Path(root).glob(f"*/{MANIFEST}"))


def part_path(root: Path, category: str, name: str) -> Path:
    """Where the cache `root` keeps a part."""
    return root / category / f"{name}.npz"


def write_part(path: Path, stored: StoredPart) -> None:
    """Writes a part bit for bit: numbers as they are, points if it has them, and three masks as one bit each."""
    masks = np.packbits(np.stack([getattr(stored.part, name).numpy() for name in _MASKS]))
    rgb, normals = stored.part.rgb.numpy(), stored.part.normals.numpy()
    arrays: dict[str, Any] = {"rgb": rgb, "normals": normals, "masks": masks}
    if stored.part.xyz is not None:
        arrays["xyz"] = stored.part.xyz.numpy()
    arrays |= {"key": np.array(stored.key), "reason": np.array(stored.reason)}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, numpy would add a suffix to it
            np.savez(file, **arrays)

    write_atomically(path, write)


def read_part(path: Path) -> StoredPart:
    """Reads a file back; a flipped bit fails the archive's own checksum."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; {_AGAIN}")
    try:
        # opened here: numpy forgets to close a file that is no archive
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            rgb, normals = (torch.from_numpy(arrays[name]) for name in ("rgb", "normals"))
            shape = (len(_MASKS), *rgb.shape[1:])
            masks = np.unpackbits(arrays["masks"], count=int(np.prod(shape))).reshape(shape).astype(bool)
            xyz = torch.from_numpy(arrays["xyz"]) if "xyz" in arrays else None
            valid, foreground, mask = torch.from_numpy(masks)
            part = Prepared(rgb, normals, valid, foreground, mask, xyz)
            return StoredPart(part, str(arrays["reason"]), str(arrays["key"]))
    except Exception as error:  # zipfile, zlib and numpy each have their own errors for a damaged file
        raise DataError(f"{path}: damaged ({type(error).__name__}); {_AGAIN}") from error


def read_manifest(folder: Path) -> Manifest | None:
    """What a category's manifest says; None if there is none.

    Raises:
        DataError: if it is damaged, or of a version whose parts are not what `prepare` gives now.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        recipe = content["recipe"]
        if recipe == RECIPE:
            options = content["options"]
            return Manifest(
                Source.of(content["dataset"], options.items()),
                metres(content.get("unit", options.get("unit", "m"))),  # older ones say it in the options, if at all
                Intrinsics.of(content.get("camera")),
                PrepareSettings(**content["settings"]),
                content["splits"],
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise DataError(f"{path}: not a readable manifest ({type(error).__name__}); delete it, and {_AGAIN}") from error
    raise DataError(f"{path}: made by another version of protoad (recipe {recipe}, now {RECIPE}); {_ELSEWHERE}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes it, with the versions that made the parts."""
    content = {
        "recipe": RECIPE,
        "versions": {"protoad": protoad.__version__, "numpy": np.__version__, "torch": torch.__version__},
        "dataset": manifest.source.dataset,
        "options": dict(manifest.source.options),
        "unit": manifest.unit,
        "camera": manifest.camera,
        "settings": settings_entry(manifest.settings),
        "splits": manifest.splits,
    }
    text = json.dumps(content, indent=1)
    write_atomically(folder / MANIFEST, lambda temporary: temporary.write_text(text))


def settings_entry(settings: PrepareSettings) -> dict[str, Any]:
    """Settings as manifests and keys have them: points are named where they are kept, as in no cache before them."""
    entry = asdict(settings)
    return entry if settings.points else {name: value for name, value in entry.items() if name != "points"}


def check_manifest(folder: Path, source: Source, wanted: PrepareSettings) -> None:
    """Refuses to mix parts of two data sets or settings in one folder.

    Raises:
        DataError: names both.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    if manifest.source != source:
        raise DataError(f"{folder}: holds parts of {manifest.source}, not {source}; {_ELSEWHERE}")
    _check_settings(folder, manifest.settings, wanted)


def _check_settings(folder: Path, found: PrepareSettings, wanted: PrepareSettings) -> None:
    if found != wanted == replace(found, points=True):
        raise DataError(
            f"{folder}: was prepared without its points, at which an encoder is to look; prepare the data set with "
            f"points (--points), and for that {_ELSEWHERE}"
        )
    if found != wanted:
        raise DataError(
            f"{folder}: was prepared with {_in_words(found)}, asked for {_in_words(wanted)}; "
            f"give the same settings, or {_ELSEWHERE}"
        )


def _in_words(settings: PrepareSettings) -> str:
    kept = ", points kept" if settings.points else ""
    if not settings.foreground:
        return f"size {settings.size} and no search for the foreground{kept}"
    return f"size {settings.size} and plane distance {settings.plane_distance:g} m{kept}"
