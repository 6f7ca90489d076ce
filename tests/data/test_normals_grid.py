"""The normals of windows on the pixel grid: against the same written out per pixel, and as an operation on tensors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from shapes import camera_rays, degrees, seen_plane, seen_sphere

from protoad.data import grid_normals, normals_grid
from protoad.errors import ShapeError


def rough_scene(seed: int, height: int = 40, width: int = 50) -> np.ndarray:
    """A ball before a wall, with noise and holes."""
    rng = np.random.default_rng(seed)
    rays = camera_rays(height, width)
    ball, wall = seen_sphere(rays, 0.6, 0.03)[0], seen_plane(rays, (0.3, 0.2, -1), 0.65)[0]
    xyz = np.where(np.isfinite(ball), ball, wall)
    xyz += rng.normal(0, 3e-4, xyz.shape)
    xyz[rng.random((height, width)) < 0.2] = np.nan
    return xyz


class Plane(NamedTuple):
    normal: np.ndarray
    middle: np.ndarray
    cost: float  # without the own point's distance
    per_square: float

    def at(self, point: np.ndarray) -> float:
        return self.cost + self.per_square * (self.normal @ (point - self.middle)) ** 2


def written_out(xyz: np.ndarray, row: int, column: int) -> list[Plane | None]:
    """The planes of the two windows around a pixel."""
    here = xyz[row, column]

    def at(dy: int, dx: int) -> np.ndarray | None:
        y, x = row + dy, column + dx
        inside = 0 <= y < xyz.shape[0] and 0 <= x < xyz.shape[1]
        return xyz[y, x] if inside and np.isfinite(xyz[y, x]).all() else None

    def step(dy: int, dx: int) -> float:
        others = [(k, at(k * dy, k * dx)) for k in (-2, -1, 1, 2)]
        return min((np.linalg.norm(other - here) / abs(k) for k, other in others if other is not None), default=1e12)

    step_y, step_x = step(1, 0), step(0, 1)
    step_y, step_x = min(step_y, 8 * step_x), min(step_x, 8 * step_y)
    planes: list[Plane | None] = []
    for distances, least in (({1, 2}, 7), ({1, 2, 5, 9, 10}, 3)):
        points, weights = [here], [1.0]
        for dy in range(-3, 4):
            for dx in range(-3, 4):
                other = at(dy, dx)
                if dy**2 + dx**2 in distances and other is not None:
                    reach = 1.5 * np.hypot(dy * step_y, dx * step_x)
                    points.append(other)
                    weights.append(np.clip(2 - (np.linalg.norm(other - here) / reach) ** 2, 0, 1))
        count = sum(weights)
        middle = np.average(points, axis=0, weights=weights)
        values, axes = np.linalg.eigh(np.cov(np.array(points).T, aweights=weights, ddof=0))
        if count <= least - 0.5 or count <= 1 or values[1] < 1e-3 * values[2]:
            planes.append(None)
            continue
        freedom = max(count - 3, 0.1)
        extent = values[1] * values[2] / (values[1] + values[2])
        doubt = 1 + 8 / freedom + 2 * ((middle - here) ** 2).sum() / extent
        scale = np.sqrt(count * extent)
        planes.append(Plane(axes[:, 0], middle, values[0] * count / freedom * doubt / scale, 1 / (9 * scale)))
    return planes


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.float32, 0.05)])
def test_own_windows_are_those_written_out(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(normals_grid, "_SHIFT_PENALTY", np.inf)
    xyz = torch.from_numpy(rough_scene(0)).to(dtype)
    normals, valid = (field[0].numpy() for field in grid_normals(xyz[None]))
    pixels = np.random.default_rng(1).permutation(np.argwhere(np.isfinite(xyz.numpy()).all(axis=-1)))
    for row, column in [*pixels[:150], *pixels[(pixels < 2).any(axis=1)][:30]]:
        here = xyz.numpy().astype(float)[row, column]
        planes = [plane for plane in written_out(xyz.numpy().astype(float), row, column) if plane]
        assert valid[row, column] == bool(planes)
        if planes:
            normal = min(planes, key=lambda plane: plane.at(here)).normal
            assert degrees(normals[row, column], normal * -np.sign(normal @ here)) < tolerance


def test_next_windows_are_those_written_out() -> None:
    """On a noisy ridge, so small that every fourth pixel lies on the frame."""
    rays = camera_rays(14, 17)
    left, right = (seen_plane(rays, (slope, 0.1, -1), 0.6)[0] for slope in (-0.9, 0.9))
    xyz = np.where(left[..., 2:] < right[..., 2:], left, right)
    xyz += np.random.default_rng(8).normal(0, 5e-5, xyz.shape)
    planes = {(y, x): written_out(xyz, y, x) for y in range(14) for x in range(17)}
    normals = grid_normals(torch.from_numpy(xyz)[None]).normals[0].numpy()
    shifted = 0
    for (y, x), own in planes.items():
        here = xyz[y, x]
        best = min((plane for plane in own if plane), key=lambda plane: plane.at(here))
        cost = best.at(here)
        for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1)):
            plane = planes[min(max(y + dy, 0), 13), min(max(x + dx, 0), 16)][0]
            if plane and (6 + dy * dy + dx * dx) * plane.at(here) < cost:
                best, cost = plane, (6 + dy * dy + dx * dx) * plane.at(here)
        shifted += best is not min((plane for plane in own if plane), key=lambda plane: plane.at(here))
        assert degrees(normals[y, x], best.normal * -np.sign(best.normal @ here)) < 1e-4
    assert shifted > 10


@pytest.mark.parametrize("nothing", [0.0, np.nan])
def test_holes_in_a_cloud_around_the_origin(nothing: float) -> None:
    """The place of a missing point is the middle of this one."""
    y, x = np.mgrid[-15:16, -20:21] * 1e-3
    xyz = np.stack([x, y, 0.3 * x + 0.5 * y + 1e-4], axis=-1)
    holes = np.random.default_rng(9).random(x.shape) < 0.35
    xyz[holes] = nothing
    normals, valid = (field[0].numpy() for field in grid_normals(torch.from_numpy(xyz)[None]))
    truth = np.broadcast_to(np.array([0.3, 0.5, -1]) / np.sqrt(1.34), xyz.shape)
    assert not valid[holes].any()
    assert valid[~holes].mean() > 0.99
    assert degrees(np.abs(normals), np.abs(truth))[valid].max() < 1e-4


def test_closed_form_eigenvector_equals_lapack() -> None:
    rng = np.random.default_rng(5)
    axes = np.linalg.qr(rng.normal(size=(500, 3, 3)))[0]
    values = np.sort(rng.uniform(0.1, 1, (500, 3)), axis=1) * np.array([1e-4, 1, 1])
    axes[:30] = np.eye(3) + rng.normal(0, 1e-5, (30, 3, 3))  # close to an axis only one column of the adjugate is long
    axes[:30] = np.linalg.qr(axes[:30])[0][:, :, rng.permutation(3)]
    axes[10:20], axes[20:30] = np.roll(axes[10:20], 1, axis=2), np.roll(axes[20:30], 2, axis=2)
    values *= 3 / values.sum(axis=1, keepdims=True)
    matrices = torch.from_numpy(axes * values[:, None] @ np.swapaxes(axes, 1, 2))
    diagonal = torch.stack([matrices[:, i, i] for i in range(3)])
    beside = torch.stack([matrices[:, i, j] for i, j in ((1, 2), (2, 0), (0, 1))])
    smallest, product, vector = normals_grid._smallest_eigenvector(diagonal, beside)
    truth, vectors = torch.linalg.eigh(matrices)
    torch.testing.assert_close(smallest, truth[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(product, truth[:, 1] * truth[:, 2], rtol=0, atol=1e-12)
    assert (vector * vectors[:, :, 0].T).sum(dim=0).abs().min() > 1 - 1e-12


@pytest.mark.parametrize("values", [(0.0, 0.0, 3.0), (0.5, 0.5, 2.0), (1.0, 1.0, 1.0)])
def test_a_double_smallest_eigenvalue_has_no_vector(values: tuple[float, ...]) -> None:
    diagonal = torch.tensor(values, dtype=torch.float64)[:, None]
    _, product, _ = normals_grid._smallest_eigenvector(diagonal, torch.zeros_like(diagonal))
    assert product.item() == 0


def test_batch_is_each_image_alone_on_any_device(device: str) -> None:
    clouds = torch.from_numpy(np.stack([rough_scene(seed) for seed in range(3)])).float()
    normals, valid = grid_normals(clouds.to(device))
    assert normals.shape == clouds.shape
    assert (normals.dtype, valid.dtype) == (torch.float32, torch.bool)
    assert normals.device.type == device
    for i, cloud in enumerate(clouds):
        alone = grid_normals(cloud[None])
        torch.testing.assert_close(valid[i].cpu(), alone.valid[0])
        if device == "cpu":
            torch.testing.assert_close(normals[i], alone.normals[0], rtol=0, atol=0)
        else:  # sums round differently: now and then another window wins
            off = degrees(normals[i].cpu().numpy(), alone.normals[0].numpy())[alone.valid[0].numpy()]
            assert np.percentile(off, 99) < 0.1


def test_same_bits_for_any_threads_and_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = torch.from_numpy(rough_scene(2, 150, 230)).float()[None]
    expected = grid_normals(cloud)
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(grid_normals(cloud).normals, expected.normals)
    finally:
        torch.set_num_threads(1)
    for pixels in (300, 4000, 1 << 20):
        monkeypatch.setattr(normals_grid, "_CPU_TILE", pixels)
        found = grid_normals(cloud)
        assert torch.equal(found.normals, expected.normals)
        assert torch.equal(found.valid, expected.valid)


def test_single_and_double_precision_agree() -> None:
    cloud = torch.from_numpy(rough_scene(3))[None] + torch.tensor([0.0, 0.0, 5.0])
    single, double = grid_normals(cloud.float()), grid_normals(cloud)
    assert double.normals.dtype == torch.float64
    assert torch.equal(single.valid, double.valid)
    off = degrees(single.normals.numpy(), double.normals.numpy())[double.valid.numpy()]
    assert np.percentile(off, 99) < 0.2  # 6e-7 of 5 m in a pitch of 2 mm is 0.02 degrees


def test_a_point_far_off_spoils_its_neighbourhood_only() -> None:
    cloud = torch.from_numpy(rough_scene(4)).float()[None]
    expected = grid_normals(cloud)
    cloud[0, 20, 20] = torch.tensor([1e9, -1e9, 1e9])
    found = grid_normals(cloud)
    near = torch.zeros_like(found.valid)
    near[0, 15:26, 15:26] = True
    assert torch.equal(found.normals[~near], expected.normals[~near])


def test_input_stays_and_carries_no_gradient() -> None:
    cloud = torch.from_numpy(rough_scene(5)).float()[None]
    before = cloud.clone()
    normals, _ = grid_normals(cloud.requires_grad_())
    assert not normals.requires_grad
    torch.testing.assert_close(cloud.detach(), before, rtol=0, atol=0, equal_nan=True)
    turned = cloud.detach().permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    assert torch.equal(grid_normals(turned).normals, normals)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 0, 4, 3), (2, 4, 0, 3)])
def test_nothing_in_nothing_out(shape: tuple[int, ...]) -> None:
    normals, valid = grid_normals(torch.zeros(shape))
    assert normals.shape == shape
    assert valid.shape == shape[:3]


def test_wrong_arguments() -> None:
    with pytest.raises(
        ShapeError, match=r"xyz: expected \(b y x 3\) float32 or float64, got \(4, 5, 3\) torch.float32"
    ):
        grid_normals(torch.zeros(4, 5, 3))
    with pytest.raises(ShapeError, match=r"got \(1, 4, 5, 3\) torch.float16"):
        grid_normals(torch.zeros(1, 4, 5, 3, dtype=torch.float16))
