"""The farthest-point subset against one that measures every distance anew."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from protoad import ShapeError
from protoad.ops import greedy_coreset


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_equals_brute_force(device: str, offset: float) -> None:
    points = torch.randn(60, 5, dtype=torch.float64) + offset
    chosen = greedy_coreset(points.to(device), 20, seed=3).tolist()
    expected = [chosen[0]]
    for _ in range(19):
        distances = [min(np.linalg.norm(points[i] - points[j]) for j in expected) for i in range(60)]
        expected.append(int(np.argmax(distances)))
    assert chosen == expected


def test_the_seed_draws_the_start() -> None:
    points = torch.randn(50, 3)
    state = torch.get_rng_state()
    first = [int(greedy_coreset(points, 1, seed=seed)) for seed in range(20)]
    assert torch.equal(torch.get_rng_state(), state)
    assert len(set(first)) > 5
    assert torch.equal(greedy_coreset(points, 10, seed=4), greedy_coreset(points, 10, seed=4))


def test_covers_within_twice_the_smallest_radius() -> None:
    points = torch.rand(9, 2)
    distances = torch.cdist(points, points)
    smallest = min(float(distances[list(some)].amin(0).max()) for some in itertools.combinations(range(9), 3))
    assert float(distances[greedy_coreset(points, 3)].amin(0).max()) <= 2 * smallest + 1e-6


def test_points_that_coincide_are_chosen_once_each() -> None:
    assert sorted(greedy_coreset(torch.ones(7, 4), 7).tolist()) == list(range(7))


@pytest.mark.parametrize("count", [0, 6])
def test_bad_counts_are_named(count: int) -> None:
    with pytest.raises(ShapeError, match=rf"1 to n, got \(5, 2\) and {count}"):
        greedy_coreset(torch.rand(5, 2), count)
