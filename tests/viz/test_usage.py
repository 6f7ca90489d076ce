from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from protoad.errors import DataError, ShapeError
from protoad.nn import SinkhornAssign, SoftmaxAssign
from protoad.viz import effective_prototypes, prototype_usage

pytest.importorskip("matplotlib")


def _plan(seed: int = 0) -> np.ndarray:
    """(2 7 5), some tokens masked, the last prototype unused."""
    plan = np.random.default_rng(seed).dirichlet(np.full(5, 0.4), size=(2, 7))
    plan[..., 4] = 0
    plan[0, 2] = plan[1, 6] = 0
    return plan


def _loop(plan: np.ndarray) -> tuple[list[float], list[float]]:
    """Mass and owned tokens, token by token."""
    mass, owned, count = [0.0] * 5, [0.0] * 5, 0
    for item in plan:
        for row in item:
            if sum(row) == 0:
                continue
            count += 1
            owned[list(row).index(max(row))] += 1
            for prototype, share in enumerate(row):
                mass[prototype] += share
    return [m / sum(mass) for m in mass], [o / count for o in owned]


def test_bars_and_dots_equal_a_loop() -> None:
    mass, owned = _loop(_plan())
    axes = prototype_usage({"a": _plan()}).axes[0]
    order = sorted(range(5), key=lambda prototype: -mass[prototype])
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], [100 * mass[p] for p in order])
    dots = next(line for line in axes.lines if line.get_marker() == "o")
    np.testing.assert_allclose(dots.get_ydata(), [100 * owned[p] for p in order])
    equal = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert equal.get_ydata()[0] == pytest.approx(20)


def test_effective_number_equals_a_loop() -> None:
    for owners, shares in zip((False, True), _loop(_plan()), strict=True):
        expected = math.exp(-sum(s * math.log(s) for s in shares if s > 0))
        assert effective_prototypes(_plan(), owners=owners) == pytest.approx(expected)


def test_effective_number_at_its_ends() -> None:
    assert effective_prototypes(np.full((6, 4), 0.25)) == pytest.approx(4)
    assert effective_prototypes(np.eye(4)[[1, 1, 1]]) == pytest.approx(1)
    assert effective_prototypes(np.eye(4)[[0, 2, 0, 2]], owners=True) == pytest.approx(2)


def test_transport_uses_all_and_softmax_does_not() -> None:
    tokens = torch.randn(1, 60, 8) + 3
    prototypes = torch.cat([torch.randn(3, 8) + 3, torch.randn(3, 8) - 3])
    plans = {"transport": SinkhornAssign(n_iters=200).plan(tokens, prototypes)}
    plans["softmax"] = SoftmaxAssign().plan(tokens, prototypes)
    assert effective_prototypes(plans["transport"]) == pytest.approx(6, abs=0.01)
    assert effective_prototypes(plans["softmax"]) < 3.5
    figure = prototype_usage(plans)
    said = [axes.get_title("left") for axes in figure.axes]
    assert said[0].startswith("transport, 6 prototypes: 0 with no token,\nin effect 6.0 by mass")
    assert said[1].startswith("softmax, 6 prototypes: 3 with no token")
    for axes in figure.axes:  # one axis for both, and nothing above it
        assert axes.get_ylim() == figure.axes[0].get_ylim()
        assert axes.get_ylim()[1] >= max(bar.get_height() for bar in axes.patches)
        assert axes.get_ylim()[0] == 0


def test_bad_input_is_named() -> None:
    with pytest.raises(ShapeError, match=r"plan: expected \(n k\)"):
        effective_prototypes([1.0, 2.0])
    with pytest.raises(ShapeError, match=r"plan of a: expected \(b n k\)"):
        prototype_usage({"a": np.ones((1, 1, 2, 2))})
    with pytest.raises(ShapeError, match="plan"):
        effective_prototypes(np.ones((0, 3)))
    for wrong in (-np.ones((2, 2)), np.zeros((2, 2))):
        with pytest.raises(DataError, match="plan: expected shares of 0 or more"):
            effective_prototypes(wrong)
    with pytest.raises(DataError, match="plan: expected finite"):
        effective_prototypes([[np.inf, 1.0]])
    with pytest.raises(ValueError, match="plans: expected one or more"):
        prototype_usage({})
