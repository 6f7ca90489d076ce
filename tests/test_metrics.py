from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label
from sklearn.metrics import precision_recall_curve, roc_auc_score

from protoad.errors import DataError, ShapeError
from protoad.metrics import DetectionMetrics, aupro, evaluate_maps, f1_max, image_auroc, pixel_auroc


def pairwise_auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    pairs = [(p, n) for p in scores[truth] for n in scores[~truth]]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


def flood_regions(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """8-connected components by flood fill."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while left:
        stack = [left.pop()]
        region = set(stack)
        while stack:
            y, x = stack.pop()
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    region.add(near)
                    stack.append(near)
        regions.append(region)
    return regions


def brute_aupro(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """One threshold at a time; area as an integral of exact linear pieces."""
    regions = [(i, region) for i, mask in enumerate(masks) for region in flood_regions(mask)]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        fpr = np.count_nonzero(maps[~masks] >= threshold) / np.count_nonzero(~masks)
        found = [np.mean([maps[i][pixel] >= threshold for pixel in region]) for i, region in regions]
        points.append((fpr, float(np.mean(found))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (y0 + y_end) / 2 * (end - x0)
    return area / limit


def brute_mvtec(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """Rank thresholds from the definition, integrated on the union of the curve's points and the limit."""
    normal = np.sort(maps[~masks])
    regions = []
    for image, mask in zip(maps, masks, strict=True):
        labelled, count = label(mask, np.ones((3, 3)))
        regions += [image[labelled == region] for region in range(1, count + 1)]
    points = {}
    for position in np.linspace(0, len(normal) - 1, num=100, dtype=int):
        found = [np.mean(region > normal[position]) for region in regions]
        points[1 - (position + 1) / len(normal)] = np.mean(found)
    points[1.0] = 1.0
    x = np.array(sorted(points))
    y = np.array([points[v] for v in x])
    grid = np.append(x[x < limit], limit)
    heights = np.interp(grid, x, y)
    return float(np.sum(np.diff(grid) * (heights[1:] + heights[:-1]) / 2) / limit)


def scene(seed: int, *, b: int = 5, size: int = 12, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Random maps and masks with several regions, diagonal touches included; few levels make heavy ties."""
    rng = np.random.default_rng(seed)
    masks = rng.random((b, size, size)) < 0.15
    masks[0] = False
    maps = rng.normal(size=masks.shape) + masks
    if levels is not None:
        maps = np.round(maps * levels / 4)
    return maps, masks


scored_labels = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=25).filter(
    lambda rows: 0 < sum(truth for _, truth in rows) < len(rows)
)


@given(scored_labels)
@settings(max_examples=150, deadline=None)
def test_image_metrics_against_sklearn_and_brute_force(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in rows], dtype=float)
    truth = np.array([t for _, t in rows])
    auroc = image_auroc(scores, truth)
    assert auroc == pytest.approx(pairwise_auroc(scores, truth), abs=1e-12)
    assert auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)

    best = f1_max(scores, truth)
    by_threshold = []
    for threshold in set(scores.tolist()):
        called = scores >= threshold
        hits = np.count_nonzero(called & truth)
        by_threshold.append(2 * hits / (np.count_nonzero(called) + np.count_nonzero(truth)))
    assert best == pytest.approx(max(by_threshold), abs=1e-12)
    precision, recall, _ = precision_recall_curve(truth, scores)
    with np.errstate(invalid="ignore"):
        assert best == pytest.approx(np.nanmax(2 * precision * recall / (precision + recall)), abs=1e-12)


@pytest.mark.parametrize("levels", [None, 16, 3])
@pytest.mark.parametrize("seed", range(3))
def test_pixel_auroc_against_sklearn(seed: int, levels: int | None) -> None:
    maps, masks = scene(seed, levels=levels)
    assert pixel_auroc(maps, masks) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)


@pytest.mark.parametrize("limit", [1.0, 0.3, 0.05, 0.001])
@pytest.mark.parametrize("levels", [None, 16, 3])
@pytest.mark.parametrize("seed", range(3))
def test_exact_aupro_against_brute_force(seed: int, levels: int | None, limit: float) -> None:
    maps, masks = scene(seed, levels=levels)
    assert aupro(maps, masks, fpr_limit=limit) == pytest.approx(brute_aupro(maps, masks, limit), abs=1e-12)


@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([0.01, 0.3, 0.7, 1.0]))
@settings(max_examples=40, deadline=None)
def test_exact_aupro_on_small_random_scenes(seed: int, levels: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, levels, (2, 4, 5)).astype(float)
    masks = rng.random((2, 4, 5)) < 0.3
    masks[0, 0, 0], masks[0, 3, 4] = True, False
    value = aupro(maps, masks, fpr_limit=limit)
    assert value == pytest.approx(brute_aupro(maps, masks, limit), abs=1e-12)
    assert 0 <= value <= 1


@pytest.mark.parametrize("limit", [1.0, 0.3, 0.05, 0.001])
@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("size", [3, 12, 40])
def test_mvtec100_against_its_definition(size: int, levels: int | None, limit: float) -> None:
    maps, masks = scene(1, size=size, levels=levels)
    value = aupro(maps, masks, fpr_limit=limit, protocol="mvtec100")
    assert value == pytest.approx(brute_mvtec(maps, masks, limit), abs=1e-12)


def test_mvtec100_is_close_at_large_limits_and_coarse_at_small_ones() -> None:
    maps, masks = scene(2, b=8, size=48)
    maps[masks] += 2
    exact, coarse = aupro(maps, masks), aupro(maps, masks, protocol="mvtec100")
    assert coarse == pytest.approx(exact, abs=0.02)
    small_exact = aupro(maps, masks, fpr_limit=0.01)
    assert aupro(maps, masks, fpr_limit=0.01, protocol="mvtec100") < 0.95 * small_exact


def test_aupro_counts_regions_not_pixels_and_joins_diagonals() -> None:
    maps, masks = np.zeros((1, 10, 10)), np.zeros((1, 10, 10), dtype=bool)
    masks[0, :4, :4] = True
    masks[0, 8, 8] = masks[0, 9, 9] = True  # one region: they touch at a corner
    maps[0, 8, 8] = maps[0, 9, 9] = 1.0
    # Half of the regions from the first threshold on, then a straight line to (1, 1).
    assert aupro(maps, masks, fpr_limit=1.0) == pytest.approx(0.75)
    maps[0, 9, 9] = 0.0
    assert aupro(maps, masks, fpr_limit=1.0) == pytest.approx(0.625)


def test_good_images_count_as_false_positives() -> None:
    maps, masks = scene(0, b=3)
    worse = np.concatenate([maps, np.full_like(maps[:1], 99.0)])
    with_good = np.concatenate([masks, np.zeros_like(masks[:1])])
    assert aupro(worse, with_good) < aupro(maps, masks)
    assert pixel_auroc(worse, with_good) < pixel_auroc(maps, masks)


@pytest.mark.parametrize("protocol", ["exact", "mvtec100"])
def test_perfect_and_inverted_maps(protocol: str) -> None:
    masks = scene(0)[1]
    assert aupro(masks.astype(np.float32), masks, protocol=protocol) == pytest.approx(1.0)
    assert aupro(-masks.astype(np.float32), masks, protocol=protocol) == 0.0


def test_constant_maps_are_worth_chance() -> None:
    masks = scene(0)[1]
    constant = np.full(masks.shape, 0.7, dtype=np.float32)
    assert pixel_auroc(constant, masks) == 0.5
    assert aupro(constant, masks) == pytest.approx(0.15)
    assert aupro(constant, masks, protocol="mvtec100") == 0.0
    truth = np.array([0, 0, 0, 1])
    assert image_auroc(np.ones(4), truth) == 0.5
    assert f1_max(np.ones(4), truth) == pytest.approx(0.4)


@pytest.mark.parametrize("truth", [np.zeros(4, dtype=bool), np.ones(4, dtype=bool), np.zeros(0, dtype=bool)])
def test_one_class_only_is_undefined(truth: np.ndarray) -> None:
    scores = np.arange(len(truth), dtype=float)
    assert math.isnan(image_auroc(scores, truth))
    assert math.isnan(f1_max(scores, truth))
    maps, masks = scores.reshape(-1, 2, 2), truth.reshape(-1, 2, 2)
    assert math.isnan(pixel_auroc(maps, masks))
    assert math.isnan(aupro(maps, masks))
    assert math.isnan(aupro(maps, masks, protocol="mvtec100"))


@pytest.mark.parametrize("transform", [np.cbrt, np.exp, lambda v: 1e6 * v - 3, np.arctan])
def test_only_the_order_of_scores_matters(transform) -> None:
    maps, masks = scene(3, levels=16)
    scores, truth = maps.max(axis=(1, 2)), masks.any(axis=(1, 2))
    assert evaluate_maps(transform(scores), truth, transform(maps), masks) == pytest.approx(
        evaluate_maps(scores, truth, maps, masks), abs=1e-12
    )


def test_evaluate_maps_collects_the_four() -> None:
    maps, masks = scene(4)
    scores, truth = maps.max(axis=(1, 2)), masks.any(axis=(1, 2)).astype(int)
    metrics = evaluate_maps(scores, truth, maps.astype(np.float32), masks.astype(np.uint8))
    assert metrics == DetectionMetrics(
        image_auroc=image_auroc(scores, truth),
        pixel_auroc=pixel_auroc(maps.astype(np.float32), masks),
        aupro=aupro(maps.astype(np.float32), masks),
        f1_max=f1_max(scores, truth),
    )
    assert all(type(value) is float and 0 <= value <= 1 for value in metrics)


def test_inputs_stay_as_they_were() -> None:
    maps, masks = scene(5)
    kept_maps, kept_masks = maps.copy(), masks.copy()
    evaluate_maps(maps.max(axis=(1, 2)), masks.any(axis=(1, 2)), maps, masks)
    assert np.array_equal(maps, kept_maps)
    assert np.array_equal(masks, kept_masks)


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.01, float("nan")])
def test_bad_limit(limit: float) -> None:
    with pytest.raises(ValueError, match="fpr_limit"):
        aupro(*scene(0), fpr_limit=limit)


def test_unknown_protocol() -> None:
    with pytest.raises(ValueError, match=r"mvtec100.*'fast'"):
        aupro(*scene(0), protocol="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", [pixel_auroc, aupro])
def test_bad_maps(metric) -> None:
    maps, masks = scene(0)
    with pytest.raises(ShapeError, match=r"maps and masks.*\(5, 12, 12\).*\(4, 12, 12\)"):
        metric(maps, masks[:4])
    with pytest.raises(ShapeError, match=r"maps: expected \(b y x\), got \(12, 12\)"):
        metric(maps[0], masks[0])
    with pytest.raises(DataError, match=r"masks.*0/1.*found 255"):
        metric(maps, masks.astype(np.uint8) * 255)
    for bad in (np.nan, np.inf, -np.inf):
        broken = maps.copy()
        broken[1, 2, 3] = bad
        with pytest.raises(DataError, match=r"maps.*1 of 720 NaN or infinite"):
            metric(broken, masks)


@pytest.mark.parametrize("metric", [image_auroc, f1_max])
def test_bad_scores(metric) -> None:
    with pytest.raises(ShapeError, match=r"scores and labels.*\(3,\).*\(2,\)"):
        metric(np.ones(3), np.ones(2))
    with pytest.raises(ShapeError, match=r"\(b\)"):
        metric(np.ones((2, 2)), np.ones((2, 2)))
    with pytest.raises(DataError, match=r"scores.*1 of 2"):
        metric(np.array([1.0, np.nan]), np.array([0, 1]))
    with pytest.raises(DataError, match=r"labels.*found 2"):
        metric(np.ones(2), np.array([0, 2]))


def test_evaluate_maps_names_the_odd_one() -> None:
    maps, masks = scene(0)
    with pytest.raises(ShapeError, match=r"maps and labels.*\(5, 12, 12\).*\(4,\)"):
        evaluate_maps(np.ones(4), np.ones(4), maps, masks)
