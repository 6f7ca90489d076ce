"""Pictures: score maps on images (OpenCV), and figures of scores, prototypes and assignments (matplotlib)."""

from protoad.viz.assignments import graph_edges, transport_overlay
from protoad.viz.figures import (
    displacement,
    effective_prototypes,
    prototype_usage,
    score_distributions,
    token_projection,
)
from protoad.viz.images import GridRow, foreground_overlay, heatmap_overlay, sample_grid, with_boxes, with_color_bar

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
    "token_projection",
    "transport_overlay",
    "with_boxes",
    "with_color_bar",
]
