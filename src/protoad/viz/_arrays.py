"""Arrays and tensors as the figures take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from protoad.errors import DataError, ShapeError

__all__ = ["as_array", "as_flags", "as_plan", "check_axis"]


def as_array(name: str, value: Any, axes: str) -> np.ndarray:
    """Gives the value in float64.

    Args:
        name: of the argument.
        value: array or tensor, on any device.
        axes: letters of its axes, such as "n d".

    Raises:
        ShapeError: for another number of axes, or an axis of length 0.
        DataError: for NaN or infinity.
    """
    if isinstance(value, Tensor):
        value = value.detach().to("cpu", torch.float64).numpy()
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != len(axes.split()) or array.size == 0:
        raise ShapeError(f"{name}: expected ({axes}), none of them 0, got {array.shape}")
    if not np.isfinite(array).all():
        raise DataError(f"{name}: expected finite numbers, got NaN or infinity among them")
    return array


def as_flags(name: str, value: Any, length: int) -> np.ndarray:
    """Gives (n) bool of flags, or of labels 0 and 1.

    Raises:
        ShapeError: for another length.
        DataError: for anything but 0 and 1.
    """
    array = as_array(name, value, "n")
    check_axis(name, array, 0, length)
    if not np.isin(array, (0, 1)).all():
        raise DataError(f"{name}: expected 0 or 1 for each, got {np.unique(array)[:5].tolist()}")
    return array.astype(bool)


def as_plan(name: str, value: Any) -> np.ndarray:
    """Gives (n k) of a plan (n k) or (b n k); a row of zeros is that of a masked token.

    Raises:
        ShapeError: for other axes.
        DataError: for negative or infinite shares, or no mass at all.
    """
    array = as_array(name, value, "n k" if np.ndim(value) < 3 else "b n k")
    if array.min() < 0 or array.max() == 0:
        raise DataError(f"{name}: expected shares of 0 or more, not all 0, got {array.min():g} to {array.max():g}")
    return array.reshape(-1, array.shape[-1])


def check_axis(name: str, array: np.ndarray, axis: int, length: int) -> None:
    """Fails if an axis has another length.

    Raises:
        ShapeError: naming both.
    """
    if array.shape[axis] != length:
        raise ShapeError(f"{name}: expected {length} along axis {axis} as the others have, got {array.shape}")
