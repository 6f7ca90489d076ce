"""Data sets by name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple

from protoad.data.dataset import Dataset, MissingSplitError
from protoad.data.eyecandies import Eyecandies
from protoad.data.files import PathLike
from protoad.data.folder import Folder
from protoad.data.mvtec3d import ADAM3D, MVTec3D
from protoad.data.real_iad_d3 import RealIADD3
from protoad.errors import ConfigError

__all__ = ["DATASETS", "DEFAULT_SOURCE", "Source", "dataset_class", "list_categories", "open_dataset"]

DATASETS: dict[str, type[Dataset]] = {
    "mvtec3d": MVTec3D,
    "eyecandies": Eyecandies,
    "real-iad-d3": RealIADD3,
    "3d-adam": ADAM3D,
    "folder": Folder,
}
"""Name -> class."""


def open_dataset(name: str, root: PathLike, category: str, split: str, **options: Any) -> Dataset:
    """One split of one category of a data set.

    Args:
        name: one of `DATASETS`; case doesn't matter, nor "_" for "-".
        root: the folder that holds the categories.
        category: such as "cable_gland".
        split: "train", "validation" or "test".
        options: what else the data set's class takes, such as `light=0` or `normals="given"`.

    Raises:
        ConfigError: for an unknown name or option.
        DataError: for data that are missing or inconsistent.
    """
    return dataset_class(name)(root, category, split, **options)


def list_categories(root: PathLike, dataset: str = "mvtec3d", **options: object) -> list[str]:
    """Sorted names of the categories of a data set in `root`.

    Raises:
        ConfigError: for an unknown name.
        DataError: if `root` isn't a folder, or is itself a category.
    """
    return dataset_class(dataset).categories(root, **options)


def dataset_class(name: str) -> type[Dataset]:
    """The class that reads a data set.

    Raises:
        ConfigError: for an unknown name; suggests the closest.
    """
    return DATASETS[_canonical(name)]


def _canonical(name: str) -> str:
    plain = name.lower().replace("_", "-").strip()
    if plain not in DATASETS:
        close = get_close_matches(plain, DATASETS, n=1, cutoff=0.4)
        suggestion = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"unknown data set {name!r}, expected one of {', '.join(DATASETS)}{suggestion}")
    return plain


class Source(NamedTuple):
    """How parts are read: a data set's name and options. Kept with a detector, whose parts are all to be read alike."""

    dataset: str = "mvtec3d"
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, dataset: str, options: Iterable[tuple[str, str]] = ()) -> Source:
        """Gives the same for every spelling of the name and every order of the options, the last of a kind counting.

        Raises:
            ConfigError: for an unknown name.
        """
        return cls(_canonical(dataset), tuple(sorted(dict(options).items())))

    def categories(self, root: PathLike) -> list[str]:
        """Sorted names of the categories in `root`."""
        return list_categories(root, self.dataset, **dict(self.options))

    def open(self, root: PathLike, category: str, split: str) -> Dataset:
        """Gives one split of one category."""
        return open_dataset(self.dataset, root, category, split, **dict(self.options))

    def splits(self, root: PathLike, category: str) -> dict[str, Dataset]:
        """Gives the splits that a category has.

        Raises:
            DataError: if it has none, or one of them is inconsistent.
        """
        found: dict[str, Dataset] = {}
        for split in (known := dataset_class(self.dataset)).splits:
            try:
                found[split] = self.open(root, category, split)
            except MissingSplitError:
                continue
        return found or {known.splits[0]: self.open(root, category, known.splits[0])}  # raises what is wrong

    def __str__(self) -> str:
        return " ".join([self.dataset, *(f"{key}={value}" for key, value in self.options)])


DEFAULT_SOURCE = Source()
"""MVTec 3D-AD in metres: what is read where nothing else is said."""
