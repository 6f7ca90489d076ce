"""Sinkhorn's iteration as the equations read: slow, and what the fast `sinkhorn` is held against."""

from __future__ import annotations

import torch
from torch import Tensor

from protoad.ops._types import Transport

__all__ = ["sinkhorn_reference"]


def sinkhorn_reference(
    cost: Tensor,
    *,
    epsilon: float = 0.05,
    n_iters: int = 20,
    row_mass: Tensor | None = None,
    col_mass: Tensor | None = None,
    init: Tensor | None = None,
) -> Transport:
    """Gives what `sinkhorn_from_cost` gives, in the log domain, step by step, and differentiated by autograd.

    Args:
        cost: (... n k), float32 or float64; solved in its own dtype.
        epsilon: entropic regularisation, in units of the cost.
        n_iters: Sinkhorn iterations, g <- log b - LSE_n(f - C / epsilon), then f <- log a - LSE_k(g - C / epsilon).
        row_mass: (... n) masses a, non-negative; default 1.
        col_mass: (... k) masses b, non-negative; default sum(a) / k.
        init: (... k) the g to start from; default f = 0.
    """
    a = torch.ones_like(cost[..., 0]) if row_mass is None else row_mass.to(cost).expand(cost.shape[:-1])
    b = (a.sum(-1, keepdim=True) / cost.shape[-1]).expand(cost[..., 0, :].shape)
    if col_mass is not None:
        b = col_mass.to(cost).expand(b.shape)
    # An item without any mass has no transport: solve it as if all its tokens counted, and give it the zero plan.
    empty = (a.sum(-1, keepdim=True) == 0).detach()
    log_a, log_b = _log(torch.where(empty, 1, a)), _log(torch.where(empty, 1, b))
    logits = cost / -epsilon
    g = log_b if init is None else init
    f = torch.where(log_a == -torch.inf, log_a, 0) if init is None else log_a - (logits + g.unsqueeze(-2)).logsumexp(-1)
    for _ in range(n_iters):
        g = log_b - (logits + f.unsqueeze(-1)).logsumexp(-2)
        f = log_a - (logits + g.unsqueeze(-2)).logsumexp(-1)
    plan = (logits + f.unsqueeze(-1) + g.unsqueeze(-2)).exp()
    plan = torch.where(empty.unsqueeze(-1), 0, plan)
    error = ((plan.sum(-2) - b).abs() / b.clamp_min(torch.finfo(b.dtype).tiny)).amax(-1)
    iterations = torch.full((), n_iters, device=cost.device)
    return Transport(plan, f, g, iterations, error.detach())


def _log(mass: Tensor) -> Tensor:
    """The logarithm, -inf and without gradient where there is no mass."""
    return torch.where(mass > 0, mass, 1).log().masked_fill(mass == 0, -torch.inf)
