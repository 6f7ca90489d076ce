"""The benchmark of background removal is fair only if its scene is one that can be solved."""

from __future__ import annotations

import numpy as np
import prepare as benchmark
import pytest

from protoad.data import find_foreground


@pytest.mark.parametrize("size", [96, 224])
def test_all_things_of_the_scene_are_found_and_the_table_is_not(size: int) -> None:
    made = benchmark.scene(size)
    things = np.any(list(made.things.values()), axis=0)
    valid = np.isfinite(made.xyz).all(axis=-1)
    np.testing.assert_array_equal(find_foreground(made.xyz).mask & valid, things & valid)


def test_the_rival_finds_the_ball() -> None:
    open3d = benchmark.load_open3d()
    if open3d is None:
        pytest.skip("Open3D is not installed")
    open3d.utility.random.seed(0)
    made = benchmark.scene(224)
    found = benchmark.remove_as_protocol(open3d, 3, made.xyz)
    ball = made.things["ball"] & np.isfinite(made.xyz).all(axis=-1)
    assert found[ball].mean() > 0.98
    assert not found[~ball].any()
