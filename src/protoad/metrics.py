"""The field's four metrics of a detector, exact under ties, from numpy arrays.

Scores may have any scale: every metric depends on their order only, and higher means more anomalous. A metric
that is undefined (one class only, no defect pixel) is NaN, never a made-up number.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from protoad._ranks import Defects, Standing, ThinnedSample, from_keys, normal_keys, stand_in_blocks
from protoad.errors import DataError, ShapeError

__all__ = [
    "DetectionMetrics",
    "MetricsAccumulator",
    "ProCurve",
    "RocCurve",
    "aupro",
    "evaluate_maps",
    "f1_max",
    "image_auroc",
    "pixel_auroc",
    "pro_curve",
    "roc_curve",
]

_FPR_LIMIT = 0.3
_NUM_RANKS = 100  # thresholds of the "mvtec100" protocol


class DetectionMetrics(NamedTuple):
    """What the field reports about one category; each in [0, 1], or NaN where undefined."""

    image_auroc: float
    pixel_auroc: float
    aupro: float
    f1_max: float


class RocCurve(NamedTuple):
    """A receiver operating characteristic from (0, 0) to (1, 1), straight between its points.

    Attributes:
        fpr: (p) false-positive rate, rising.
        tpr: (p) true-positive rate, rising.
        thresholds: (p) falling; what scores at or above one is called defective. Begins with inf and ends with -inf,
            or the lowest score if that is a defect's.
    """

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray


class ProCurve(NamedTuple):
    """Per-region overlap from (0, 0) to (1, 1), straight between its points.

    Attributes:
        fpr: (p) false-positive rate over all unmarked pixels, rising.
        pro: (p) overlap averaged over the regions, rising.
        thresholds: (p) as in `RocCurve`.
    """

    fpr: np.ndarray
    pro: np.ndarray
    thresholds: np.ndarray


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
    _check_lengths(maps, labels)
    return _metrics(image_scores, labels, _stand(maps, masks))


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
    return _auroc(_stand(*_check(scores, labels, names=("scores", "labels"), axes="b"), regions=False))


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
    return _auroc(_stand(*_check(maps, masks, names=("maps", "masks"), axes="b y x"), regions=False))


def aupro(
    maps: np.ndarray,
    masks: np.ndarray,
    *,
    fpr_limit: float = _FPR_LIMIT,
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
    if protocol == "exact":
        return _aupro(_stand(maps, masks), fpr_limit)
    if masks.all() or not masks.any():
        return float("nan")
    return _area_up_to(*_rank_curve(maps, masks), fpr_limit) / fpr_limit


def roc_curve(scores: np.ndarray, labels: np.ndarray, *, max_points: int | None = None) -> RocCurve:
    """The curve that `image_auroc` and `pixel_auroc` are the area of.

    Args:
        scores: of images or pixels, of any shape.
        labels: bool or 0/1 of the same shape, true for what is defective.
        max_points: how many points the curve may have, spread evenly along it; None gives all, and with them the
            exact area.

    Raises:
        ShapeError: if shapes disagree.
        DataError: if a score is NaN or infinite, or labels are not 0/1 or of one class only.
        ValueError: if `max_points` is below 2.

    Examples:
        >>> roc_curve(np.array([0.1, 0.4, 0.4, 0.9]), np.array([0, 0, 1, 1])).fpr
        array([0. , 0. , 0.5, 1. ])
    """
    scores, labels = _check(scores, labels, names=("scores", "labels"))
    return _roc_curve(_stand(np.atleast_1d(scores), np.atleast_1d(labels), regions=False), max_points)


def pro_curve(maps: np.ndarray, masks: np.ndarray, *, max_points: int | None = None) -> ProCurve:
    """The curve that the exact `aupro` is the area of, up to its limit.

    Args:
        maps: (b y x) one score per pixel, comparable between images.
        masks: (b y x) bool or 0/1, true on the defect.
        max_points: as in `roc_curve`.

    Raises:
        ShapeError: if shapes disagree.
        DataError: if a score is NaN or infinite, or masks are not 0/1, or mark no pixel or all.
        ValueError: if `max_points` is below 2.
    """
    return _pro_curve(_stand(*_check(maps, masks, names=("maps", "masks"), axes="b y x")), max_points)


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


class MetricsAccumulator:
    """The metrics of `evaluate_maps`, from any number of images in little memory.

    Image scores and defect pixels are kept one and all. Of the unmarked pixels a sorted sample is kept, in which one
    stands for 4, 16, ... of its neighbours in the order of the scores. What that can cost is known, however the scores
    are distributed, and `max_error` says it. With the default capacity everything is exact up to 16 million unmarked
    pixels, and within 1e-6 up to a billion (6,000 maps of 400 x 400).

    Args:
        capacity: unmarked pixels per level of the sample, a multiple of 4. A level takes 4 bytes for each, or 8 for
            float64; four times the pixels take one level more.

    Examples:
        >>> accumulator = MetricsAccumulator()
        >>> for score, label in [(0.2, 0), (0.9, 1)]:  # a batch of one image each
        ...     maps = np.array([[[0.1, 0.2], [0.2, score]]])
        ...     accumulator.update([score], [label], maps, maps == 0.9)
        >>> accumulator.compute().aupro, accumulator.max_error
        (1.0, 0.0)
    """

    def __init__(self, *, capacity: int = 2**24) -> None:
        if capacity < 4 or capacity % 4:
            raise ValueError(f"capacity: expected a multiple of 4, got {capacity}")
        self._image_scores: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._defects, self._normal = Defects(), ThinnedSample(capacity)
        self._dtype: np.dtype | None = None

    def update(self, image_scores: np.ndarray, labels: np.ndarray, maps: np.ndarray, masks: np.ndarray) -> None:
        """Takes some images; arguments and errors as in `evaluate_maps`.

        Maps may differ in size from one call to the next.

        Raises:
            ShapeError: if shapes disagree.
            DataError: if a score is NaN or infinite, labels or masks are not 0/1, or maps changed their type.
        """
        image_scores, labels = _check(image_scores, labels, names=("image_scores", "labels"), axes="b")
        maps, masks = _check(maps, masks, names=("maps", "masks"), axes="b y x")
        _check_lengths(maps, labels)
        if self._dtype is not None and self._dtype != maps.dtype:
            raise DataError(f"maps: expected {self._dtype} as before, got {maps.dtype}; give all maps in one type")
        self._dtype = maps.dtype
        self._image_scores.append(image_scores.astype(np.float64))
        self._labels.append(labels.copy())
        for image, mask in zip(maps, masks, strict=True):
            self._defects.add(image, mask)
        for keys in normal_keys(zip(maps, masks, strict=True)):
            self._normal.add(keys)

    def compute(self) -> DetectionMetrics:
        """The metrics of all images so far; more may follow."""
        image_scores = np.concatenate([np.zeros(0), *self._image_scores])
        labels = np.concatenate([np.zeros(0, bool), *self._labels])
        return _metrics(image_scores, labels, self._normal.stand(self._defects))

    @property
    def max_error(self) -> float:
        """How far `aupro` may be from that of all pixels, and `pixel_auroc` and the rates of the curves by 0.3 of it.

        The other two are exact.
        """
        return self._normal.max_error / _FPR_LIMIT

    def roc_curve(self, *, max_points: int | None = None) -> RocCurve:
        """The curve of all pixels so far, as `protoad.metrics.roc_curve` of maps and masks gives it."""
        return _roc_curve(self._normal.stand(self._defects), max_points)

    def pro_curve(self, *, max_points: int | None = None) -> ProCurve:
        """The per-region overlap of all images so far, as `protoad.metrics.pro_curve` gives it."""
        return _pro_curve(self._normal.stand(self._defects), max_points)


def _check(
    scores: np.ndarray, truth: np.ndarray, *, names: tuple[str, str], axes: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores as floats and truth as bool, both checked."""
    scores, truth = np.asarray(scores), np.asarray(truth)
    if axes is not None and scores.ndim != len(axes.split()):
        raise ShapeError(f"{names[0]}: expected ({axes}), got {scores.shape}")
    if truth.shape != scores.shape:
        expected = "equal shapes" if axes is None else f"equal shapes ({axes})"
        raise ShapeError(f"{names[0]} and {names[1]}: expected {expected}, got {scores.shape} and {truth.shape}")
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    images = scores if scores.ndim > 1 else [scores]  # one by one: what the check itself needs stays small
    bad = scores.size - sum(int(np.count_nonzero(np.isfinite(image))) for image in images)
    if bad:
        raise DataError(f"{names[0]}: expected finite scores, found {bad} of {scores.size} NaN or infinite")
    if truth.dtype != np.bool_:
        truth = _as_bool(truth, names[1])
    return scores, truth


