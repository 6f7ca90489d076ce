"""Figures of scores, prototypes and tokens: what the paper's plots show, of any detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from protoad._lazy import require
from protoad.errors import DataError, ShapeError
from protoad.metrics import image_auroc
from protoad.viz._style import ANOMALOUS, COLORS, DASHES, GREY, MARKERS, NORMAL, Array, checked, matching, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["displacement", "effective_prototypes", "prototype_usage", "score_distributions", "token_projection"]

_BINS = 20
_TRAILS = 150  # tokens of each kind whose way is drawn: more is a smear


def score_distributions(
    scores: Mapping[str, Array], labels: Array, *, threshold: float | Mapping[str, float] | None = None
) -> Figure:
    """Histograms of the image scores of normal and anomalous parts, a panel per detector (paper Fig. 3, right).

    Args:
        scores: detector -> (b) score of each part.
        labels: (b) bool or 0/1, true for an anomalous part.
        threshold: drawn as a line; one for all, or detector -> its own.

    Returns:
        Figure; the image AUROC stands above each panel.

    Raises:
        ShapeError: if shapes disagree.
        DataError: if a score is NaN or infinite, or a label neither 0 nor 1.
        ValueError: if there are no scores, labels of one kind only, or a threshold of no detector.
    """
    found, truth = matching("scores", scores, "b"), _flags("labels", labels)
    if truth.all() or not truth.any():
        raise ValueError(f"labels: expected normal and anomalous parts, got {len(truth)} of one kind")
    limits = threshold if isinstance(threshold, Mapping) else dict.fromkeys(found, threshold)
    if set(limits) - set(found):
        raise ValueError(f"threshold: expected names out of {', '.join(found)}, got {', '.join(limits)}")
    for name, values in found.items():
        if values.shape != truth.shape:
            raise ShapeError(f"scores[{name!r}]: expected (b) = {truth.shape} as labels has, got {values.shape}")

    figure, axes = panels(len(found))
    for axis, (name, values) in zip(axes, found.items(), strict=True):
        bins = np.histogram_bin_edges(values, bins=_BINS)
        for kind, look, label in ((~truth, NORMAL, "normal"), (truth, ANOMALOUS, "anomalous")):
            style = {"histtype": "stepfilled", "alpha": 0.75, "edgecolor": "black", "linestyle": look.dashes}
            named = f"{label} ({kind.sum()})"
            axis.hist(values[kind], bins, color=look.color, hatch=look.hatch, label=named, **style)
        limit = limits.get(name)
        if limit is not None:
            axis.axvline(limit, color="black", linestyle=":", linewidth=1.8, label="threshold")
        axis.set(title=f"{name}\nimage AUROC {image_auroc(values, truth):.3f}", xlabel="anomaly score")
    axes[0].set_ylabel("parts")
    _legend_below(figure, axes[0])
    return figure


def effective_prototypes(plan: Array) -> float:
    """How many equally used prototypes would be as evenly used as these: exp(entropy) of their shares of the mass.

    Args:
        plan: (b n k) shares of each token; masked tokens have none.

    Returns:
        Between 1, one prototype takes everything, and k, all take the same.

    Raises:
        ShapeError: if plan is not (b n k).
        DataError: if it holds NaN, infinite or negative shares, or no mass.

    Examples:
        >>> round(effective_prototypes(np.array([[[1.0, 0, 0], [0, 1.0, 0]]])), 6)
        2.0
    """
    return _perplexity(_usage("plan", checked("plan", plan, "b n k")))


def prototype_usage(plans: Mapping[str, Array]) -> Figure:
    """Share of all mass that each prototype receives, the most used first, a curve per method.

    Args:
        plans: method -> (b n k) shares of each token; masked tokens have none.

    Returns:
        Figure; the legend says how many prototypes are in use (`effective_prototypes`).

    Raises:
        ShapeError: if a plan is not (b n k).
        DataError: if one holds NaN, infinite or negative shares, or no mass.
        ValueError: if there are none.
    """
    usages = {name: _usage(f"plans[{name!r}]", plan) for name, plan in matching("plans", plans, "b n k").items()}
    figure, (axis,) = panels(1, width=5.4)
    for index, (name, usage) in enumerate(usages.items()):
        style = _series(index)
        ranks = np.arange(1, len(usage) + 1)
        label = f"{name}: {_perplexity(usage):.1f} of {len(usage)} in use"
        axis.plot(ranks, 100 * np.sort(usage)[::-1], markersize=4, label=label, **style)
    for count in sorted({len(usage) for usage in usages.values()}):
        axis.plot([1, count], [100 / count] * 2, color=GREY, linestyle=":", label=f"uniform, 1/{count}", zorder=1)
    axis.set(xlabel="prototypes, most used first", ylabel="share of the mass, %", ylim=(0, None))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False)
    return figure


def token_projection(
    tokens: Array, prototypes: Mapping[str, Array], *, method: Literal["pca", "tsne"] = "pca", seed: int = 0
) -> Figure:
    """Tokens and the prototypes meant to cover them in the plane, a panel per codebook on the same axes.

    Args:
        tokens: (n d).
        prototypes: codebook -> (k d).
        method: "pca", the tokens' two main directions, or "tsne", of tokens and all codebooks together.
        seed: of t-SNE.

    Raises:
        ShapeError: if tokens are not (n d) with n and d at least 2, or prototypes differ in d.
        DataError: if a value is NaN or infinite.
        MissingExtraError: for "tsne" without scikit-learn.
        ValueError: for another method, or no codebook.
    """
    cloud, books = checked("tokens", tokens, "n d"), matching("prototypes", prototypes, "k d")
    for name, book in books.items():
        _check_dim(f"prototypes[{name!r}]", book, "tokens", cloud)
    if method not in ("pca", "tsne"):
        raise ValueError(f"method: expected pca or tsne, got {method!r}")
    placed, labels = (_pca if method == "pca" else _tsne)("tokens", [cloud, *books.values()], seed)

    figure, axes = panels(len(books), shared=True)
    for index, (axis, name) in enumerate(zip(axes, books, strict=True)):
        axis.scatter(*placed[0].T, s=5, color=GREY, alpha=0.5, linewidths=0, label="tokens", rasterized=True)
        look = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
        axis.scatter(*placed[1 + index].T, s=42, edgecolors="black", linewidths=0.8, label="prototypes", **look)
        axis.set(title=name, xlabel=labels[0])
        axis.legend(frameon=False, loc="best")
    axes[0].set_ylabel(labels[1])
    return figure


def displacement(before: Array, after: Array, prototypes: Array, anomalous: Array) -> Figure:
    """How far, and where to, tokens move when they are rebuilt from prototypes (paper Fig. 4).

    Normal tokens should stay, anomalous ones be drawn to the prototypes.

    Args:
        before: (n d) tokens.
        after: (n d) the same, rebuilt.
        prototypes: (k d).
        anomalous: (n) bool or 0/1, true for a token of a defect.

    Returns:
        Figure; left the plane of the main directions of `before`, thin lines from before to after (a sample of them)
        and the mean way of each kind in bold; right the lengths |after - before|, in all d channels.

    Raises:
        ShapeError: if shapes disagree, or n or d is below 2.
        DataError: if a value is NaN or infinite, or a flag neither 0 nor 1.
        ValueError: if all tokens are of one kind.
    """
    start, end = checked("before", before, "n d"), checked("after", after, "n d")
    book, bad = checked("prototypes", prototypes, "k d"), _flags("anomalous", anomalous)
    if start.shape != end.shape:
        raise ShapeError(f"after: expected (n d) = {start.shape} as before has, got {end.shape}")
    _check_dim("prototypes", book, "before", start)
    if bad.shape != start.shape[:1]:
        raise ShapeError(f"anomalous: expected (n) = {start.shape[:1]} as before has, got {bad.shape}")
    if bad.all() or not bad.any():
        raise ValueError(f"anomalous: expected tokens of both kinds, got {len(bad)} of one kind")
    (start_2d, end_2d, book_2d), labels = _pca("before", [start, end, book], 0)
    lengths = np.linalg.norm(end - start, axis=1)
    bins = np.histogram_bin_edges(lengths, bins=_BINS)

    figure, (plane, histogram) = panels(2, width=4.6, height=4.0)
    plane.scatter(*book_2d.T, s=26, marker="P", color="white", edgecolors="black", label="prototypes", zorder=3)
    for kind, look, name in ((~bad, NORMAL, "normal"), (bad, ANOMALOUS, "anomalous")):
        chosen = np.flatnonzero(kind)
        chosen = chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), _TRAILS)).astype(int)]
        ways = np.stack([start_2d[chosen], end_2d[chosen]])  # (2 m 2)
        plane.plot(ways[..., 0], ways[..., 1], color=look.color, alpha=0.35, linewidth=0.7, zorder=1)
        plane.scatter(*ways[0].T, s=9, marker=look.marker, color=look.color, linewidths=0, alpha=0.7, zorder=2)
        _arrow(plane, start_2d[kind].mean(0), end_2d[kind].mean(0), look.color)
        plane.plot([], [], color=look.color, marker=look.marker, linewidth=2.5, label=f"{name}, mean in bold")
        histogram.hist(
            lengths[kind],
            bins,
            density=True,
            histtype="stepfilled",
            alpha=0.75,
            color=look.color,
            hatch=look.hatch,
            edgecolor="black",
            linestyle=look.dashes,
            label=f"{name}, mean {lengths[kind].mean():.3g}",
        )
    plane.set(title="from token to rebuilt", xlabel=labels[0], ylabel=labels[1])
    histogram.set(title=f"in all {start.shape[1]} channels", xlabel="|after - before|", ylabel="density of tokens")
    histogram.legend(frameon=False)
    _legend_below(figure, plane)
    return figure


def _arrow(axis: Any, start: np.ndarray, end: np.ndarray, color: str) -> None:
    """A bold arrow with a dark rim, so that it stands out of lines of its own colour."""
    for rim, width in (("black", 5.0), (color, 3.0)):
        style = {"arrowstyle": "-|>,head_width=0.35,head_length=0.6", "color": rim, "lw": width, "shrinkA": 0}
        axis.annotate("", xy=end, xytext=start, arrowprops={**style, "shrinkB": 0}, zorder=5)


def _series(index: int) -> dict[str, Any]:
    color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
    return {"color": color, "marker": marker, "linestyle": DASHES[index % len(DASHES)]}


def _legend_below(figure: Figure, axis: Any) -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)


def _usage(name: str, plan: np.ndarray) -> np.ndarray:
    """(b n k) -> (k) shares that sum to 1."""
    mass = plan.sum((0, 1))
    if (plan < 0).any() or not mass.sum() > 0:
        raise DataError(
            f"{name}: expected shares of 0 or more, not all 0, got values from {plan.min()} to {plan.max()}"
        )
    shares: np.ndarray = mass / mass.sum()
    return shares


def _perplexity(shares: np.ndarray) -> float:
    used = shares[shares > 0]
    return float(np.exp(-(used * np.log(used)).sum()))


def _pca(name: str, clouds: list[np.ndarray], seed: int) -> tuple[list[np.ndarray], list[str]]:
    """All clouds (m d) in the plane of the first one's two main directions, (m 2) each, and the axes' names."""
    first = clouds[0]
    if min(first.shape) < 2:
        raise ShapeError(f"{name}: expected (n d), both at least 2, got {first.shape}")
    centre = first.mean(0)
    _, singular, directions = np.linalg.svd(first - centre, full_matrices=False)
    # The sign of a direction is the solver's whim: its largest component shall be positive.
    directions = directions[:2] * np.sign(directions[[0, 1], np.abs(directions[:2]).argmax(1)])[:, None]
    shares = singular[:2] ** 2 / max((singular**2).sum(), np.finfo(float).tiny)
    return [(cloud - centre) @ directions.T for cloud in clouds], [
        f"principal component {index + 1} ({share:.0%})" for index, share in enumerate(shares)
    ]


def _tsne(name: str, clouds: list[np.ndarray], seed: int) -> tuple[list[np.ndarray], list[str]]:
    together = np.concatenate(clouds)
    perplexity = min(30.0, (len(together) - 1) / 3)
    manifold = require("sklearn.manifold", extra="viz")
    solver = manifold.TSNE(perplexity=perplexity, init="pca", random_state=seed)
    placed = solver.fit_transform(together.astype(np.float32))
    return np.split(placed, np.cumsum([len(cloud) for cloud in clouds])[:-1]), ["t-SNE 1", "t-SNE 2"]


def _flags(name: str, value: Array) -> np.ndarray:
    flags = checked(name, value, "n")
    if not np.isin(flags, (0, 1)).all():
        raise DataError(f"{name}: expected bool or 0 and 1, got values from {flags.min()} to {flags.max()}")
    return flags.astype(bool)


def _check_dim(name: str, book: np.ndarray, other: str, cloud: np.ndarray) -> None:
    if book.shape[1] != cloud.shape[1]:
        raise ShapeError(f"{name}: expected (k d) with d={cloud.shape[1]} as {other} has, got {book.shape}")
