"""How many prototypes are used (what the paper's Fig. 1, right, says of balanced assignment and softmax)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from protoad.viz._arrays import as_plan
from protoad.viz.style import INK, NORMAL, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["effective_prototypes", "prototype_usage"]


def effective_prototypes(plan: Any, *, owners: bool = False) -> float:
    """How many prototypes are in use: the perplexity exp(H) of their shares, from 1 to k.

    Args:
        plan: (n k) or (b n k) shares of tokens, such as `protoad.nn.Assignment.plan`; rows of 0 are masked tokens.
        owners: whether a token counts whole for the prototype with its largest share, and not in shares.

    Returns:
        k if all have the same, m if m of them share everything equally.

    Raises:
        ShapeError: for other axes.
        DataError: for shares that are negative, infinite or all 0.

    Examples:
        >>> from protoad.viz import effective_prototypes
        >>> plan = [[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.3, 0.7, 0.0], [0.3, 0.7, 0.0]]
        >>> round(effective_prototypes(plan), 2), round(effective_prototypes(plan, owners=True), 2)
        (1.99, 2.0)
    """
    return _perplexity(_usage(as_plan("plan", plan))[int(owners)])


@styled
def prototype_usage(plans: Mapping[str, Any]) -> Figure:
    """What share of the tokens each prototype gets, a panel per assignment (paper Fig. 1, right, in numbers).

    Bars are the mass of the plan, from the most used prototype down; dots the tokens of which a prototype has the
    largest share. Balanced transport gives equal mass by construction, so the dots are what tells whether it is used.
    Both have their effective number, `effective_prototypes`.

    Args:
        plans: assignment -> plan (n k) or (b n k); rows of 0 are masked tokens.

    Returns:
        A matplotlib figure.

    Raises:
        ShapeError: for other axes.
        DataError: for shares that are negative, infinite or all 0.
        ValueError: for no plans.
        MissingExtraError: without matplotlib.
    """
    if not plans:
        raise ValueError("plans: expected one or more, got none")
    figure, grid = new_figure(1, len(plans), size=(0.7 + 3.2 * len(plans), 3.2), sharey=True)
    for axes, (name, values) in zip(grid[0], plans.items(), strict=True):
        mass, owned = _usage(as_plan(f"plan of {name}", values))
        k = len(mass)
        order = np.argsort(-mass, kind="stable")
        places = np.arange(1, k + 1)
        axes.bar(places, 100 * mass[order], width=0.8, color=NORMAL, edgecolor=INK, linewidth=0.4, label="mass")
        look = {"linestyle": "none", "marker": "o", "markersize": 3.5, "color": INK, "clip_on": False, "zorder": 3}
        axes.plot(places, 100 * owned[order], label="tokens it has the largest share of", **look)
        axes.axhline(100 / k, color=INK, linestyle="--", linewidth=0.9, label="equal share")
        axes.set_title(
            f"{name}, {k} prototypes: {int((owned == 0).sum())} with no token,\n"
            f"in effect {_perplexity(mass):.1f} by mass, {_perplexity(owned):.1f} by tokens",
            loc="left",
        )
        axes.set_xlabel("prototypes, by mass")
        axes.set_xlim(0.2, k + 0.8)
        axes.xaxis.get_major_locator().set_params(integer=True)
    grid[0, 0].set_ylabel("share of the tokens, %")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _usage(plan: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(k) share of the mass, and (k) share of the tokens owned, each summing to 1."""
    kept = plan[plan.sum(1) > 0]
    owned = np.bincount(kept.argmax(1), minlength=plan.shape[1])
    return kept.sum(0) / kept.sum(), owned / len(kept)


def _perplexity(shares: np.ndarray) -> float:
    used = shares[shares > 0]
    return float(np.exp(-(used * np.log(used)).sum()))
