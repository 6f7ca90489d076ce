"""Points of a depth image against the projection that made it."""

from __future__ import annotations

import numpy as np
import pytest

from protoad.data.camera import Intrinsics, xyz_from_depth
from protoad.errors import DataError, ShapeError

CAMERA = Intrinsics(fx=120.0, fy=150.0, cx=15.5, cy=8.25)


def test_points_project_back_to_their_pixels() -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.4, 0.9, (20, 33))
    xyz = xyz_from_depth(depth, CAMERA)
    assert xyz.shape == (20, 33, 3)
    assert xyz.dtype == np.float32
    np.testing.assert_allclose(xyz[..., 2], depth, rtol=1e-7)
    matrix = np.array([[CAMERA.fx, 0, CAMERA.cx], [0, CAMERA.fy, CAMERA.cy], [0, 0, 1]])
    pixels = xyz.astype(float) @ matrix.T
    rows, columns = np.mgrid[:20, :33]
    np.testing.assert_allclose(pixels[..., 0] / pixels[..., 2], columns, atol=1e-4)
    np.testing.assert_allclose(pixels[..., 1] / pixels[..., 2], rows, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_no_depth_has_no_point(dtype: type) -> None:
    depth = np.full((4, 5), 0.5, dtype=dtype)
    nothing = [0, -0.0, -0.5, np.nan, np.inf, -np.inf]
    depth.ravel()[: len(nothing)] = nothing
    before = depth.copy()
    xyz = xyz_from_depth(depth, CAMERA)
    np.testing.assert_array_equal(depth, before)
    assert np.isnan(xyz.reshape(-1, 3)[: len(nothing)]).all()
    assert np.isfinite(xyz.reshape(-1, 3)[len(nothing) :]).all()


def test_what_float32_cannot_hold_has_no_point() -> None:
    depth = np.array([[1e39, 3e38, 1e308, 1e-60, 1.0]])
    xyz = xyz_from_depth(depth, Intrinsics(0.5, 0.5, 0, 0))
    assert np.isnan(xyz[0, :4]).all()
    assert np.isfinite(xyz[0, 4]).all()


def test_whole_numbers_are_metres() -> None:
    xyz = xyz_from_depth(np.array([[0, 2]], dtype=np.uint16), Intrinsics(1, 1, 0, 0))
    np.testing.assert_array_equal(xyz[0], [(np.nan, np.nan, np.nan), (2, 0, 2)])


def test_wrong_arguments() -> None:
    with pytest.raises(ShapeError, match=r"depth: expected \(y x\), got \(4, 5, 1\)"):
        xyz_from_depth(np.ones((4, 5, 1)), CAMERA)
    for wrong in ({"fx": 0.0}, {"fy": -1.0}, {"cx": np.nan}, {"fx": np.inf}):
        with pytest.raises(DataError, match="intrinsics: expected finite numbers and positive focal lengths"):
            xyz_from_depth(np.ones((4, 5)), CAMERA._replace(**wrong))