def _as_bool(truth: np.ndarray, name: str) -> np.ndarray:
    marked = truth == 1
    if np.count_nonzero(marked) + np.count_nonzero(truth == 0) != truth.size:
        found = truth[(truth != 0) & ~marked].flat[0]
        raise DataError(f"{name}: expected bool or 0/1, found {found}; turn values into 0/1 first")
    return marked


def _check_lengths(maps: np.ndarray, labels: np.ndarray) -> None:
    if len(maps) != len(labels):
        raise ShapeError(
            f"maps and labels: expected one map per image, got maps {maps.shape} and labels {labels.shape}"
        )


def _stand(maps: np.ndarray, masks: np.ndarray, *, regions: bool = True) -> Standing:
    """Where the defect pixels of all images stand; (b ...), without `regions` of any shape."""
    images = [(maps, masks)] if maps.ndim == 1 else list(zip(maps, masks, strict=True))
    defects = Defects()
    for image, mask in images:
        defects.add(image, mask, regions=regions)
    return stand_in_blocks(defects, images, masks.size - int(np.count_nonzero(masks)))


def _metrics(image_scores: np.ndarray, labels: np.ndarray, standing: Standing) -> DetectionMetrics:
    return DetectionMetrics(
        image_auroc=image_auroc(image_scores, labels),
        pixel_auroc=_auroc(standing),
        aupro=_aupro(standing, _FPR_LIMIT),
        f1_max=f1_max(image_scores, labels),
    )


