"""One look for all figures, and the checks they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from protoad._lazy import require
from protoad.errors import DataError, ShapeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "ANOMALOUS",
    "COLORS",
    "DASHES",
    "GREY",
    "MARKERS",
    "NORMAL",
    "Array",
    "Look",
    "checked",
    "matching",
    "panels",
]

Array = np.ndarray | torch.Tensor


class Look(NamedTuple):
    """How one kind of thing is drawn everywhere: by colour, and by what is left of it in black and white."""

    color: str
    marker: str
    hatch: str
    dashes: str


# Okabe and Ito's orange and blue, the blue a shade darker: in grey they must differ as well.
NORMAL = Look("#00639C", "o", "", "-")
ANOMALOUS = Look("#E69F00", "^", "////", "--")
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", ":")
GREY = "0.55"
_PANEL = 3.4  # inches


def panels(count: int, *, shared: bool = False, width: float = _PANEL, height: float = _PANEL) -> tuple[Figure, Any]:
    """Gives a figure that no global state knows of, and its axes in a row, as a list."""
    figure: Figure = require("matplotlib.figure", extra="viz").Figure(
        figsize=(width * count, height), layout="constrained"
    )
    axes = figure.subplots(1, count, sharex=shared, sharey=shared, squeeze=False)[0].tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def checked(name: str, value: Array, shape: str) -> np.ndarray:
    """Gives a float64 array, such as of shape "n d".

    Raises:
        ShapeError: if it has another number of axes, or one of length 0.
        DataError: if a value is NaN or infinite.
    """
    array = value.detach().cpu().double().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.ndim != len(shape.split()) or not array.size:
        raise ShapeError(f"{name}: expected ({shape}), none of them 0, got {array.shape}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise DataError(f"{name}: expected finite values, got NaN or infinity")
    return array


def matching(name: str, given: Mapping[str, Array], shape: str) -> dict[str, np.ndarray]:
    """Gives several arrays of such a shape.

    Raises:
        ValueError: if there are none.
    """
    if not given:
        raise ValueError(f"{name}: expected at least one, got none")
    return {key: checked(f"{name}[{key!r}]", value, shape) for key, value in given.items()}
