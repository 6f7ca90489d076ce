"""What a prototype is told about the current image: the aggregations of paper Table 7, one interface."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protoad.nn.assignment import SinkhornAssign
from protoad.ops import cosine_cost, transport_context
from protoad.ops._checks import check_mask, check_tokens_and_prototypes
from protoad.ops.precision import full_precision, solver_dtype

__all__ = ["GlobalMeanAggregate", "TopKAggregate", "TransportAggregate"]


class TransportAggregate(nn.Module):
    """Balanced transport: c_k = sum_n T_nk z_n / sum_n T_nk (paper section 3.3; Table 7, last row).

    Args:
        assign: the assignment whose plan weighs the tokens.

    Examples:
        >>> import torch
        >>> TransportAggregate()(torch.randn(2, 9, 4), torch.randn(3, 4)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, assign: SinkhornAssign | None = None) -> None:
        super().__init__()
        self.assign = SinkhornAssign() if assign is None else assign

    def forward(self, tokens: Tensor, prototypes: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Gives contexts (b k d) for tokens (b n d), prototypes (k d) or (b k d), and a mask (b n)."""
        return transport_context(self.assign.plan(tokens, prototypes, token_mask), tokens)


class TopKAggregate(nn.Module):
    """The mean of the n/k tokens most similar to each prototype (paper Table 7, "Top-k Averaging").

    With a mask, (kept tokens)/k of the kept ones. At least one token; ties by index.

    Examples:
        >>> import torch
        >>> TopKAggregate()(torch.randn(2, 9, 4), torch.randn(3, 4)).shape
        torch.Size([2, 3, 4])
    """

    def forward(self, tokens: Tensor, prototypes: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Gives contexts (b k d) for tokens (b n d), prototypes (k d) or (b k d), and a mask (b n)."""
        check_tokens_and_prototypes(tokens, prototypes)
        check_mask(token_mask, tokens)
        with full_precision(tokens), torch.no_grad():
            dtype = solver_dtype(tokens)
            cost = cosine_cost(tokens.to(dtype), prototypes.to(dtype))
            kept = torch.ones_like(cost[..., 0]) if token_mask is None else token_mask.to(dtype)
            cost = torch.where(kept.unsqueeze(-1) > 0, cost, torch.full_like(cost, torch.inf))
            share = (kept.sum(-1) / cost.shape[-1]).floor().clamp_min(1)
            rank = cost.argsort(dim=-2, stable=True).argsort(dim=-2, stable=True)
            plan = (rank < share[..., None, None]) & (kept.unsqueeze(-1) > 0)
        return transport_context(plan.to(tokens.dtype), tokens)


class GlobalMeanAggregate(nn.Module):
    """The mean of all kept tokens, the same for every prototype (paper Table 7, "Global Averaging").

    Examples:
        >>> import torch
        >>> GlobalMeanAggregate()(torch.randn(2, 9, 4), torch.randn(3, 4)).shape
        torch.Size([2, 3, 4])
    """

    def forward(self, tokens: Tensor, prototypes: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Gives contexts (b k d) for tokens (b n d), prototypes (k d) or (b k d), and a mask (b n)."""
        check_tokens_and_prototypes(tokens, prototypes)
        check_mask(token_mask, tokens)
        weights = torch.ones_like(tokens[..., :1]) if token_mask is None else token_mask.unsqueeze(-1).to(tokens)
        return transport_context(weights, tokens).expand(*tokens.shape[:-2], prototypes.shape[-2], -1)
