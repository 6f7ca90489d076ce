"""A guard for prototype refinement: what no prototype explains does not reach the prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protoad.errors import ShapeError
from protoad.ops import cosine_cost
from protoad.ops._checks import check_mask
from protoad.ops.precision import full_precision, solver_dtype

__all__ = ["PrototypeGuard"]


class PrototypeGuard(nn.Module):
    """Moves tokens that no prototype explains to the prototype nearest to them, before a context is made of them.

        d_n = min_k (1 - cos(z_n, p_k)),  w_n = 2 - d_n / limit, held in [0, 1],  w_n z_n + (1 - w_n) p_nearest

    A token up to the limit stays as it is; one at twice the limit or beyond tells its prototype only what that holds
    already. Beyond the paper, which leaves it to transport and to the refiner's gate to keep anomalies out of the
    contexts c_k (section 3.3): but balanced transport sends the whole mass of every token somewhere, and nothing
    teaches the gate what an anomaly is. Stands before any aggregation, and has no parameters.

    Args:
        quantile: share of the good parts' tokens that `fit` leaves as they are, in (0, 1].

    Attributes:
        limit: scalar buffer; infinite until fitted: every token stays.

    Examples:
        >>> import torch
        >>> from protoad.nn import PrototypeGuard
        >>> prototypes = torch.eye(4)[:2]
        >>> guard = PrototypeGuard().fit(torch.tensor([[[4.0, 3, 0, 0]]]), prototypes)     # costs 0.2
        >>> guard(torch.tensor([[[4.0, 3, 0, 0], [1, 2, 9, 9]]]), prototypes)
        tensor([[[4., 3., 0., 0.],
                 [0., 1., 0., 0.]]])
    """

    limit: Tensor

    def __init__(self, *, quantile: float = 0.9) -> None:
        super().__init__()
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile: expected a share in (0, 1], got {quantile}")
        self.quantile = quantile
        self.register_buffer("limit", torch.tensor(torch.inf))

    @torch.no_grad()
    def fit(self, tokens: Tensor, prototypes: Tensor, token_mask: Tensor | None = None) -> PrototypeGuard:
        """Sets the limit by the tokens (b n d) of good parts; arguments as in `protoad.ops.sinkhorn`.

        Raises:
            ShapeError: for shapes that do not fit, or no token that counts.
        """
        check_mask(token_mask, tokens)
        cost, _ = _nearest(tokens, prototypes)
        kept = cost.flatten() if token_mask is None else cost[token_mask]
        if not kept.numel():
            raise ShapeError("token_mask: expected at least one token that counts, got none")
        # above 0: prototypes that are the tokens themselves leave no cost to measure by
        self.limit.copy_(kept.quantile(self.quantile).clamp_min(torch.finfo(torch.float32).eps))
        return self

    def forward(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        """Gives guarded tokens (b n d) for tokens (b n d) and prototypes (k d) or (b k d).

        Raises:
            ShapeError: for shapes that do not fit.
        """
        cost, nearest = _nearest(tokens, prototypes)
        codebook = prototypes.expand(*tokens.shape[:-2], *prototypes.shape[-2:])
        index = nearest.unsqueeze(-1).expand(*nearest.shape, tokens.shape[-1])
        trust = (2 - cost / self.limit).clamp(0, 1).unsqueeze(-1).to(tokens.dtype)
        return trust * tokens + (1 - trust) * codebook.gather(-2, index).to(tokens.dtype)

    def extra_repr(self) -> str:
        return f"quantile={self.quantile}, limit={self.limit.item():.3g}"


def _nearest(tokens: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Cost to the nearest prototype, and its index, both (b n)."""
    with full_precision(tokens):
        dtype = solver_dtype(tokens)
        cost, index = cosine_cost(tokens.to(dtype), prototypes.to(dtype)).min(dim=-1)
    return cost, index
