"""Every picture of `protoad.viz` from made-up tensors: `python examples/pictures.py` writes them into pictures/."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from protoad.data import write_rgb
from protoad.nn import CrossModalPrototypeGAT, SinkhornAssign, SoftmaxAssign
from protoad.ops import unit
from protoad.viz import (
    GridRow,
    displacement,
    graph_edges,
    prototype_usage,
    sample_grid,
    score_distributions,
    token_projection,
    transport_overlay,
    write_figure,
)

SIDE, DIM, PROTOTYPES = 14, 16, 12  # tokens along a side, channels, prototypes
PIXELS = 16 * SIDE


def washer() -> tuple[np.ndarray, np.ndarray, Tensor, Tensor, Tensor]:
    """A picture, the ground truth of a stain on it, tokens (n d), those on the part, and those on the stain."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:PIXELS, :PIXELS] - PIXELS / 2
    radius = np.hypot(y, x) / PIXELS
    stain = np.hypot(y + 0.05 * PIXELS, x - 0.3 * PIXELS) < 0.07 * PIXELS
    grey = np.where((radius > 0.12) & (radius < 0.42), 170, 60) - 60 * stain
    rgb = np.clip(grey[..., None] + rng.normal(0, 6, (PIXELS, PIXELS, 3)), 0, 255).astype(np.uint8)

    corners = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    down, across = (torch.from_numpy(g.flatten()) for g in np.meshgrid(corners, corners, indexing="ij"))
    from_middle = (down**2 + across**2).sqrt()
    look = torch.stack([down, across, 2 * from_middle, torch.ones_like(down)], dim=-1) @ torch.randn(4, DIM).double()
    anomalous = torch.from_numpy(stain.reshape(SIDE, 16, SIDE, 16).mean((1, 3)).flatten()) > 0.3
    tokens = look + 0.3 * torch.randn(len(look), DIM) + 1.5 * anomalous[:, None] * torch.randn(DIM)
    return rgb, stain, tokens.float(), (from_middle > 0.12) & (from_middle < 0.42), anomalous


def main() -> None:
    """Writes the pictures."""
    torch.manual_seed(0)
    rgb, stain, tokens, part, anomalous = washer()

    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], [60, 40])
    scores = {name: rng.normal(2 + gap * labels, 0.5 + 0.3 * labels) for name, gap in {"mine": 3, "theirs": 1}.items()}
    write_figure("pictures/scores.png", score_distributions(scores, labels, threshold={"mine": 3.0, "theirs": 3.0}))

    # prototypes that started anywhere: softmax leaves some of them without a token
    normal = tokens[part & ~anomalous]
    prototypes = normal[torch.randperm(len(normal))[:PROTOTYPES]]
    prototypes[::3] = 0.5 * prototypes[::3] + torch.randn(len(prototypes[::3]), DIM)
    methods = {"transport": SinkhornAssign(n_iters=100), "softmax": SoftmaxAssign()}
    plans = {name: assign.plan(tokens[None], prototypes, part[None])[0] for name, assign in methods.items()}
    write_figure("pictures/usage.png", prototype_usage(plans))

    shown = {name: unit(prototypes) for name in plans}
    kept = {name: plan[part] for name, plan in plans.items()}
    for method in ("pca", "tsne"):
        figure = token_projection(unit(tokens[part]), shown, plans=kept, method=method)
        write_figure(f"pictures/projection-{method}.png", figure)

    rebuilt = {name: plan @ prototypes for name, plan in plans.items()}
    moved = displacement(tokens[part], rebuilt["transport"][part], prototypes, anomalous[part])
    write_figure("pictures/displacement.png", moved)
    write_figure("pictures/overlay.png", transport_overlay(rgb, plans["transport"], (SIDE, SIDE), mask=stain))

    second = prototypes + 0.5 * torch.randn(PROTOTYPES, DIM)
    with torch.no_grad():
        attention = CrossModalPrototypeGAT(DIM).attention(prototypes[None], second[None])[0]
    write_figure("pictures/graph.png", graph_edges(prototypes, second, attention))

    left_over = {name: (tokens - made).norm(dim=-1).where(part, 0) for name, made in rebuilt.items()}
    heatmaps = {name: np.kron(left.reshape(SIDE, SIDE).numpy(), np.ones((16, 16))) for name, left in left_over.items()}
    row = GridRow("stain", rgb, mask=stain, others=heatmaps)
    write_rgb("pictures/grid.png", sample_grid([row], columns=["rgb", *heatmaps, "mask"]))


if __name__ == "__main__":
    main()
