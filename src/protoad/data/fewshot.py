"""Choosing the few good parts a detector learns from."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from protoad.errors import DataError

__all__ = ["select_shots"]


def select_shots(names: Sequence[str], shots: int | None, *, seed: int) -> list[int]:
    """Positions of the good training parts to learn from, drawn at random.

    The draw depends on the set of names, not on their order, and is nested: with one seed, five shots are
    among the ten.

    Args:
        names: of the good training parts, such as the `names` of a data set's "train" split.
        shots: how many; None takes all.
        seed: of the draw.

    Returns:
        Sorted indices into `names`.

    Raises:
        DataError: if there are fewer parts than asked for, or `shots` is below 1.

    Examples:
        >>> names = [f"train/good/{i:03d}" for i in range(10)]
        >>> len(select_shots(names, 5, seed=0))
        5
    """
    if shots is None:
        shots = max(len(names), 1)
    if shots < 1:
        raise DataError(f"asked for {shots} shots, expected 1 or more")
    if shots > len(names):
        raise DataError(
            f"asked for {shots} shots, found {len(names)} good training parts in {_folder(names)}; "
            "ask for fewer or add parts"
        )
    in_order = sorted(range(len(names)), key=lambda i: names[i])
    drawn = np.random.default_rng(seed).permutation(len(names))[:shots]
    return sorted(in_order[i] for i in drawn)


def _folder(names: Sequence[str]) -> str:
    folders = sorted({os.path.dirname(name) for name in names})
    return ", ".join(folder for folder in folders if folder) or "the list given"