def _auroc(standing: Standing) -> float:
    """Mann-Whitney's U over its maximum, from counts of lower and of not higher unmarked pixels (mid-ranks)."""
    if not standing.defined:
        return float("nan")
    twice = int(standing.pixels @ (standing.below + standing.not_above))
    return twice / (2 * standing.num_normal * int(standing.pixels.sum()))


def _aupro(standing: Standing, limit: float) -> float:
    """Area under the curve, summed over its rises: how far each lies before the limit, on average."""
    if not standing.defined:
        return float("nan")
    num_normal = standing.num_normal
    rises = np.flatnonzero(num_normal - standing.not_above < limit * num_normal)
    start = (num_normal - standing.not_above[rises]) / num_normal
    end = (num_normal - standing.below[rises]) / num_normal
    # a rise is straight from `start` to `end`, where the limit may cut it; without ties it is vertical
    cut = np.minimum(end, limit)
    before = (limit - (start + cut) / 2) * np.divide(cut - start, end - start, out=np.ones_like(end), where=end > start)
    area = float((before * standing.share[rises]).sum()) / float(standing.share.sum())
    return min(max(area / limit, 0.0), 1.0)  # rounding may leave the range by an ulp


def _roc_curve(standing: Standing, max_points: int | None) -> RocCurve:
    _check_curve(standing, "labels", max_points)
    return RocCurve(*_thinned(*_curve(standing, standing.pixels), max_points))


def _pro_curve(standing: Standing, max_points: int | None) -> ProCurve:
    _check_curve(standing, "masks", max_points)
    return ProCurve(*_thinned(*_curve(standing, standing.share), max_points))


def _check_curve(standing: Standing, name: str, max_points: int | None) -> None:
    if max_points is not None and max_points < 2:
        raise ValueError(f"max_points: expected 2 or more, or None for all, got {max_points}")
    if not standing.defined:
        raise DataError(f"{name}: hold one class only, for which there is no curve; give good and defective ones")


def _curve(standing: Standing, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False-positive rate, what `gain` adds up to, and threshold.

    A point at each distinct score of a defect pixel, and one just above it; between these the curve is straight.
    """
    reached = np.cumsum(gain[::-1])
    y = np.concatenate([[0], np.column_stack([np.concatenate([[0], reached[:-1]]), reached]).ravel(), reached[-1:]])
    standing_rates = [standing.num_normal - standing.not_above[::-1], standing.num_normal - standing.below[::-1]]
    x = np.concatenate([[0], np.column_stack(standing_rates).ravel(), [standing.num_normal]])
    scores = from_keys(standing.keys[::-1])
    pairs = np.column_stack([np.nextafter(scores, scores.dtype.type(np.inf)), scores])
    thresholds = np.concatenate([[np.inf], pairs.ravel(), [-np.inf]], dtype=scores.dtype)
    new = np.concatenate([[True], (np.diff(x) > 0) | (np.diff(y) > 0)])
    # Dividing by the last sum, not by what it should be, ends the curve in (1, 1) despite rounding.
    return x[new] / x[-1], y[new] / y[-1], thresholds[new]


def _thinned(
    x: np.ndarray, y: np.ndarray, thresholds: np.ndarray, max_points: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points at even steps along the curve, both ends included."""
    if max_points is None or len(x) <= max_points:
        return x, y, thresholds
    chosen = np.unique(np.searchsorted((x + y) / 2, np.linspace(0, 1, max_points)).clip(max=len(x) - 1))
    return x[chosen], y[chosen], thresholds[chosen]


def _rank_curve(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same at equidistant ranks of the unmarked pixels, as the evaluation code of MVTec 3D-AD does it."""
    images = list(zip(maps, masks, strict=True))
    defects = Defects()
    for image, mask in images:
        defects.add(image, mask)
    keys, _, share = defects.by_score()
    normal = np.concatenate(list(normal_keys(images)))
    positions = np.linspace(0, normal.size - 1, num=_NUM_RANKS, dtype=int)[::-1]
    normal.partition(np.unique(positions))
    missed = np.concatenate([[0.0], np.cumsum(share)])[np.searchsorted(keys, normal[positions], side="right")]
    fpr = 1 - (positions + 1) / normal.size
    return np.append(fpr, 1.0), np.append(1 - missed, 1.0)


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
