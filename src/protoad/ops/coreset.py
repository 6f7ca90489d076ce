"""A subset that leaves no point far away: what a memory bank keeps of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from protoad.errors import ShapeError

__all__ = ["greedy_coreset"]


@torch.no_grad()
def greedy_coreset(points: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """Gives a farthest-point subset: from a random start, each next point is the one farthest from those chosen.

    The greedy solution of the k-center problem: its covering radius is at most twice the smallest possible.

    Args:
        points: (n d).
        count: how many to choose, from 1 to n.
        seed: of the start, drawn on the CPU so that every device starts alike.

    Returns:
        (count) int64 indices, all different, in the order chosen; of equally far points the first.

    Raises:
        ShapeError: for another number of axes, or a count out of range.

    Examples:
        >>> import torch
        >>> line = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
        >>> sorted(greedy_coreset(line, 2).tolist())[1]          # whatever the start, 9 is an end
        3
    """
    if points.ndim != 2 or not 1 <= count <= len(points):
        raise ShapeError(f"points, count: expected (n d) and 1 to n, got {tuple(points.shape)} and {count}")
    index = torch.randint(len(points), (), generator=torch.Generator().manual_seed(seed)).to(points.device)
    centred = points - points.mean(0)  # so that |x|^2 + |c|^2 - 2 x c loses no digits to a common offset
    squares = centred.square().sum(-1)
    distances = torch.full_like(squares, torch.inf)
    chosen = torch.empty(count, dtype=torch.int64, device=points.device)
    for place in range(count):
        chosen[place] = index
        nearer = (squares + squares[index] - 2 * (centred @ centred[index])).clamp_min(0)
        distances = torch.minimum(distances, nearer)
        distances[index] = -1  # never again, even where points coincide
        index = distances.argmax()
    return chosen
