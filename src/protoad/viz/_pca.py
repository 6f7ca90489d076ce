"""Principal components."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Plane", "principal_plane"]


class Plane(NamedTuple):
    """Where points are projected to.

    Attributes:
        centre: (d) mean of the points it was fitted to.
        axes: (2 d) unit vectors, the directions of the largest variance; their largest entries are positive.
        shares: (2) of the variance along each.
    """

    centre: np.ndarray
    axes: np.ndarray
    shares: np.ndarray

    def project(self, points: np.ndarray) -> np.ndarray:
        """Gives (n 2) of points (n d)."""
        projected: np.ndarray = (points - self.centre) @ self.axes.T
        return projected

    def labels(self) -> tuple[str, str]:
        """Says what the two axes are."""
        first, second = (f"component {i} ({share:.0%} of the variance)" for i, share in enumerate(self.shares, start=1))
        return first, second


def principal_plane(points: np.ndarray) -> Plane:
    """Gives the plane of the first two principal components of points (n d)."""
    centre = points.mean(0)
    _, lengths, axes = np.linalg.svd(points - centre, full_matrices=False)
    axes, variances = axes[:2], lengths**2
    if len(axes) < 2:  # a single point, or a single channel: the other direction is empty
        axes = np.concatenate([axes, np.zeros((2 - len(axes), points.shape[1]))])
        variances = np.append(variances, 0.0)
    largest = np.abs(axes).argmax(1)
    signs = np.where(axes[[0, 1], largest] < 0, -1.0, 1.0)  # an SVD leaves them open
    return Plane(centre, axes * signs[:, None], variances[:2] / max(variances.sum(), 1e-300))
