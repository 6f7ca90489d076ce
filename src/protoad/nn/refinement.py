"""Adaptive prototype refinement (APR): prototypes take in the current image through a gated unit (paper Eqs. 5-8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protoad.errors import ShapeError

__all__ = ["GRUPrototypeRefiner"]


class GRUPrototypeRefiner(nn.Module):
    """Moves each prototype towards its context as far as a learned gate allows (paper Eqs. 5-8).

        u = sigmoid(W_z [p; c] + b_z)            (5)   update gate: how much of the old prototype stays
        r = sigmoid(W_r [p; c] + b_r)            (6)   reset gate
        q = tanh(W [r * p; c] + b)               (7)   candidate
        p' = u * p + (1 - u) * q                 (8)

    Paper symbols: p = prototypes, c = context, W_z, W_r, W = `update`, `reset`, `candidate`.

    Args:
        dim: d, channels of a prototype.
        update_bias: start of b_z; 0 as printed in the paper; above 0 starts nearer to leaving prototypes as they are.

    Note:
        Two things differ from textbooks. u keeps the old state, as in torch.nn.GRUCell and unlike the GRU paper.
        The reset gate acts before the product with W, unlike torch.nn.GRUCell. And tanh bounds the candidate to
        (-1, 1): features should be scaled to about unit variance per channel.

    Examples:
        >>> import torch
        >>> from protoad.nn import GRUPrototypeRefiner
        >>> refine = GRUPrototypeRefiner(32)
        >>> prototypes, context = torch.randn(2, 10, 32), torch.randn(2, 10, 32)
        >>> refine(prototypes, context).shape
        torch.Size([2, 10, 32])
    """

    def __init__(self, dim: int, *, update_bias: float = 0.0) -> None:
        super().__init__()
        self.dim, self.update_bias = dim, update_bias
        self.update = nn.Linear(2 * dim, dim)
        self.reset = nn.Linear(2 * dim, dim)
        self.candidate = nn.Linear(2 * dim, dim)
        nn.init.constant_(self.update.bias, update_bias)

    def forward(self, prototypes: Tensor, context: Tensor) -> Tensor:
        """Gives refined prototypes (b k d) from prototypes and their context, both (b k d).

        Raises:
            ShapeError: if the two differ in shape or d is another than `dim`.
        """
        if prototypes.shape != context.shape or prototypes.shape[-1] != self.dim:
            raise ShapeError(
                f"prototypes, context: expected the same (b k d) with d={self.dim}, "
                f"got {tuple(prototypes.shape)} and {tuple(context.shape)}"
            )
        both = torch.cat((prototypes, context), dim=-1)
        keep = self.update(both).sigmoid()
        reset = self.reset(both).sigmoid()
        candidate = self.candidate(torch.cat((reset * prototypes, context), dim=-1)).tanh()
        return keep * prototypes + (1 - keep) * candidate

    def extra_repr(self) -> str:
        return f"dim={self.dim}, update_bias={self.update_bias}"
