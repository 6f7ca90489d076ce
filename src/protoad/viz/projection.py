"""Tokens and prototypes in the plane (paper Fig. 1, right)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from protoad._lazy import require
from protoad.viz._arrays import as_array, as_plan, check_axis
from protoad.viz._pca import principal_plane
from protoad.viz.style import ANOMALOUS, INK, NORMAL, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["token_projection"]

_EQUAL_AREA = 50.0  # square points of a marker with an equal share of the mass
_TOKEN: dict[str, Any] = {"s": 7, "color": NORMAL, "edgecolors": "none"}
_PROTOTYPE: dict[str, Any] = {"color": INK, "edgecolors": "white", "linewidths": 0.8}
_UNUSED: dict[str, Any] = {"s": 55, "marker": "X", "facecolors": "white", "edgecolors": ANOMALOUS, "linewidths": 1.1}


@styled
def token_projection(
    tokens: Any,
    prototypes: Mapping[str, Any],
    *,
    plans: Mapping[str, Any] | None = None,
    method: Literal["pca", "tsne"] = "pca",
    seed: int = 0,
) -> Figure:
    """Tokens in the plane with the prototypes of each assignment, a panel for each, same axes (paper Fig. 1, right).

    The tokens lie alike in all panels. With plans a prototype's area is its mass, and one that has the largest share of
    no token is hollow and crossed.

    Args:
        tokens: (n d), scaled as the assignment compares them: `protoad.ops.unit` of them for a cosine cost.
        prototypes: assignment -> (k d), scaled alike.
        plans: assignment -> (n k) of these tokens.
        method: "pca", the plane of the largest variance of the tokens; "tsne", neighbourhoods of tokens and all
            prototypes together, where distances and directions mean nothing (scikit-learn).
        seed: of t-SNE.

    Returns:
        A matplotlib figure.

    Raises:
        ShapeError: if d, n or k differ.
        DataError: for what is not finite.
        ValueError: for no prototypes, plans of others, an unknown method, or fewer than 5 points for t-SNE.
        MissingExtraError: without matplotlib, or scikit-learn for t-SNE.
    """
    points = as_array("tokens", tokens, "n d")
    centres = {name: as_array(f"prototypes of {name}", values, "k d") for name, values in prototypes.items()}
    plans = plans or {}
    if not centres or method not in ("pca", "tsne") or plans.keys() - centres.keys():
        raise ValueError(
            f"expected prototypes, plans of the same assignments, and method pca or tsne; got prototypes of "
            f"{list(centres)}, plans of {list(plans)}, method {method!r}"
        )
    for name, values in centres.items():
        check_axis(f"prototypes of {name}", values, 1, points.shape[1])
    placed, placed_centres, labels = _place(points, centres, method, seed)
    figure, grid = new_figure(1, len(centres), size=(0.5 + 3.3 * len(centres), 3.6), sharex=True, sharey=True)
    limits = _square([placed, *placed_centres.values()])
    unused = False
    for axes, (name, at) in zip(grid[0], placed_centres.items(), strict=True):
        axes.scatter(placed[:, 0], placed[:, 1], **_TOKEN)
        mass, used = np.full(len(at), 1 / len(at)), np.ones(len(at), dtype=bool)
        if name in plans:
            plan = as_plan(f"plan of {name}", plans[name])
            check_axis(f"plan of {name}", plan, 0, len(points))
            check_axis(f"plan of {name}", plan, 1, len(at))
            mass = plan.sum(0) / plan.sum()
            used = np.bincount(plan[plan.sum(1) > 0].argmax(1), minlength=len(at)) > 0
        area = _EQUAL_AREA * len(at) * mass
        axes.scatter(at[used, 0], at[used, 1], s=area[used], **_PROTOTYPE)
        axes.scatter(at[~used, 0], at[~used, 1], **_UNUSED)
        unused |= not used.all()
        tally = f": {int(used.sum())} of {len(at)} prototypes have tokens" if name in plans else ""
        axes.set_title(name + tally, loc="left")
        axes.set_xlabel(labels[0])
        axes.set(xlim=limits[0], ylim=limits[1], box_aspect=1)
    grid[0, 0].set_ylabel(labels[1])
    grid[0, 0].scatter([], [], label="token", **_TOKEN)
    grid[0, 0].scatter(
        [], [], s=_EQUAL_AREA, label="prototype with an equal share" if plans else "prototype", **_PROTOTYPE
    )
    if unused:
        grid[0, 0].scatter([], [], label="prototype with no token", **_UNUSED)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _square(points: Sequence[np.ndarray]) -> np.ndarray:
    """(2 2) lowest and highest of both axes: as long as each other, with all points and a margin in them."""
    lows, highs = (np.array([extreme(p, axis=0) for p in points]) for extreme in (np.min, np.max))
    low, high = lows.min(0), highs.max(0)
    half = 0.54 * max((high - low).max(), 1e-9)
    middle = (low + high) / 2
    return np.stack([middle - half, middle + half], axis=1)


def _place(
    points: np.ndarray, centres: Mapping[str, np.ndarray], method: str, seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray], tuple[str, str]]:
    """Where tokens and prototypes lie in the plane, and what its axes are."""
    if method == "pca":
        plane = principal_plane(points)
        return plane.project(points), {name: plane.project(c) for name, c in centres.items()}, plane.labels()
    everything = np.concatenate([points, *centres.values()])
    if len(everything) < 5:
        raise ValueError(f"tokens: expected 5 points or more for t-SNE, got {len(everything)} with all prototypes")
    manifold = require("sklearn.manifold", extra="viz")
    perplexity = min(30.0, (len(everything) - 1) / 3)
    placed = manifold.TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(everything)
    ends = np.cumsum([len(points), *(len(c) for c in centres.values())])
    pieces = np.split(placed, ends[:-1])
    return pieces[0], dict(zip(centres, pieces[1:], strict=True)), ("t-SNE 1, no unit", "t-SNE 2, no unit")
