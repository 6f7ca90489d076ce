"""Fast point feature histograms of the point cloud: how normals turn around a point, whatever the view. No weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from protoad.encoders.base import Encoder, hash_tensors, parse_options
from protoad.errors import EncoderError, ShapeError

__all__ = ["FPFHEncoder", "point_feature_histograms"]

_BINS = 11
_MASS = 100.0  # of each of the three histograms, of a point alone and of those around it: 200 together
_ALONG_NORMAL = 1e-12  # squared sine between a step and a normal below which they span no frame
_CHUNK = 2048  # points at a time: a few MB for each of the quantities of their pairs
_REVISION = 1  # raised whenever the same points give other features


class FPFHEncoder(Encoder):
    """The geometry of BTF (Horwitz and Hoshen, 2023): FPFH of each point, averaged over each token's cell.

    A token whose cell holds no point is zero. All else of `point_feature_histograms` holds.

    Every pixel with a point counts, as published. The published radius is 0.25 m with at most 100 points: further than
    most parts reach, so it is the 100 nearest points that decide, some 11 pixels across. Both are the defaults here; a
    smaller radius keeps what lies behind an edge apart.

    Args:
        radius: within which a point's neighbours lie, metres.
        max_neighbors: the nearest of them that count, the point itself among them.
        stride: pixels from one token to the next.

    Raises:
        EncoderError: if an argument is out of range.
    """

    looks_at = "points"
    dim = 3 * _BINS

    def __init__(self, *, radius: float = 0.25, max_neighbors: int = 100, stride: int = 8) -> None:
        super().__init__()
        _check_reach(radius, max_neighbors)
        if not isinstance(stride, int) or stride < 1:
            raise EncoderError(f"fpfh: stride must be a whole number of pixels, 1 or more, got {stride!r}")
        self.radius, self.max_neighbors, self.stride = float(radius), max_neighbors, stride
        self.name = "fpfh"

    @classmethod
    def from_name(cls, name: str, *, stride: int | None = None) -> FPFHEncoder:
        """An encoder from `fpfh[,key=value...]`; a stride in the name goes before the one given.

        Raises:
            EncoderError: as the constructor, and if the name cannot be read.
        """
        given = parse_options(name.partition(",")[2], name)
        known = ("radius", "max_neighbors", "stride")
        unknown = sorted(given.keys() - set(known))
        if unknown:
            raise EncoderError(f"encoder {name!r}: unknown option {', '.join(unknown)}; there are {', '.join(known)}")
        if stride is not None:
            given.setdefault("stride", stride)
        encoder = cls(**given)
        encoder.name = name
        return encoder

    def forward(self, points: Tensor) -> Tensor:
        """Tokens `(b n 33)`, computed on the CPU and given back where the points are.

        Args:
            points: `(b 6 y x)`, three coordinates in metres, NaN where there is no point, and its unit normal, in the
                same axes.

        Raises:
            ShapeError: if `points` has another shape.
            EncoderError: if a side is not a multiple of the stride.
        """
        if points.ndim != 4 or points.shape[1] != 6 or not points.is_floating_point():
            raise ShapeError(f"points: expected floating point (b 6 y x), got {points.dtype} {tuple(points.shape)}")
        grid = self.grid(points.shape[2])[0], self.grid(points.shape[3])[1]
        tokens = [self._tokens(one, grid) for one in points.detach().double().cpu().numpy()]
        return torch.from_numpy(np.stack(tokens)).to(device=points.device, dtype=torch.float32)

    def _tokens(self, image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """Means (n 33) over cells of the grid, of the points of one image (6 y x)."""
        there = np.isfinite(image).all(0) & image[3:].any(0)
        points, normals = image[:3, there].T, image[3:, there].T
        histograms = point_feature_histograms(points, normals, radius=self.radius, max_neighbors=self.max_neighbors)
        rows, columns = (pixels // self.stride for pixels in there.nonzero())
        cells, count = rows * grid[1] + columns, grid[0] * grid[1]
        sums = np.stack([np.bincount(cells, weights=bin_, minlength=count) for bin_ in histograms.T], axis=1)
        return sums / np.bincount(cells, minlength=count).clip(1)[:, None]

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of everything that decides the output."""
        return hash_tensors(f"fpfh {_REVISION} {self.radius} {self.max_neighbors} {self.stride}", [])

    def extra_repr(self) -> str:
        return f"radius={self.radius}, max_neighbors={self.max_neighbors}, stride={self.stride}"


