from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from protoad.errors import DataError, ShapeError
from protoad.viz import score_distributions, score_overlap

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("gap", [-1.0, 0.0, 0.5, 2.0, 9.0])
@pytest.mark.parametrize("ties", [False, True])
def test_overlap_is_one_less_kolmogorov_and_smirnov(gap: float, ties: bool) -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], [30, 50])
    scores = rng.normal(gap * labels)
    scores = scores.round() if ties else scores
    greater = ks_2samp(scores[labels == 0], scores[labels == 1], alternative="greater").statistic
    assert score_overlap(scores, labels) == pytest.approx(1 - greater)


def test_overlap_is_the_least_error_of_any_threshold() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 40)
    scores = rng.normal(labels)
    errors = [np.mean(scores[labels == 0] > t) + np.mean(scores[labels == 1] <= t) for t in (-np.inf, *scores)]
    assert score_overlap(scores, labels) == pytest.approx(min(errors))


def _bars(axes) -> dict[str, np.ndarray]:
    return {str(patch.get_label()): patch.get_data().values for patch in axes.patches}


def test_bars_are_percent_of_each_group_on_an_axis_that_holds_them() -> None:
    labels = np.array([0] * 4 + [1] * 2)
    scores = {"a": [0.0, 0.1, 0.2, 4.0, 3.9, 4.0], "b": [0.0, 1.0, 2.0, 3.0, 4.0, 4.0]}
    figure = score_distributions(scores, labels, bins=4)
    first, second = figure.axes
    np.testing.assert_allclose(_bars(first)["normal"], [75, 0, 0, 25])
    np.testing.assert_allclose(_bars(first)["anomalous"], [0, 0, 0, 100])
    np.testing.assert_allclose(_bars(second)["normal"], [25, 25, 25, 25])
    for axes in (first, second):
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] >= 100
        low, high = axes.get_xlim()
        assert low <= 0
        assert high >= 4
    assert first.get_title("left").startswith("a: overlap 0.25")
    assert second.get_title("left").startswith("b: overlap 0.00")


def test_the_highest_bar_of_any_panel_fits_whatever_the_order() -> None:
    labels = np.repeat([0, 1], [10, 10])
    flat, peaked = np.linspace(0, 1, 20), np.repeat([0.0, 1.0], [10, 10])
    for scores in ({"flat": flat, "peaked": peaked}, {"peaked": peaked, "flat": flat}):
        assert all(axes.get_ylim()[1] >= 100 for axes in score_distributions(scores, labels).axes)


def test_groups_are_told_apart_without_colour() -> None:
    normal, anomalous = score_distributions([1.0, 2.0], [0, 1]).axes[0].patches
    assert normal.get_hatch() is None
    assert anomalous.get_hatch()
    assert anomalous.get_facecolor()[3] == 0  # what lies under it is seen


def test_threshold_is_drawn_and_what_it_rejects_is_said() -> None:
    scores, labels = [1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 0, 1, 1]
    figure = score_distributions({"a": scores, "b": scores, "c": scores}, labels, threshold={"a": 2.5, "b": np.inf})
    one, two, three = figure.axes
    assert one.lines[0].get_xdata()[0] == 2.5
    assert "33% of the normal,\n100% of the anomalous" in one.get_title("left")
    assert not two.lines
    assert "0% of the normal,\n0% of the anomalous parts, threshold infinite" in two.get_title("left")
    assert "rejected" not in three.get_title("left")
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "normal, 3 parts",
        "anomalous, 2 parts",
        "threshold",
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_there_is_a_panel_for_each_detector(count: int) -> None:
    scores = {f"{i}": [0.0, 1.0] for i in range(count)}
    visible = [axes for axes in score_distributions(scores, [0, 1]).axes if axes.get_visible()]
    assert [axes.get_title("left")[0] for axes in visible] == list(scores)


def test_equal_scores_are_drawn() -> None:
    assert score_distributions([3.0, 3.0], [0, 1]).axes[0].get_title("left") == "overlap 1.00"


def test_bad_input_is_named() -> None:
    with pytest.raises(ShapeError, match=r"labels: expected 3"):
        score_distributions([1.0, 2.0, 3.0], [0, 1])
    with pytest.raises(ShapeError, match=r"scores: expected \(m\)"):
        score_overlap([[1.0]], [1])
    with pytest.raises(DataError, match="scores of a: expected finite"):
        score_distributions({"a": [1.0, np.nan]}, [0, 1])
    with pytest.raises(DataError, match="labels: expected 0 or 1"):
        score_overlap([1.0, 2.0], [0, 2])
    with pytest.raises(DataError, match="labels: expected both 0 and 1, got 1 alone"):
        score_overlap([1.0, 2.0], [1, 1])
    with pytest.raises(ValueError, match="threshold: expected detectors out of a, got 'b'"):
        score_distributions({"a": [1.0, 2.0]}, [0, 1], threshold={"b": 1.0})
    with pytest.raises(ValueError, match="threshold: expected numbers"):
        score_distributions([1.0, 2.0], [0, 1], threshold=np.nan)
    for arguments in ({"scores": {}}, {"scores": [1.0, 2.0], "bins": 0}):
        with pytest.raises(ValueError, match="scores, and bins of 1 or more"):
            score_distributions(labels=[0, 1], **arguments)
