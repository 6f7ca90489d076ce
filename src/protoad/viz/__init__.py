"""Pictures for any detector: heatmaps and grids as arrays, and the paper's figures as matplotlib figures.

Each figure is a function of arrays or tensors that gives a `matplotlib.figure.Figure`; `write_figure` writes it.
Nothing of pyplot is touched: no window, no current figure, no setting that stays.
"""

from protoad.viz.graph import graph_edges
from protoad.viz.images import (
    GridRow,
    foreground_overlay,
    heatmap_overlay,
    sample_grid,
    with_boxes,
    with_color_bar,
)
from protoad.viz.movement import displacement
from protoad.viz.overlay import transport_overlay
from protoad.viz.projection import token_projection
from protoad.viz.scores import score_distributions, score_overlap
from protoad.viz.style import write_figure
from protoad.viz.usage import effective_prototypes, prototype_usage

__all__ = [
    "GridRow",
    "displacement",
    "effective_prototypes",
    "foreground_overlay",
    "graph_edges",
    "heatmap_overlay",
    "prototype_usage",
    "sample_grid",
    "score_distributions",
    "score_overlap",
    "token_projection",
    "transport_overlay",
    "with_boxes",
    "with_color_bar",
    "write_figure",
]