def point_feature_histograms(
    points: np.ndarray, normals: np.ndarray, *, radius: float, max_neighbors: int = 100
) -> np.ndarray:
    """Fast point feature histograms (Rusu et al., 2009) as Open3D defines them.

    A pair of points has three features that no rigid motion changes: angles of a frame at the one whose normal lies
    closer to the step between them (the source) with the other's normal and with the step. A point's simple histogram
    counts them over its neighbours, each in 11 bins; its fast one adds to that the neighbours' simple ones, weighted by
    the inverse squared distance. Each of the three parts sums to 100 from the point and 100 from those around.

    Args:
        points: (n 3) metres.
        normals: (n 3) of unit length; their signs count.
        radius: within which neighbours lie, metres.
        max_neighbors: the nearest of them that count, the point itself among them.

    Returns:
        (n 33) float64: the angle in the source's normal plane, the cosine off that plane, the cosine of normal and
        step; zeros for a point without neighbours.

    Raises:
        ShapeError: if points and normals do not belong together.
        EncoderError: if the radius is no length, or fewer than two points count.

    Examples:
        >>> import numpy as np
        >>> y, x = np.mgrid[:5, :5]
        >>> plane = np.stack([x, y, np.zeros((5, 5))], axis=-1).reshape(-1, 3)
        >>> histograms = point_feature_histograms(plane, np.tile([0.0, 0.0, 1.0], (25, 1)), radius=1.5)
        >>> np.flatnonzero(histograms[12]).tolist(), round(float(histograms[12].sum()))
        ([5, 16, 27], 600)
    """
    if points.ndim != 2 or points.shape[1] != 3 or normals.shape != points.shape:
        raise ShapeError(f"points, normals: expected (n 3) both, got {points.shape} and {normals.shape}")
    _check_reach(radius, max_neighbors)
    if not len(points):
        return np.zeros((0, 3 * _BINS))
    from scipy.sparse import csr_array

    points, normals = points.astype(np.float64), normals.astype(np.float64)
    simple, inverse, ends, starts = np.zeros((len(points), 3 * _BINS)), [], [], [np.zeros(1, dtype=np.int64)]
    for rows, pairs in _pairs(points, radius, max_neighbors):
        counts = np.bincount(pairs.row, minlength=rows.stop - rows.start)
        simple[rows] = _simple_histograms(pairs, rows, normals, counts)
        with np.errstate(divide="ignore"):
            inverse.append(np.where(pairs.distance > 0, pairs.distance**-2.0, 0.0))
        ends.append(pairs.end)
        starts.append(starts[-1][-1] + counts.cumsum())
    shape = (len(points), len(points))
    weights = csr_array((np.concatenate(inverse), np.concatenate(ends), np.concatenate(starts)), shape=shape)
    around = (weights @ simple).reshape(-1, 3, _BINS)
    mass = around.sum(-1, keepdims=True)
    around *= np.divide(_MASS, mass, out=np.zeros_like(mass), where=mass > 0)
    return simple + around.reshape(simple.shape)


class _Pairs(NamedTuple):
    """Points and their neighbours: row in the chunk (m), index of the neighbour (m), unit step (m 3), length (m)."""

    row: np.ndarray
    end: np.ndarray
    step: np.ndarray
    distance: np.ndarray


def _pairs(points: np.ndarray, radius: float, max_neighbors: int) -> Iterator[tuple[slice, _Pairs]]:
    from scipy.spatial import cKDTree

    tree, count = cKDTree(points), len(points)
    for start in range(0, count, _CHUNK):
        rows = slice(start, min(start + _CHUNK, count))
        # two at least, or the answer has another shape; what is missing gets the index `count`
        _, nearest = tree.query(points[rows], k=max(2, min(max_neighbors, count)), distance_upper_bound=radius)
        others = nearest[:, 1:]  # the first is the point itself
        row, column = (others < count).nonzero()
        end = others[row, column]
        step = points[end] - points[start + row]
        distance = np.sqrt(np.einsum("mi,mi->m", step, step))
        yield rows, _Pairs(row, end, step / distance.clip(np.finfo(float).tiny)[:, None], distance)


def _simple_histograms(pairs: _Pairs, rows: slice, normals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(chunk 33): the features of each point's pairs, which weigh 100 together in each of the three parts."""
    features = _pair_features(normals[rows][pairs.row], normals[pairs.end], pairs)
    lowest, widths = np.array([[-np.pi, -1.0, -1.0], [2 * np.pi, 2.0, 2.0]])
    bins = np.floor(_BINS * (features - lowest) / widths).clip(0, _BINS - 1).astype(np.int64)
    weight = _MASS / counts.clip(1)[pairs.row]
    places = pairs.row[:, None] * (3 * _BINS) + np.arange(3) * _BINS + bins
    size = len(counts) * 3 * _BINS
    return np.bincount(places.reshape(-1), weights=np.repeat(weight, 3), minlength=size).reshape(-1, 3 * _BINS)


def _pair_features(here: np.ndarray, there: np.ndarray, pairs: _Pairs) -> np.ndarray:
    """(m 3) of normals at the points and at their neighbours (m 3): theta, alpha, phi; zeros where none is defined.

    With u the source's normal, d the unit step away from it, v = d x u / |d x u| and w = u x v, and n the other normal:
    theta = atan2(w . n, u . n), alpha = v . n, phi = u . d. Written out in products of the given vectors, v . n has the
    same form from either end.
    """
    slope, other = (np.einsum("mi,mi->m", normal, pairs.step) for normal in (here, there))
    swap = np.abs(slope) < np.abs(other)
    phi, far = np.where(swap, -other, slope), np.where(swap, -slope, other)
    sine = np.sqrt((1 - phi * phi).clip(_ALONG_NORMAL))
    cosine = np.einsum("mi,mi->m", here, there)
    alpha = np.einsum("mi,mi->m", np.cross(here, there), pairs.step) / sine
    theta = np.arctan2((far - phi * cosine) / sine, cosine)
    defined = (pairs.distance > 0) & (1 - phi * phi > _ALONG_NORMAL)
    return np.where(defined[:, None], np.stack([theta, alpha, phi], axis=1), 0.0)


def _check_reach(radius: float, max_neighbors: int) -> None:
    if not isinstance(radius, (int, float)) or not 0 < radius < np.inf:
        raise EncoderError(f"fpfh: radius must be a length above 0 in metres, got {radius!r}")
    if not isinstance(max_neighbors, int) or max_neighbors < 2:
        raise EncoderError(f"fpfh: max_neighbors must be a whole number of 2 or more, got {max_neighbors!r}")
