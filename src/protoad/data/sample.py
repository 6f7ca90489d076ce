"""One part as the camera saw it: colour, geometry, and what is known about its defects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protoad.errors import DataError

__all__ = ["Sample"]


@dataclass(frozen=True, eq=False)
class Sample:
    """A part with pixel-aligned colour and organised point cloud.

    Args:
        rgb: (y x 3) uint8.
        xyz: (y x 3) float32, metres, camera axes x right, y down, z away; NaN where the sensor saw nothing.
        mask: (y x) bool, True on the defect; all False when the part is good or nobody outlined it.
        label: 0 good, 1 defective.
        defect: "good", or the kind of defect, such as "bump".
        name: such as "test/good/000", relative to the category folder.
        normals: (y x 3) float32 unit normals in the axes of `xyz` that the data set brings itself, facing the camera,
            zero where unknown; None if they are to be computed from `xyz`.
        path: of the colour image, where there is one file.

    Raises:
        DataError: if an array has another shape or dtype; names the sample.
    """

    rgb: np.ndarray
    xyz: np.ndarray
    mask: np.ndarray
    label: int
    defect: str
    name: str
    normals: np.ndarray | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        size = self.rgb.shape[:2]
        expected: dict[str, tuple[tuple[int, ...], type]] = {
            "rgb": ((*size, 3), np.uint8),
            "xyz": ((*size, 3), np.float32),
            "mask": (size, np.bool_),
        }
        if self.normals is not None:
            expected["normals"] = ((*size, 3), np.float32)
        for field, (shape, dtype) in expected.items():
            array = getattr(self, field)
            if array.shape != shape or array.dtype != dtype:
                found = f"{array.dtype} {array.shape}"
                raise DataError(
                    f"{self.name}: {field} is {found}, expected {np.dtype(dtype)} {shape}; "
                    "colour, points and mask must share one pixel grid"
                )
