"""Surface normals of organised point clouds from windows on the pixel grid, on any device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from protoad.errors import ShapeError

__all__ = ["Normals", "grid_normals"]

Array = TypeVar("Array")

FAR = 1e12  # no metres: points that lie further are invalid

# Squared distances in pixels of what each window adds to the one before, and points it needs. The larger one leaves
# out some of 37 pixels but the outer ones, which tell most: 29 points that do as well as the 30 nearest ones of the
# usual protocol. The 9 serve where the surface bends or breaks, unless some are missing: a few points fit any plane.
_WINDOWS = (({1, 2}, 7), ({5, 9, 10}, 3))
_REACH = 1.5  # a neighbour counts fully up to this many times the distance that the pixel's own steps lead to expect
_STEEPEST = (
    64.0  # the squared ratio of a pixel's steps along both axes, or the two edges of a wire would hide each other
)
_FEW_POINTS = 8.0
_ONE_SIDED = 2.0
_OWN_POINT = 9.0  # the pixel's own distance to the plane counts from three standard deviations on
_SHIFT_PENALTY = 6.0
_COLLINEAR = 1e-3  # second over first eigenvalue: points on a line span no plane

_NOWHERE = 1e15  # where invalid points are put: too far to count for any other, and no square overflows
_TINY = 1e-30
_UNDECIDED = 1e-12  # squared entries of an adjugate that are rounding errors
_NO_PLANE = 1e37  # a cost
_MARGIN = 3
# Pixels at a time. On a CPU some thirty channels of them fit a core's cache, and PyTorch doesn't split an operation on
# three of them among threads: waiting for each other several thousand times, these would lose more than they gain.
_CPU_TILE = (1 << 15) // 3
_GPU_TILE = 1 << 20  # some hundred MB

_Index = tuple[EllipsisType | slice, ...]


class Normals(NamedTuple, Generic[Array]):
    """Unit normals (.. y x 3), zero where `valid` (.. y x) bool is False."""

    normals: Array
    valid: Array


@torch.no_grad()
def grid_normals(xyz: Tensor) -> Normals[Tensor]:
    """Surface normals of a batch of organised point clouds, towards the viewpoint.

    Fits planes to windows of 9 and 29 pixels around each pixel and takes the one whose normal is known better: the
    variance of a fitted plane's normal rises with what the plane leaves over, and falls with the number and the extent
    of its points. Neighbours much further away than the pixel's steps to the next pixels lead to expect lie behind a
    depth edge and don't count. At a crease no window around the pixel is flat, but one around the next pixel may be,
    and contains this one (the idea of Kuwahara's filter).

    The same code for a CPU and a GPU. The result does not depend on the number of threads. No gradient.

    Args:
        xyz: (b y x 3) metres, float32 or float64, camera axes x right, y down, z away; not finite, (0, 0, 0) or
            beyond 1e12 where invalid.

    Returns:
        Normals (b y x 3) of the dtype of `xyz` with n . p <= 0, and where they are valid (b y x): where there is a
        point that spans a plane with its neighbours.

    Raises:
        ShapeError: if `xyz` isn't (b y x 3), or isn't float32 or float64.

    Example:
        >>> y, x = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
        >>> plane = torch.stack([x, y, torch.ones_like(x)], dim=-1)[None]
        >>> normals, valid = grid_normals(plane)
        >>> normals[0, 1, 2, 2].item(), bool(valid.all())
        (-1.0, True)
    """
    if xyz.ndim != 4 or xyz.shape[-1] != 3 or xyz.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"xyz: expected (b y x 3) float32 or float64, got {tuple(xyz.shape)} {xyz.dtype}")
    if not xyz.numel():
        return Normals(torch.zeros_like(xyz), xyz.new_zeros(xyz.shape[:3], dtype=torch.bool))
    points = xyz.movedim(-1, 0).contiguous()
    size = points[0].abs() + points[1].abs() + points[2].abs()
    seen = (size > 0) & (size < FAR)
    points = points.nan_to_num(0, 0, 0).mul_(seen).add_(~seen, alpha=_NOWHERE)
    padded = functional.pad(points, (_MARGIN,) * 4, value=_NOWHERE)
    normals, best = torch.empty_like(points), torch.empty_like(size)
    small = _Planes(*(torch.empty_like(field) for field in (points, size, size, size)))
    for tile, around in _tiles(seen):
        first, *others = _window_planes(padded[around])
        for target, source in zip(small, first, strict=True):
            target[tile] = source
        chosen, lowest = first.normals, first.own_cost()
        for plane in others:
            cost = plane.own_cost()
            chosen = torch.lerp(chosen, plane.normals, _greater(lowest, cost))
            lowest = torch.minimum(lowest, cost)
        normals[tile], best[tile] = chosen, lowest
    _try_next_windows(points, small, normals, best, seen)
    valid = seen & (best < _NO_PLANE)
    sign = valid.to(xyz.dtype) - 2 * (valid & (_dot(normals, points) > 0))
    return Normals(normals.mul_(sign).movedim(0, -1).contiguous(), valid)


class _Planes(NamedTuple):
    """The plane n . (p - p of the pixel) = offset fitted to the window around each pixel, all (b y x)."""

    normals: Tensor  # (3 b y x)
    offset: Tensor
    cost: Tensor  # about the variance of the normal, in a unit that is the same all over the image
    per_square: Tensor  # what a squared distance of the pixel in question to the plane adds

    def own_cost(self) -> Tensor:
        return self.cost + self.per_square * self.offset.square()


def _tiles(seen: Tensor) -> Iterator[tuple[_Index, _Index]]:
    """Parts of the batch, and of the padded batch with all that their windows contain."""
    if torch.compiler.is_exporting():  # sizes are unknown, and whoever runs it has caches of its own
        yield (..., slice(None)), (..., slice(None))
        return
    batch, height, width = seen.shape
    images, rows, columns = max(1, _GPU_TILE // (height * width)), height, width
    if seen.device.type == "cpu":
        images, rows, columns = 1, math.isqrt(_CPU_TILE), math.isqrt(_CPU_TILE)
    for (first, last), (top, bottom), (left, right) in itertools.product(
        _parts(batch, images), _parts(height, rows), _parts(width, columns)
    ):
        image, more = slice(first, last), 2 * _MARGIN
        yield (
            (..., image, slice(top, bottom), slice(left, right)),
            (..., image, slice(top, bottom + more), slice(left, right + more)),
        )


def _parts(length: int, most: int) -> list[tuple[int, int]]:
    count = -(-length // most)
    return [(length * part // count, length * (part + 1) // count) for part in range(count)]


def _window_planes(padded: Tensor) -> list[_Planes]:
    """Planes of both windows from moments about each pixel's own point: differences of neighbours lose no digits."""
    height, width = padded.shape[2] - 2 * _MARGIN, padded.shape[3] - 2 * _MARGIN
    steps = range(2 * _MARGIN + 1)
    moved = [[padded[..., row : row + height, column : column + width] for column in steps] for row in steps]
    points = moved[_MARGIN][_MARGIN].contiguous()
    reach_y = _squared_reach(padded[..., _MARGIN:-_MARGIN], axis=2)
    reach_x = _squared_reach(padded[..., _MARGIN:-_MARGIN, :], axis=3)
    reach_y, reach_x = torch.minimum(reach_y, _STEEPEST * reach_x), torch.minimum(reach_x, _STEEPEST * reach_y)
    moments = _moments_in_plain_operators if torch.compiler.is_exporting() else _moments
    found = moments(moved, points, reach_y, reach_x)
    return [_fit(*sums, least) for sums, (_, least) in zip(found, _WINDOWS, strict=True)]


def _moments(
    moved: Sequence[Sequence[Tensor]], points: Tensor, reach_y: Tensor, reach_x: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Per window the sums of w; of w x, w y, w z; of w xx, w yy, w zz; of w yz, w zx, w xy.

    The pixel's own point adds 1 to the first.
    """
    count, first, squares, products = torch.ones_like(points[0]), *(torch.zeros_like(points) for _ in range(3))
    offset, weighted, weight, two = points.clone(), points.clone(), count.clone(), points.new_tensor(2)
    (x, y, z), (wx, wy, wz), (yz, zx, xy) = offset, weighted, products
    for added, _ in _WINDOWS:
        for dy, dx in itertools.product(range(_MARGIN + 1), repeat=2):
            if dy**2 + dx**2 not in added:
                continue
            per_reach = (reach_y * dy**2).add_(reach_x, alpha=dx**2).reciprocal_()
            for row, column in {(dy, dx), (dy, -dx), (-dy, dx), (-dy, -dx)}:
                torch.sub(moved[_MARGIN + row][_MARGIN + column], points, out=offset)
                torch.mul(offset, offset, out=weighted)
                torch.add(wx, wy, out=weight).add_(wz)
                torch.addcmul(two, weight, per_reach, value=-1, out=weight).clamp_(0, 1)
                torch.mul(offset, weight, out=weighted)
                count += weight
                first += weighted
                squares.addcmul_(offset, weighted)
                yz.addcmul_(y, wz)
                zx.addcmul_(z, wx)
                xy.addcmul_(x, wy)
        yield count, first, squares, products


def _moments_in_plain_operators(
    moved: Sequence[Sequence[Tensor]], points: Tensor, reach_y: Tensor, reach_x: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The same for other runtimes, to which writing into a part of a tensor is a copy of all of it."""
    count, first, squares, products = torch.ones_like(points[0]), *(torch.zeros_like(points) for _ in range(3))
    for added, _ in _WINDOWS:
        steps = range(-_MARGIN, _MARGIN + 1)
        shifts = [(dy, dx) for dy, dx in itertools.product(steps, repeat=2) if dy**2 + dx**2 in added]
        offset = torch.stack([moved[_MARGIN + dy][_MARGIN + dx] for dy, dx in shifts], dim=1) - points.unsqueeze(1)
        rows, columns = (points.new_tensor(axis).square().view(-1, 1, 1, 1) for axis in zip(*shifts, strict=True))
        weight = (2 - offset.square().sum(0) / (reach_y * rows + reach_x * columns)).clamp(0, 1)
        weighted = offset * weight
        count = count + weight.sum(0)
        first = first + weighted.sum(1)
        squares = squares + (offset * weighted).sum(1)
        products = products + (offset.roll(-1, 0) * weighted.roll(-2, 0)).sum(1)  # y wz, z wx, x wy
        yield count, first, squares, products


def _squared_reach(padded: Tensor, axis: int) -> Tensor:
    """Per pixel along an axis: from the shorter of the steps to both sides, as depth edges lengthen one of them.

    A step is the distance to the next valid pixel, or half of that to the second next. Points that coincide, as in a
    cloud that was enlarged, are no step.
    """
    length = padded.shape[axis]
    reach = []
    for pixels in (1, 2):
        step = padded.narrow(axis, pixels, length - pixels) - padded.narrow(axis, 0, length - pixels)
        squared = _dot(step, step).mul_(_REACH**2 / pixels**2)
        squared.add_(torch.eq(squared, 0, out=torch.empty_like(squared)), alpha=FAR**2)
        reach += [squared.narrow(axis - 1, start, length - 2 * _MARGIN) for start in (_MARGIN - pixels, _MARGIN)]
    return torch.minimum(torch.minimum(reach[0], reach[1]), torch.minimum(reach[2], reach[3])).clamp_(_TINY, FAR**2)


def _fit(count: Tensor, first: Tensor, squares: Tensor, products: Tensor, least: int) -> _Planes:
    """Least-squares planes from weighted moments about the pixel's own point."""
    share = count.reciprocal()
    mean = first * share
    diagonal, beside = (squares * share).addcmul_(mean, mean, value=-1), products * share
    (x, y, z), (yz, zx, xy) = mean, beside
    for entry, a, b in ((yz, y, z), (zx, z, x), (xy, x, y)):
        entry.addcmul_(a, b, value=-1)
    trace = _sum(diagonal)
    unit = (trace / 3).clamp_(min=_TINY)
    per_unit = unit.reciprocal()
    smallest, product, normals = _smallest_eigenvector(diagonal.mul_(per_unit), beside.mul_(per_unit))
    others = 3 - smallest  # the sum of the eigenvalues along the plane, whose product we have
    spans = _greater(product, others.square().mul_(_COLLINEAR))
    spans.mul_(_greater(trace, _TINY)).mul_(_greater(count, least - 0.5))
    freedom = (count - 3).clamp_(min=0.1)  # three points fit any plane
    residual = smallest.mul_(unit).mul_(count).div_(freedom)
    # The normal's variance is the residual's over the number of points and the harmonic mean of their extents; its
    # root because on a curved surface a larger window is further off, whatever its share of the noise.
    extent = product.clamp_(min=_COLLINEAR).div_(others).mul_(unit)
    per_square = (count * extent).rsqrt_()
    # few points make the residual a poor guess, and a window that lies to one side has the slope of that side
    doubt = freedom.reciprocal_().mul_(_FEW_POINTS).add_(1).addcdiv_(_dot(mean, mean), extent, value=_ONE_SIDED)
    cost = residual.mul_(doubt).mul_(per_square).add_(spans.sub_(1).mul_(-_NO_PLANE))
    return _Planes(normals, _dot(normals, mean), cost, per_square.mul_(1 / _OWN_POINT))


def _smallest_eigenvector(diagonal: Tensor, beside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of symmetric 3 x 3 matrices of trace 3: smallest eigenvalue, product of the others, its unit eigenvector (3 ..).

    The trigonometric solution of the characteristic cubic; the vector is the longest column of the adjugate of
    A - lambda I. Exact enough because the smallest eigenvalue of a plane stands alone; where it is a double one, no
    vector is its own, and the product is given as 0.

    Args:
        diagonal: xx, yy, zz (3 ..).
        beside: yz, zx, xy (3 ..).
    """
    adjugate, adjugate_beside = torch.empty_like(diagonal), torch.empty_like(beside)
    (xx, yy, zz), (yz, zx, xy) = diagonal, beside
    (axx, ayy, azz), (ayz, azx, axy) = adjugate, adjugate_beside
    for a, b, out in ((yy, zz, axx), (zz, xx, ayy), (xx, yy, azz), (zx, xy, ayz), (xy, yz, azx), (yz, zx, axy)):
        torch.mul(a, b, out=out)
    adjugate.addcmul_(beside, beside, value=-1)
    adjugate_beside.addcmul_(beside, diagonal, value=-1)
    minors = axx + ayy + azz
    determinant = (xx * axx).addcmul_(zx, azx).addcmul_(xy, axy)
    spread = (1 - minors / 3).clamp_(min=0).sqrt_()
    cosine = (determinant - minors).add_(2).div_((spread * spread).mul_(spread).mul_(2).clamp_(min=_TINY))
    angle = cosine.clamp_(-1, 1).acos_().add_(2 * math.pi).div_(3)
    smallest = angle.cos_().mul_(spread).mul_(2).add_(1).clamp_(min=0)
    # from the adjugate of A to that of A - lambda I
    change = (smallest - 3).mul_(smallest)
    adjugate.add_(change).addcmul_(diagonal, smallest)
    adjugate_beside.addcmul_(beside, smallest)
    second, third = _greater(ayy, axx), _greater(azz, torch.maximum(axx, ayy))
    rows = ((axx, axy, azx), (axy, ayy, ayz), (azx, ayz, azz))
    vector = torch.stack([a.lerp(b, second).lerp_(c, third) for a, b, c in rows])
    squared = _dot(vector, vector)
    product = minors.add_(change).mul_(_greater(squared, _UNDECIDED))
    return smallest, product, vector.mul_(squared.clamp_(min=_TINY).rsqrt_())


def _try_next_windows(points: Tensor, planes: _Planes, normals: Tensor, best: Tensor, seen: Tensor) -> None:
    """Replaces normals, and their cost `best`, where a window around one of the next pixels is clearly better.

    It costs accuracy on curved surfaces, hence the penalty. The pixel's own distance to the plane counts too, or a
    thin part would take the plane of what lies behind it.
    """
    # only where the best window around, at the smallest penalty, would win: few pixels, same result; and a point that
    # spans no plane with its own neighbours gets none from others
    hopeful = seen & (best < _NO_PLANE) & (best > _lowest_around(planes.cost) * (_SHIFT_PENALTY + 1))
    image, row, column = hopeful.nonzero().unbind(1)
    height, width = best.shape[1:]
    shifts = sorted(itertools.product((-1, 0, 1), repeat=2), key=lambda shift: shift[0] ** 2 + shift[1] ** 2)[1:]
    dy, dx = torch.tensor(shifts, device=best.device).T[..., None]
    penalty = _SHIFT_PENALTY + (dy * dy + dx * dx).to(best.dtype)
    # at the frame a window takes the place of one beyond it: it contains the pixel as well
    windows = (image * height + (row + dy).clamp_(0, height - 1)) * width + (column + dx).clamp_(0, width - 1)
    pixels = (image * height + row) * width + column
    distance = -planes.offset.take(windows)
    for point, normal in zip(points, planes.normals, strict=True):
        distance += normal.take(windows) * (point.take(pixels) - point.take(windows))
    cost = planes.cost.take(windows) + planes.per_square.take(windows) * distance.square_()
    lowest, which = (penalty * cost).min(dim=0)
    better = (lowest < best.take(pixels)).nonzero()[:, 0]
    pixels, chosen = pixels[better], windows[which[better], better]
    best.view(-1)[pixels] = lowest[better]
    for target, source in zip(normals, planes.normals, strict=True):
        target.view(-1)[pixels] = source.take(chosen)


def _lowest_around(image: Tensor) -> Tensor:
    """The lowest value of each pixel and the eight around it."""
    for axis in (1, 2):
        length = image.shape[axis]
        lowest = image.clone()
        for here, there in ((0, 1), (1, 0)):
            side = lowest.narrow(axis, here, length - 1)
            torch.minimum(side, image.narrow(axis, there, length - 1), out=side)
        image = lowest
    return image


def _greater(a: Tensor, b: Tensor | float) -> Tensor:
    """1 where a > b, else 0: on a CPU, arithmetic is several times faster than bool and where()."""
    return torch.gt(a, b, out=torch.empty_like(a))


def _sum(a: Tensor) -> Tensor:
    x, y, z = a
    return x + y + z


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return _sum(a * b)
