"""Signs of normals along a spanning tree: against a textbook tree, closed surfaces, and Open3D."""

from __future__ import annotations

import numpy as np
import pytest
from shapes import camera_rays, seen_plane

from protoad._lazy import require_open3d
from protoad.data import normals_from_xyz
from protoad.data.normals_orient import tangent_plane_signs
from protoad.errors import MissingExtraError


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def bumpy_ball(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points all around a closed surface, 0.6 m from the viewpoint, and its normals outwards."""
    directions = unit(rng.normal(size=(count, 3)))
    wave = 1 + 0.1 * np.sin(4 * directions[:, :1]) * np.cos(3 * directions[:, 1:2])
    points = 0.1 * wave * directions
    # the gradient of |p| / wave(p / |p|) by differences
    steps = 1e-6 * np.eye(3)

    def level(p: np.ndarray) -> np.ndarray:
        d = unit(p)
        return np.linalg.norm(p, axis=-1) / (1 + 0.1 * np.sin(4 * d[..., 0]) * np.cos(3 * d[..., 1]))

    outwards = unit(np.stack([level(points + step) - level(points - step) for step in steps], axis=-1))
    return points + np.array([0, 0, 0.6]), outwards


def textbook_signs(points: np.ndarray, normals: np.ndarray, near: int = 16) -> np.ndarray:
    """Prim's algorithm on the graph of nearest neighbours, one part after the other, each turned to the origin."""
    count = len(points)
    order = np.argsort(((points[:, None] - points) ** 2).sum(axis=-1), axis=1)[:, :near]
    linked = np.zeros((count, count), dtype=bool)
    linked[np.arange(count)[:, None], order] = True
    linked |= linked.T
    weight = 1 - np.abs(normals @ normals.T)
    signs = np.zeros(count)
    while (signs == 0).any():
        part = [int(np.flatnonzero(signs == 0)[0])]
        signs[part[0]] = 1
        while True:
            edges = [(weight[i, j], i, j) for i in part for j in np.flatnonzero(linked[i] & (signs == 0))]
            if not edges:
                break
            _, i, j = min(edges)
            signs[j] = signs[i] * (1 if normals[i] @ normals[j] >= 0 else -1)
            part.append(j)
        if (signs[part] * np.sign(-(normals[part] * points[part]).sum(axis=1))).sum() < 0:
            signs[part] *= -1
    return signs


@pytest.mark.parametrize("seed", range(3))
def test_signs_are_those_of_the_textbook(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(0.5, 0.6, (120, 3))
    points[:40] += 1  # two parts
    normals = unit(rng.normal(size=(120, 3)))
    np.testing.assert_array_equal(tangent_plane_signs(points, normals), textbook_signs(points, normals))


def test_closed_surface_gets_one_side() -> None:
    rng = np.random.default_rng(3)
    points, outwards = bumpy_ball(4000, rng)
    flips = rng.choice([-1.0, 1.0], 4000)
    found = tangent_plane_signs(points, outwards * flips[:, None]) * flips
    assert abs(found.sum()) == 4000


def test_signs_are_those_of_open3d() -> None:
    try:
        open3d = require_open3d()
    except MissingExtraError as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(4)
    points, outwards = bumpy_ball(3000, rng)
    mixed = outwards * rng.choice([-1.0, 1.0], 3000)[:, None]
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
    cloud.normals = open3d.utility.Vector3dVector(mixed)
    cloud.orient_normals_consistent_tangent_plane(50)
    agree = ((mixed * tangent_plane_signs(points, mixed)[:, None]) * np.asarray(cloud.normals)).sum(axis=1) > 0
    assert agree.all() or not agree.any()


def test_flat_scene_with_any_signs() -> None:
    """All weights are zero here."""
    xyz, normal = seen_plane(camera_rays(100, 100), (0, 0, -1), 0.6)
    flips = np.random.default_rng(5).choice([-1.0, 1.0], (100, 100, 1))
    points, mixed = xyz.reshape(-1, 3), (normal * flips).reshape(-1, 3)
    np.testing.assert_array_equal(tangent_plane_signs(points, mixed), flips.ravel())
    found = normals_from_xyz(xyz, orient="tangent_plane")
    np.testing.assert_array_equal(found.normals, normals_from_xyz(xyz).normals)


def test_flat_faces_agree_over_a_crease() -> None:
    """A small face that the camera sees from behind, as its larger neighbour tells; all other weights are zero."""
    y, x = (axis.ravel() for axis in np.mgrid[:20, :20] * 1e-2)
    large, small = np.array([0, 0, -1.0]), np.array([0.8, 0, -0.6])
    points = np.concatenate(
        [
            np.stack([1 - 0.5 * x, y, np.full_like(x, 0.6)], axis=-1),
            np.stack([1 + 0.06 * x, y, 0.6 + 0.08 * x], axis=-1)[x > 0],
        ]
    )
    normals = np.concatenate([np.tile(large, (400, 1)), np.tile(small, (380, 1))])
    assert (normals[400:] * points[400:]).sum(axis=1).min() > 0
    flips = np.random.default_rng(8).choice([-1.0, 1.0], 780)
    np.testing.assert_array_equal(tangent_plane_signs(points, normals * flips[:, None]), flips)


def test_every_part_faces_the_camera_by_majority() -> None:
    rng = np.random.default_rng(6)
    centres = rng.uniform(-1, 1, (300, 3)) * np.array([1, 1, 0.1]) + np.array([0, 0, 3])
    offsets = 1e-4 * rng.normal(size=(300, 17, 3)) * np.array([1, 1, 0])
    points = (centres[:, None] + offsets).reshape(-1, 3)
    flips = rng.choice([-1.0, 1.0], len(points))
    towards = np.broadcast_to(np.array([0, 0, -1.0]), points.shape)
    np.testing.assert_array_equal(tangent_plane_signs(points, towards * flips[:, None]), flips)


def test_points_that_coincide_agree() -> None:
    rng = np.random.default_rng(7)
    points, outwards = bumpy_ball(500, rng)
    points, outwards = np.concatenate([points] * 40), np.concatenate([outwards] * 40)
    flips = rng.choice([-1.0, 1.0], len(points))
    found = tangent_plane_signs(points, outwards * flips[:, None]) * flips
    assert abs(found.sum()) == len(points)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_next_to_no_points(count: int) -> None:
    points = np.array([[0, 0, 1.0], [0, 0.1, 1]])[:count]
    normals = np.array([[0, 0, 1.0], [0, 0, -1]])[:count]
    np.testing.assert_array_equal(tangent_plane_signs(points, normals), [-1, 1][:count])
