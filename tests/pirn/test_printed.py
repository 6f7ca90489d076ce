"""The paper's numbers as data: what is printed, and where the print contradicts itself."""

from __future__ import annotations

from statistics import fmean

import pytest
from pirn.studies.printed import printed

ROWS = {1: 56, 2: 5, 3: 9, 4: 4, 5: 4, 6: 4, 7: 4, 8: 7 * 21 + 3, 9: 4, 10: 3, 11: 7 * 11 + 6 * 11}


def _one(table: int, method: str, **where: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for p in printed(table):
        if p.method == method and all(getattr(p, name) == value for name, value in where.items()):
            found |= p.metrics
    return found


@pytest.mark.parametrize("table", ROWS)
def test_every_row_is_there_and_plausible(table: int) -> None:
    rows = printed(table)
    assert len(rows) == ROWS[table]
    assert {row.table for row in rows} == {table}
    for row in rows:
        assert row.metrics or row.method == "3D-ADNAS"
        assert all(0 <= value <= 1 for name, value in row.metrics.items() if name not in ("gflops", "latency_ms"))
    assert printed(12) == []


def test_numbers_as_printed() -> None:
    assert _one(1, "Ours", shots="10", dataset="MVTec 3D-AD") == dict(image_auroc=0.922, pixel_auroc=0.991, aupro=0.966)
    assert _one(1, "3D-ADNAS", shots="10", dataset="Eyecandies") == dict(image_auroc=0.807, pixel_auroc=0.869)
    assert _one(2, "BPA +, APR +, MNC -")["aupro"] == 0.947
    assert _one(3, "Surface Normals-only", shots="all")["f1_max"] == 0.946
    assert _one(4, "FIND") == dict(image_auroc=0.921, gflops=728.46, latency_ms=76.09)
    assert _one(5, "K = 100") == dict(image_auroc=0.901, pixel_auroc=0.984, aupro=0.950, f1_max=0.947)
    assert _one(6, "L = 2")["pixel_auroc"] == 0.994
    assert _one(7, "Top-k Averaging")["image_auroc"] == 0.921
    assert _one(9, "Sigmoid Attention")["aupro"] == 0.954
    assert _one(10, "DINOv2 ViT-L/14")["aupro"] == 0.970
    assert _one(11, "PIRN", category="foam") == dict(image_auroc=0.993, aupro=0.971)
    assert _one(11, "Shape-Guided", category="mean") == dict(image_auroc=0.947, aupro=0.976)
    assert _one(8, "PointMAE", category="lego_propeller") == dict(image_auroc=0.348, pixel_auroc=0.620)


def test_the_misprint_of_table_8_is_not_quoted_as_pirn() -> None:
    assert _one(8, "D3M", category="mean") == dict(image_auroc=0.890, pixel_auroc=0.937)
    assert _one(8, "PIRN", category="mean") == dict(image_auroc=0.873, pixel_auroc=0.961)
    assert all("D3M" in row.note for row in printed(8))


def test_means_are_those_of_the_categories_but_for_those_named() -> None:
    """Of Tables 8 and 11; a truncated mean is taken for one."""
    off = set()
    for table in (8, 11):
        numbers: dict[tuple[str, str], dict[str, float]] = {}
        for row in printed(table):
            for metric, value in row.metrics.items():
                numbers.setdefault((row.method, metric), {})[row.category] = value
        for (method, metric), of in numbers.items():
            mean = fmean(value for category, value in of.items() if category != "mean") if len(of) > 3 else None
            if mean is not None and "mean" in of and abs(mean - of["mean"]) > 0.001:
                off.add((table, method, metric))
    assert off == {
        (8, "AST", "image_auroc"),
        (8, "AST", "pixel_auroc"),
        (11, "BTF", "image_auroc"),
        (11, "BTF", "aupro"),
        (11, "CFM", "aupro"),
        (11, "Shape-Guided", "image_auroc"),
    }
