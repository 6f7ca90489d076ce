from __future__ import annotations

import numpy as np
import pytest

from protoad.data import select_shots
from protoad.errors import DataError

NAMES = [f"train/good/{i:03d}" for i in range(40)]


def test_shots_are_sorted_distinct_and_seeded() -> None:
    shots = select_shots(NAMES, 10, seed=3)
    assert shots == sorted(set(shots))
    assert len(shots) == 10
    assert set(shots) <= set(range(40))
    assert shots == select_shots(NAMES, 10, seed=3)
    assert len({tuple(select_shots(NAMES, 10, seed=seed)) for seed in range(20)}) == 20


def test_fewer_shots_of_one_seed_are_among_the_more() -> None:
    for seed in range(10):
        assert set(select_shots(NAMES, 5, seed=seed)) < set(select_shots(NAMES, 10, seed=seed))


def test_the_order_of_the_list_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(40)
    mixed = [NAMES[i] for i in order]
    plain = {NAMES[i] for i in select_shots(NAMES, 7, seed=1)}
    assert {mixed[i] for i in select_shots(mixed, 7, seed=1)} == plain


def test_every_part_has_the_same_chance() -> None:
    counts = np.bincount([i for seed in range(2000) for i in select_shots(NAMES, 4, seed=seed)], minlength=40)
    assert abs(counts - 200).max() < 5 * np.sqrt(200)


def test_none_takes_all() -> None:
    assert select_shots(NAMES, None, seed=0) == list(range(40))


def test_too_few_parts() -> None:
    message = r"asked for 20 shots, found 10 good training parts in train/good"
    with pytest.raises(DataError, match=message):
        select_shots(NAMES[:10], 20, seed=0)
    with pytest.raises(DataError, match="asked for 0 shots"):
        select_shots(NAMES, 0, seed=0)
    with pytest.raises(DataError, match="found 0 good training parts"):
        select_shots([], None, seed=0)
