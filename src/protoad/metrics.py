"""The field's four metrics of a detector, exact under ties, from numpy arrays.

Scores may have any scale: every metric depends on their order only, and higher means more anomalous. A metric
that is undefined (one class only, no defect pixel) is NaN, never a made-up number.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from protoad.errors import DataError, ShapeError

__all__ = ["DetectionMetrics", "aupro", "evaluate_maps", "f1_max", "image_auroc", "pixel_auroc"]

_NUM_RANKS = 100  # thresholds of the "mvtec100" protocol


class DetectionMetrics(NamedTuple):
    """What the field reports about one category; each in [0, 1], or NaN where undefined."""

    image_auroc: float
    pixel_auroc: float
    aupro: float
    f1_max: float


def evaluate_maps(
    image_scores: np.ndarray, labels: np.ndarray, maps: np.ndarray, masks: np.ndarray
) -> DetectionMetrics:
    """All four metrics of one category's test images (AUPRO exact, up to a false-positive rate of 0.3).

    Args:
        image_scores: (b) one score per image.
        labels: (b) bool or 0/1, true for a defective image.
        maps: (b y x) one score per pixel, comparable between images.
        masks: (b y x) bool or 0/1, true on the defect.

    Raises:
        ShapeError: if shapes disagree.
        DataError: if a score is NaN or infinite, or labels or masks are not 0/1.
    """
    image_scores, labels = _check(image_scores, labels, names=("image_scores", "labels"), axes="b")
    maps, masks = _check(maps, masks, names=("maps", "masks"), axes="b y x")
    if len(maps) != len(labels):
        raise ShapeError(
            f"maps and labels: expected one map per image, got maps {maps.shape} and labels {labels.shape}"
        )
    return DetectionMetrics(
        image_auroc=image_auroc(image_scores, labels),
        pixel_auroc=pixel_auroc(maps, masks),
        aupro=aupro(maps, masks),
        f1_max=f1_max(image_scores, labels),
    )


def image_auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The chance that a defective image scores higher than a good one; a tie counts half.

    Args:
        scores: (b) one score per image.
        labels: (b) bool or 0/1, true for a defective image.

    Returns:
        Area under the ROC curve in [0, 1]; NaN if the labels hold one class only.

    Raises:
        ShapeError: if shapes disagree.
        DataError: if a score is NaN or infinite, or labels are not 0/1.

    Examples:
        >>> image_auroc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([0, 0, 1, 1]))
        0.875
    """
    return _auroc(*_check(scores, labels, names=("scores", "labels"), axes="b"))


def pixel_auroc(maps: np.ndarray, masks: np.ndarray) -> float:
    """The chance that a defect pixel scores higher than a normal one, over all pixels of all images.

    Args:
        maps: (b y x) one score per pixel, comparable between images.
        masks: (b y x) bool or 0/1, true on the defect.

    Returns:
        Area under the ROC curve in [0, 1]; NaN if no pixel, or every pixel, is marked.

    Raises:
        ShapeError: if shapes disagree.
        DataError: if a score is NaN or infinite, or masks are not 0/1.
    """
    maps, masks = _check(maps, masks, names=("maps", "masks"), axes="b y x")
    return _auroc(maps.ravel(), masks.ravel())


def aupro(
    maps: np.ndarray,
    masks: np.ndarray,
    *,
    fpr_limit: float = 0.3,
    protocol: Literal["exact", "mvtec100"] = "exact",
) -> float:
    """Area under the per-region overlap: how much of each defect is found, however small.

    The curve gives, for each threshold, the overlap averaged over all defect regions (8-connected components
    of all masks) against the false-positive rate over all unmarked pixels of all images, good ones included.
    It is integrated by trapezoids up to `fpr_limit`, interpolated linearly there, and the area is divided by
    `fpr_limit`.

    Args:
        maps: (b y x) one score per pixel, comparable between images.
        masks: (b y x) bool or 0/1, true on the defect.
        fpr_limit: false-positive rate at which integration stops, in (0, 1].
        protocol: "exact" has one curve point per distinct score. "mvtec100" reproduces published numbers:
            thresholds at 100 equidistant ranks of the unmarked pixels' scores, false-positive rates read off
            the rank. They move in steps of 1 %, so it is coarse for limits below about 0.1, and it is wrong
            under ties (a constant map gets 0, where its true curve, the diagonal, is worth `fpr_limit` / 2).

    Returns:
        A number in [0, 1]; NaN if no pixel, or every pixel, is marked.

    Raises:
        ShapeError: if shapes disagree.
        DataError: if a score is NaN or infinite, or masks are not 0/1.
        ValueError: if `fpr_limit` or `protocol` is not one of the above.
    """
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit: expected a rate above 0 and at most 1, got {fpr_limit}")
    if protocol not in ("exact", "mvtec100"):
        raise ValueError(f"protocol: expected 'exact' or 'mvtec100', got {protocol!r}")
    maps, masks = _check(maps, masks, names=("maps", "masks"), axes="b y x")
    if masks.all() or not masks.any():
        return float("nan")
    curve = _exact_curve if protocol == "exact" else _rank_curve
    fpr, overlap = curve(maps, masks, _label_regions(masks))
    return _area_up_to(fpr, overlap, fpr_limit) / fpr_limit


