"""The comparison is fair only if all rivals compute the same, and honest only if its page is what was measured."""

from __future__ import annotations

import measure
import page
import pytest
import rivals
import sections
import torch

from protoad.ops.sinkhorn_reference import sinkhorn_reference

installed = [solver for solver in rivals.RIVALS if not rivals.missing(solver.needs)]
with_same_iterates = [solver for solver in installed if solver.same_iterates]
with_gradient = [solver for solver in with_same_iterates if solver.differentiable]
both_layouts = pytest.mark.parametrize("layout", ["tokens first", "prototypes first"])


@pytest.fixture
def cost() -> torch.Tensor:
    return sections.cosine_cost(*sections.features(3, 40, 7, "cpu"), "tokens first")


@pytest.mark.parametrize("solver", with_same_iterates, ids=lambda solver: solver.name)
@both_layouts
def test_rivals_walk_through_the_iterates_of_the_reference(solver, layout, cost) -> None:
    plan = solver.solve(sections.laid_out(cost, layout), 0.1, 3)
    truth = sinkhorn_reference(cost.double(), epsilon=0.1, n_iters=3).plan
    torch.testing.assert_close(plan.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", with_gradient, ids=lambda solver: solver.name)
@both_layouts
def test_rivals_have_the_gradient_of_the_reference(solver, layout, cost) -> None:
    weight = torch.randn(cost.shape)
    leaf, exact = sections.laid_out(cost, layout).requires_grad_(), cost.double().requires_grad_()
    (gradient,) = torch.autograd.grad(solver.differentiable(leaf, 0.1, 3), leaf, weight)
    plan = sinkhorn_reference(exact, epsilon=0.1, n_iters=3).plan
    (truth,) = torch.autograd.grad(plan, exact, weight.double())
    torch.testing.assert_close(gradient.double(), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(rivals.missing("geomloss"), reason="geomloss is not installed")
def test_geomloss_converges_to_the_same_plan() -> None:
    assert sections.converged_error(rivals.GEOMLOSS.solve, False, "cpu") < 5e-3


@pytest.mark.skipif(rivals.missing("ot"), reason="POT is not installed")
def test_pot_stops_by_its_own_rule(cost) -> None:
    _, norm = sections.iterations_needed(cost, 0.1, 1e-2)
    plan = rivals.pot_exp_with_tolerance(cost, epsilon=0.1, tolerance=norm)
    assert sections.marginal_error(plan) < 1.1e-2


def test_the_iterations_needed_are_enough_and_none_too_many(cost) -> None:
    needed, _ = sections.iterations_needed(cost, 0.1, 1e-2)
    plans = [sinkhorn_reference(cost.double(), epsilon=0.1, n_iters=needed - less).plan for less in (0, 1)]
    assert sections.marginal_error(plans[0]) <= 1e-2 < sections.marginal_error(plans[1])


@pytest.mark.parametrize("section", sections.SECTIONS)
def test_sections_time_protoad_and_its_rivals(section) -> None:
    case = next(sections.SECTIONS[section](sections.Settings("cpu", threads=1, quick=True)))
    assert len(case["rows"]) >= 4
    for row in case["rows"]:
        assert "failed" not in row, row
        assert row["ratio"][1] > 0


def test_what_is_wrong_is_not_timed() -> None:
    _, clock = measure.clock_for("cpu", 1)
    entries = [
        measure.Entry("right", lambda layout: lambda: 1.0, lambda output: abs(output - 1), 1e-3),
        measure.Entry("wrong", lambda layout: lambda: 1.1, lambda output: abs(output - 1), 1e-3),
        measure.Entry("not a number", lambda layout: lambda: float("nan"), lambda output: abs(output - 1), 1e-3),
    ]
    right, wrong, nan = measure.contest(entries, "right", clock, seconds=0.01, graphs=False)
    assert right["ratio"] == [1, 1, 1]
    assert wrong == {"name": "wrong", "failed": "off by 1.0e-01, more than 1e-03"}
    assert "failed" in nan


def test_ratios_compare_times_of_the_same_round() -> None:
    """On a clock that slows down from round to round, with a baseline that is the first to spend its budget."""
    started = {"ours": 0, "theirs": 0}

    def call(name: str) -> str:
        started[name] += 1
        return name

    def clock(call, repeats: int) -> float:
        name = call()
        return (4 if name == "ours" else 1) * 2.0 ** started[name]

    calls = {name: lambda name=name: call(name) for name in started}
    samples = measure.race(calls, {"ours": 1, "theirs": 1}, "ours", clock, seconds=100)
    assert len(samples["ours"]) == len(samples["theirs"]) > 5
    assert {slow / fast for fast, slow in zip(samples["ours"], samples["theirs"], strict=False)} == {0.25}


def test_saved_bytes_counts_a_storage_once() -> None:
    x = torch.ones(8, requires_grad=True)
    assert measure.saved_bytes(lambda: x.exp()) == 32
    assert measure.saved_bytes(lambda: x[:4] * x[4:]) == 32


REPORT = {
    "device": "cpu",
    "quick": False,
    "date": "2001-02-03",
    "commit": "abc",
    "machine": {"processor": "abacus", "geomloss": "not installed"},
    "cases": [
        {
            "section": "forward",
            "shape": [1, 2, 3],
            "threads": 1,
            "unit": "CPU time",
            "baseline": "protoad",
            "rows": [
                {"name": "protoad", "ms": [1, 2, 3], "ratio": [1, 1, 1]},
                {"name": "fast", "ms": [1, 1, 1], "ratio": [0.4, 0.5, 0.6]},
                {"name": "slow", "ms": [1, 20, 30], "ratio": [9, 10, 11]},
                {"name": "broken", "failed": "off by 1, more than 0"},
                {"name": "softmax, no transport", "ms": [1, 1, 1], "ratio": [0.1, 0.1, 0.1]},
            ],
        }
    ],
}


def test_the_page_says_who_is_faster_and_what_was_not_measured() -> None:
    text = page.page([REPORT])
    assert "| 1 2 3 | 2.00 | 0.50 | 10.0 | - | 0.10 |" in text
    assert "faster in 0 of 1" in text
    assert "abacus" in text
    assert "Not measured. `python benchmarks/compare.py --device cuda`" in text


@pytest.mark.skipif(not page.PAGE.exists(), reason="nothing was measured yet")
def test_the_page_is_that_of_the_results() -> None:
    assert page.PAGE.read_text() == page.page(page.read(page.RESULTS)), "run python benchmarks/page.py"
