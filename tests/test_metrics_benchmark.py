"""The benchmark of metrics is fair only if its rivals compute the same, and its page is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import metrics as benchmark
import pytest

from protoad.metrics import aupro

RESULTS = Path(benchmark.__file__).parent / "results" / "metrics.json"


@pytest.fixture(scope="module")
def scene() -> benchmark.Scene:
    return benchmark.scene(12, 64)


def test_rivals_compute_aupro(scene: benchmark.Scene) -> None:
    exact = aupro(scene.maps, scene.masks)
    assert 0.3 < exact < 0.9
    assert benchmark.sorted_curve(scene) == pytest.approx(exact, abs=1e-12)
    assert benchmark.streamed(scene) == pytest.approx(exact, abs=1e-12)
    assert benchmark.threshold_loop(scene, steps=2000) == pytest.approx(exact, abs=1e-3)
    anomalib = benchmark.load_anomalib()
    if anomalib is not None:
        assert anomalib(scene) == pytest.approx(exact, abs=1e-5)


def test_a_case_has_a_row_for_every_way() -> None:
    case = benchmark.measure_case(6, 48, rounds=1)
    assert [row["name"] for row in case["rows"]][:2] == [benchmark.BASELINE, "protoad, accumulator"]
    assert len(case["rows"]) >= 4
    assert all(row["ratio"][1] > 0 for row in case["rows"])
    assert case["max_error"] == case["pixel_auroc_off"] == 0


def test_the_page_is_that_of_the_results() -> None:
    assert benchmark.PAGE.read_text() == benchmark.page(json.loads(RESULTS.read_text())), (
        "run python benchmarks/metrics.py"
    )