def f1_max(scores: np.ndarray, labels: np.ndarray) -> float:
    """The best F1 score any threshold reaches, for images.

    Every distinct score is tried as a threshold (an image is called defective at or above it), without the
    small constants some evaluation codes add to the denominator.

    Args:
        scores: (b) one score per image.
        labels: (b) bool or 0/1, true for a defective image.

    Returns:
        A number in [0, 1]; NaN if the labels hold one class only.

    Raises:
        ShapeError: if shapes disagree.
        DataError: if a score is NaN or infinite, or labels are not 0/1.

    Examples:
        >>> f1_max(np.array([0.1, 0.4, 0.3, 0.9]), np.array([0, 0, 1, 1]))
        0.8
    """
    scores, labels = _check(scores, labels, names=("scores", "labels"), axes="b")
    if labels.all() or not labels.any():
        return float("nan")
    order = np.argsort(-scores)
    ends = _tie_ends(scores[order])
    true_positives = np.cumsum(labels[order])[ends]
    return float(np.max(2 * true_positives / (ends + 1 + labels.sum())))


def _check(
    scores: np.ndarray, truth: np.ndarray, *, names: tuple[str, str], axes: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores as floats and truth as bool, both checked."""
    scores, truth = np.asarray(scores), np.asarray(truth)
    if scores.ndim != len(axes.split()):
        raise ShapeError(f"{names[0]}: expected ({axes}), got {scores.shape}")
    if truth.shape != scores.shape:
        raise ShapeError(
            f"{names[0]} and {names[1]}: expected equal shapes ({axes}), got {scores.shape} and {truth.shape}"
        )
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    bad = scores.size - np.count_nonzero(np.isfinite(scores))
    if bad:
        raise DataError(f"{names[0]}: expected finite scores, found {bad} of {scores.size} NaN or infinite")
    if truth.dtype != np.bool_:
        allowed = (truth == 0) | (truth == 1)
        if not allowed.all():
            found = truth[~allowed].flat[0]
            raise DataError(f"{names[1]}: expected bool or 0/1, found {found}; turn values into 0/1 first")
        truth = truth == 1
    return scores, truth


def _auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mann-Whitney's U over its maximum, from counts of smaller and of not larger negatives (mid-ranks)."""
    negatives, positives = np.sort(scores[~truth]), np.sort(scores[truth])
    if not negatives.size or not positives.size:
        return float("nan")
    below = np.searchsorted(negatives, positives, side="left").sum(dtype=np.int64)
    not_above = np.searchsorted(negatives, positives, side="right").sum(dtype=np.int64)
    return float(int(below) + int(not_above)) / (2 * negatives.size * positives.size)


def _label_regions(masks: np.ndarray) -> np.ndarray:
    """(b y x) int: 0 off the defects, 1..r for the r regions of all images."""
    from scipy.ndimage import label

    regions = np.zeros(masks.shape, dtype=np.int64)
    found = 0
    for index in np.flatnonzero(masks.any(axis=(1, 2))):
        labelled, count = label(masks[index], structure=np.ones((3, 3), dtype=int))
        regions[index] = np.where(labelled > 0, labelled + found, 0)
        found += count
    return regions


def _exact_curve(maps: np.ndarray, masks: np.ndarray, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False-positive rate and mean overlap, rising, one point per distinct score and (0, 0)."""
    sizes = np.bincount(regions.ravel())[1:]
    share = np.concatenate([[0.0], 1 / (sizes * len(sizes))])  # what a pixel adds to the mean overlap
    order = np.argsort(-maps.ravel())
    ends = _tie_ends(maps.ravel()[order])
    false_positives = np.cumsum(~masks.ravel()[order])[ends]
    overlap = np.cumsum(share[regions.ravel()[order]])[ends]
    # Dividing by the last sums, not by what they should be, ends the curve in (1, 1) despite rounding.
    fpr, overlap = false_positives / false_positives[-1], overlap / overlap[-1]
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], overlap])


def _rank_curve(maps: np.ndarray, masks: np.ndarray, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same at equidistant ranks of the unmarked pixels, as the evaluation code of MVTec 3D-AD does it."""
    normal = np.sort(maps[~masks])
    positions = np.linspace(0, normal.size - 1, num=_NUM_RANKS, dtype=int)[::-1]
    thresholds = normal[positions]
    sizes = np.bincount(regions[masks])[1:]
    by_region = np.split(maps[masks][np.argsort(regions[masks], kind="stable")], np.cumsum(sizes)[:-1])
    missed = [np.searchsorted(np.sort(region), thresholds, side="right") / region.size for region in by_region]
    fpr = 1 - (positions + 1) / normal.size
    return np.append(fpr, 1.0), np.append(1 - np.mean(missed, axis=0), 1.0)


def _area_up_to(x: np.ndarray, y: np.ndarray, limit: float) -> float:
    """Trapezoids under the points with x at most `limit`, plus the cut piece of the next one."""
    inside = int(np.searchsorted(x, limit, side="right"))
    area = float(np.sum(np.diff(x[:inside]) * (y[1:inside] + y[: inside - 1])) / 2)
    if inside < len(x):
        x0, x1, y0, y1 = x[inside - 1], x[inside], y[inside - 1], y[inside]
        at_limit = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += float(0.5 * (y0 + at_limit) * (limit - x0))
    return min(max(area, 0.0), limit)  # rounding may leave the range by an ulp


def _tie_ends(descending: np.ndarray) -> np.ndarray:
    """Indices of the last of each run of equal values."""
    return np.append(np.flatnonzero(descending[1:] != descending[:-1]), len(descending) - 1)
