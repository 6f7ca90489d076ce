"""Spots above a threshold, beside a flood fill."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from protoad import DataError, ShapeError
from protoad.regions import find_regions


def _flood(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    spots = []
    while left:
        spot, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            spot.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
        spots.append(spot)
    return spots


@given(arrays(np.float64, (6, 7), elements=st.integers(0, 4)), st.sampled_from([0.5, 2, 3]))
def test_regions_are_those_of_a_flood_fill(heatmap: np.ndarray, threshold: float) -> None:
    found = find_regions(heatmap, threshold)
    expected = []
    for spot in _flood(heatmap > threshold):
        ys, xs = zip(*spot, strict=True)
        peak = max(heatmap[place] for place in spot)
        box = (min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1)
        expected.append((*box, len(spot), peak))
        region = next(r for r in found if (r.peak_y, r.peak_x) in spot)
        assert heatmap[region.peak_y, region.peak_x] == peak
    assert sorted(region[:6] for region in found) == sorted(expected)
    assert [r.peak for r in found] == sorted((r.peak for r in found), reverse=True)


def test_a_threshold_beyond_all_scores_finds_nothing() -> None:
    assert find_regions(np.ones((3, 3)), np.inf) == []
    assert find_regions(np.ones((3, 3)), 1.0) == []


def test_what_is_no_heatmap_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"heatmap: expected \(y x\), got \(3,\)"):
        find_regions(np.ones(3), 0.5)
    with pytest.raises(DataError, match="expected finite scores"):
        find_regions(np.array([[np.nan]]), 0.5)
    with pytest.raises(DataError, match="expected finite scores"):
        find_regions(np.ones((2, 2)), np.nan)
