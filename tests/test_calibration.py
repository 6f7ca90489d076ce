"""What conformal calibration promises, checked by counting, by simulation and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protoad.calibration import Calibration, calibrate, needed_parts
from protoad.errors import CalibrationError


@pytest.mark.parametrize(("rate", "parts"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.2, 4), (0.3, 3), (0.5, 1), (0.9, 1)])
def test_how_many_parts_a_rate_needs(rate: float, parts: int) -> None:
    assert needed_parts(rate) == parts
    assert calibrate(range(parts), false_reject_rate=rate).threshold < math.inf
    if parts > 1:
        with pytest.raises(CalibrationError, match=f"needs {parts}"):
            calibrate(range(parts - 1), false_reject_rate=rate)
        assert not calibrate(range(parts - 1), false_reject_rate=rate, force=True)(1e9).reject


@given(
    scores=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40),
    score=st.floats(-1e6, 1e6),
    rate=st.sampled_from([0.01, 0.05, 0.1, 0.15, 0.3, 0.7, 0.95]),
)
def test_the_threshold_and_the_p_value_say_the_same(scores: list[float], score: float, rate: float) -> None:
    calibration = calibrate(scores, false_reject_rate=rate, force=True)
    for one in (score, *scores):
        assert calibration(one).reject == (one > calibration.threshold)
        assert calibration(one).p_value == (1 + sum(other >= one for other in scores)) / (len(scores) + 1)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("count", "rate"), [(19, 0.05), (25, 0.05), (9, 0.1), (40, 0.2)])
def test_every_part_of_a_set_left_out_in_turn(count: int, rate: float, ties: bool) -> None:
    """Exchangeability, counted: of n + 1 parts, at most rate (n + 1) are rejected by the other n."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 5, count + 1).astype(float) if ties else rng.standard_cauchy(count + 1)
        rejected = sum(
            calibrate(np.delete(scores, i), false_reject_rate=rate)(scores[i]).reject for i in range(count + 1)
        )
        assert rejected <= rate * (count + 1) + 1e-9
        assert ties or rejected == math.floor(rate * (count + 1) + 1e-9)


def test_split_holds_its_promise_and_is_not_slack() -> None:
    """5 % over draws of 19 calibration parts and one new one: 5.0 % in theory, here within three deviations."""
    rng, trials = np.random.default_rng(1), 8000
    draws = rng.lognormal(sigma=2, size=(trials, 20))
    rejected = np.mean([calibrate(draw[:19], false_reject_rate=0.05)(draw[19]).reject for draw in draws])
    assert abs(rejected - 0.05) < 3 * math.sqrt(0.05 * 0.95 / trials)


def test_cross_stays_below_twice_its_rate_where_a_single_detector_does_not() -> None:
    """Distance to the mean of the parts learnt from, in 20 dimensions: a detector that overfits its ten parts.

    Ten parts at 10 %. Calibrated on the parts it learnt from, it rejects nearly every new good part.
    """
    rng, trials, rate = np.random.default_rng(2), 1500, 0.1
    own = crossed = 0
    for _ in range(trials):
        parts = rng.standard_normal((11, 20))
        learnt, new = parts[:10], parts[10]
        weights = np.linalg.pinv(learnt)  # distance to the span of the parts

        def distance(point: np.ndarray, basis: np.ndarray) -> float:
            return float(np.linalg.norm(point - point @ np.linalg.pinv(basis) @ basis))

        others = [np.delete(learnt, i, axis=0) for i in range(10)]
        held_out = [distance(part, rest) for part, rest in zip(learnt, others, strict=True)]
        crossed += calibrate(held_out, false_reject_rate=rate, method="cross")(
            [distance(new, o) for o in others]
        ).reject
        seen = [float(np.linalg.norm(part - part @ weights @ learnt)) for part in learnt]
        own += calibrate(seen, false_reject_rate=rate)(distance(new, learnt)).reject
    assert own / trials > 0.9
    assert 0.02 < crossed / trials <= 2 * rate


def test_the_promise_is_stated() -> None:
    assert calibrate(range(19)).guaranteed_rate == 0.05
    assert calibrate(range(19), method="cross").guaranteed_rate == 0.1
    assert calibrate([1, 2, 3], false_reject_rate=0.7, method="cross").guaranteed_rate == 1


def test_what_is_no_calibration() -> None:
    for rate in (0, 1, -0.1, math.nan):
        with pytest.raises(CalibrationError, match="false_reject_rate"):
            calibrate(range(19), false_reject_rate=rate)
    with pytest.raises(CalibrationError, match="got none"):
        calibrate([])
    with pytest.raises(CalibrationError, match="got nan"):
        calibrate([1.0, math.nan], false_reject_rate=0.5)
    with pytest.raises(CalibrationError, match="expected one score, got 2"):
        calibrate(range(19))([1.0, 2.0])
    with pytest.raises(CalibrationError, match="expected 19 scores"):
        calibrate(range(19), method="cross")(1.0)


def test_a_score_that_is_no_number_is_rejected() -> None:
    assert Calibration((1.0, 2.0, 3.0), 0.25)(math.nan).reject
