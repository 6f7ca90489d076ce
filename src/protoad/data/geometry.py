"""The one map from a frame of any shape to the square that a detector looks at, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from protoad.errors import DataError

__all__ = ["SquareMap"]


@dataclass(frozen=True)
class SquareMap:
    """Centres a frame in a square and resizes it: colour, vectors, points and masks all go through here.

    Output pixel i stands for the interval [i, i + 1) * side / size of the square, so pixel centres lie at + 0.5 on
    both sides of the map. What lies beside the frame is zero, False, or NaN.

    Args:
        height: of the frame, pixels.
        width: of the frame, pixels.
        size: side of the output, pixels.

    Raises:
        DataError: if one of them is below 1.
    """

    height: int
    width: int
    size: int

    def __post_init__(self) -> None:
        for name in ("height", "width", "size"):
            if getattr(self, name) < 1:
                raise DataError(f"{name}: expected 1 pixel or more, got {getattr(self, name)}")

    @property
    def side(self) -> int:
        """Of the square around the frame, source pixels."""
        return max(self.height, self.width)

    @property
    def corner(self) -> tuple[int, int]:
        """Where in the square the frame's top left pixel lies, (y x)."""
        return (self.side - self.height) // 2, (self.side - self.width) // 2

    def colour(self, image: np.ndarray) -> Tensor:
        """Colours (y x c) uint8 to (c size size) float32 in [0, 1], bicubic with antialiasing."""
        square = self._square(image).float() / 255
        return functional.interpolate(square, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)[0]

    def directions(self, vectors: np.ndarray) -> Tensor:
        """Unit vectors (y x 3), zero where unknown, to their mean directions (3 size size); zero where all are."""
        square = self._square(vectors)
        mean = functional.interpolate(square, (self.size, self.size), mode="bilinear", antialias=True)
        return functional.normalize(mean, dim=1, eps=1e-6)[0]

    def nearest(self, image: np.ndarray) -> np.ndarray:
        """Masks (y x) or points (y x 3) to (size size ..), each from the pixel at the interval's centre.

        Nothing is mixed: a point stays one the sensor saw, an invalid one stays invalid.
        """
        rows, columns = (self._source(corner) for corner in self.corner)
        inside_y, inside_x = (rows >= 0) & (rows < self.height), (columns >= 0) & (columns < self.width)
        picked = image[np.clip(rows, 0, self.height - 1)[:, None], np.clip(columns, 0, self.width - 1)]
        picked[~(inside_y[:, None] & inside_x)] = np.nan if image.dtype.kind == "f" else 0
        return picked

    def to_source(self, positions: np.ndarray) -> np.ndarray:
        """Positions (.. 2) as (y x) in the output to those in the frame, in pixels with centres at + 0.5."""
        return positions * (self.side / self.size) - np.asarray(self.corner)

    def from_source(self, positions: np.ndarray) -> np.ndarray:
        """The inverse of `to_source`."""
        return (positions + np.asarray(self.corner)) * (self.size / self.side)

    def restore(self, heatmap: Tensor) -> Tensor:
        """A heatmap (.. size size) laid back over the frame (.. height width), bilinear."""
        flat = heatmap.reshape(1, -1, self.size, self.size)
        square = functional.interpolate(flat, (self.side, self.side), mode="bilinear", antialias=True)
        top, left = self.corner
        frame = square[0, :, top : top + self.height, left : left + self.width]
        return frame.reshape(*heatmap.shape[:-2], self.height, self.width)

    def _source(self, corner: int) -> np.ndarray:
        """Rows or columns of the frame under the centres of the output's; whole numbers, so no machine rounds apart."""
        return (2 * np.arange(self.size) + 1) * self.side // (2 * self.size) - corner

    def _square(self, image: np.ndarray) -> Tensor:
        """(y x c) to (1 c side side), zeros on both sides of the shorter axis."""
        tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)))[None]
        top, left = self.corner
        right, bottom = self.side - self.width - left, self.side - self.height - top
        return functional.pad(tensor, (left, right, top, bottom))
