from __future__ import annotations

import numpy as np
import pytest

from protoad.errors import DataError, ShapeError
from protoad.viz import displacement

LineCollection = pytest.importorskip("matplotlib.collections").LineCollection
FancyArrowPatch = pytest.importorskip("matplotlib.patches").FancyArrowPatch
RNG = np.random.default_rng(0)
BEFORE, PROTOTYPES = RNG.normal(size=(40, 9)), RNG.normal(size=(5, 9))
ANOMALOUS = np.arange(40) % 5 == 0
AFTER = 0.6 * BEFORE + 0.1 + ANOMALOUS[:, None]


def _in_plane() -> list[np.ndarray]:
    """Of tokens, reconstructions and prototypes, up to the signs of both axes."""
    everything = np.concatenate([BEFORE, AFTER, PROTOTYPES])
    vectors = np.linalg.eigh(np.cov(everything.T))[1][:, :-3:-1]
    return np.split((everything - everything.mean(0)) @ vectors, [40, 80])


def test_lengths_are_those_of_the_full_space() -> None:
    axes = displacement(BEFORE, AFTER, PROTOTYPES, ANOMALOUS, bins=12).axes[1]
    lengths = np.array(
        [sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) ** 0.5 for pair in zip(AFTER, BEFORE, strict=True)]
    )
    for patch, group in zip(axes.patches, (~ANOMALOUS, ANOMALOUS), strict=True):
        counts, edges = np.histogram(lengths[group], bins=12, range=(0, lengths.max()))
        np.testing.assert_allclose(patch.get_data().values, 100 * counts / group.sum())
        np.testing.assert_allclose(patch.get_data().edges, edges)
    means = [lengths[~ANOMALOUS].mean(), lengths[ANOMALOUS].mean()]
    np.testing.assert_allclose([line.get_xdata()[0] for line in axes.lines], means)
    assert axes.get_title("left").endswith(f"normal {means[0]:.3g}, anomalous {means[1]:.3g}")
    assert axes.get_xlabel() == "length in the full space"
    assert axes.get_xlim()[0] == 0
    assert axes.get_ylim()[0] == 0


def test_lines_arrows_and_prototypes_lie_in_one_plane() -> None:
    axes = displacement(BEFORE, AFTER, PROTOTYPES, ANOMALOUS).axes[0]
    start, end, anchors = _in_plane()
    lines = [collection for collection in axes.collections if isinstance(collection, LineCollection)]
    for collection, group in zip(lines, (~ANOMALOUS, ANOMALOUS), strict=True):
        expected = np.stack([start[group], end[group]], axis=1)
        np.testing.assert_allclose(np.abs(collection.get_segments()), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(np.abs(np.transpose(axes.lines[0].get_data())), np.abs(anchors), atol=1e-9)
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    for arrow, group in zip(arrows, (~ANOMALOUS, ANOMALOUS), strict=True):
        expected = [start[group].mean(0), end[group].mean(0)]
        np.testing.assert_allclose(np.abs(arrow._posA_posB), np.abs(expected), atol=1e-9)
    assert lines[0].get_alpha() < 1
    assert arrows[0].get_linewidth() > arrows[1].get_linewidth() > lines[0].get_linewidth()[0]


@pytest.mark.parametrize("flags", [np.zeros(40), np.ones(40)])
def test_one_group_alone_is_drawn(flags: np.ndarray) -> None:
    axes = displacement(BEFORE, AFTER, PROTOTYPES, flags).axes
    assert len(axes[1].lines) == 1


def test_tokens_that_stay_are_drawn() -> None:
    assert (
        displacement(BEFORE, BEFORE, PROTOTYPES, ANOMALOUS).axes[1].get_title("left").endswith("normal 0, anomalous 0")
    )


def test_bad_input_is_named() -> None:
    for name, arguments in {
        "after": (BEFORE, AFTER[:-1], PROTOTYPES, ANOMALOUS),
        "prototypes": (BEFORE, AFTER, PROTOTYPES[:, :3], ANOMALOUS),
        "anomalous": (BEFORE, AFTER, PROTOTYPES, ANOMALOUS[1:]),
        "before": (BEFORE[0], AFTER, PROTOTYPES, ANOMALOUS),
    }.items():
        with pytest.raises(ShapeError, match=f"{name}: expected"):
            displacement(*arguments)
    with pytest.raises(DataError, match="after: expected finite"):
        displacement(BEFORE, AFTER * np.nan, PROTOTYPES, ANOMALOUS)
    with pytest.raises(DataError, match="anomalous: expected 0 or 1"):
        displacement(BEFORE, AFTER, PROTOTYPES, np.arange(40))
    with pytest.raises(ValueError, match="bins: expected 1 or more, got 0"):
        displacement(BEFORE, AFTER, PROTOTYPES, ANOMALOUS, bins=0)
