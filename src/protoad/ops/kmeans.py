"""k-means with k-means++ seeding: prototype initialisation and the normal patterns of the conditional score."""

from __future__ import annotations

import torch
from torch import Tensor

from protoad.errors import ShapeError

__all__ = ["kmeans"]


@torch.no_grad()
def kmeans(points: Tensor, num_centres: int, *, seed: int = 0, n_iters: int = 20) -> Tensor:
    """Gives k centres of the points by Lloyd's iteration from a k-means++ start.

    Args:
        points: (n d), n >= num_centres.
        num_centres: k.
        seed: of the k-means++ draw, made on the CPU so that every device starts alike.
        n_iters: Lloyd iterations; a centre that loses all its points stays where it is.

    Returns:
        (k d) centres.

    Raises:
        ShapeError: if there are fewer points than centres.
    """
    if points.ndim != 2 or len(points) < num_centres:
        raise ShapeError(f"points: expected (n d) with n >= {num_centres} centres, got {tuple(points.shape)}")
    centres = _plus_plus(points, num_centres, torch.Generator().manual_seed(seed))
    for _ in range(n_iters):
        nearest = torch.cdist(points, centres).argmin(-1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=num_centres).unsqueeze(-1)
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return centres


def _plus_plus(points: Tensor, num_centres: int, generator: torch.Generator) -> Tensor:
    """Centres drawn one by one, each with probability proportional to its squared distance from those drawn."""
    first = int(torch.randint(len(points), (1,), generator=generator))
    chosen = [points[first]]
    distances = torch.cdist(points, points[first : first + 1]).squeeze(-1).square()
    for _ in range(1, num_centres):
        weights = distances.double().cpu()
        if not weights.sum() > 0:  # fewer distinct points than centres: repeat any
            weights = torch.ones_like(weights)
        index = int(torch.multinomial(weights, 1, generator=generator))
        chosen.append(points[index])
        distances = torch.minimum(distances, (points - points[index]).square().sum(-1))
    return torch.stack(chosen)
