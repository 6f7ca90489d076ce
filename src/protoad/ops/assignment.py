"""Unbalanced assignments (the rivals of paper Table 9), and what any plan is used for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import elu

from protoad.errors import ShapeError
from protoad.ops._average import context, reconstruct
from protoad.ops._backend import choose, exporting
from protoad.ops._checks import check_mask, check_positive, check_tokens_and_prototypes
from protoad.ops._types import Backend
from protoad.ops.precision import full_precision, solver_dtype
from protoad.ops.sinkhorn import cosine_cost

__all__ = ["linear_plan", "sigmoid_plan", "softmax_plan", "transport_context", "transport_reconstruct"]


def softmax_plan(
    tokens: Tensor, prototypes: Tensor, *, epsilon: float = 0.05, token_mask: Tensor | None = None
) -> Tensor:
    """Gives softmax_k(cos(z_n, p_k) / epsilon): rows sum to 1, columns to whatever they like (Table 9, row 1).

    Args:
        tokens: (... n d).
        prototypes: (k d) or (... k d).
        epsilon: temperature on the cosine.
        token_mask: (... n) bool; rows with False are 0.

    Returns:
        (... n k), in the dtype of the tokens, computed in float32 (float64 for float64).
    """
    return _masked_rows(_similarity(tokens, prototypes, epsilon).softmax(-1), tokens, token_mask)


def linear_plan(tokens: Tensor, prototypes: Tensor, *, token_mask: Tensor | None = None) -> Tensor:
    """Gives phi(z_n) . phi(p_k) with phi = elu + 1, rows normalised to 1 (Table 9, row 2).

    The feature map acts on the vectors as they are, as in linear attention, so their scale matters.

    Args:
        tokens: (... n d).
        prototypes: (k d) or (... k d).
        token_mask: (... n) bool; rows with False are 0.

    Returns:
        (... n k), in the dtype of the tokens.
    """
    check_tokens_and_prototypes(tokens, prototypes)
    with full_precision(tokens):
        dtype = solver_dtype(tokens)
        weights = (elu(tokens.to(dtype)) + 1) @ (elu(prototypes.to(dtype)) + 1).mT
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
    return _masked_rows(weights, tokens, token_mask)


def sigmoid_plan(
    tokens: Tensor,
    prototypes: Tensor,
    *,
    epsilon: float = 0.05,
    normalise: bool = True,
    token_mask: Tensor | None = None,
) -> Tensor:
    """Gives sigmoid(cos(z_n, p_k) / epsilon), each row normalised to 1 unless told otherwise (Table 9, row 3).

    Args:
        tokens: (... n d).
        prototypes: (k d) or (... k d).
        epsilon: temperature on the cosine.
        normalise: whether rows sum to 1.
        token_mask: (... n) bool; rows with False are 0.

    Returns:
        (... n k), in the dtype of the tokens.
    """
    weights = _similarity(tokens, prototypes, epsilon).sigmoid()
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return _masked_rows(weights, tokens, token_mask)


def transport_reconstruct(plan: Tensor, prototypes: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Gives z_n^bpa = sum_k T_nk p_k, tokens made of prototypes (paper Eq. 2).

    Args:
        plan: (... n k).
        prototypes: (k d) or (... k d).
        backend: "auto", "torch" or "triton".

    Returns:
        (... n d) in the wider of both dtypes.

    Raises:
        ShapeError: if k or the leading axes differ.
        ValueError: for a backend that cannot serve.
    """
    if plan.shape[-1] != prototypes.shape[-2] or prototypes.shape[:-2] not in ((), plan.shape[:-2]):
        raise ShapeError(
            f"prototypes: expected k={plan.shape[-1]} and leading axes {tuple(plan.shape[:-2])} or none as in plan "
            f"{tuple(plan.shape)}, got {tuple(prototypes.shape)}"
        )
    dtype = torch.promote_types(plan.dtype, prototypes.dtype)
    plan, prototypes = plan.to(dtype), prototypes.to(dtype)
    if exporting():
        return plan @ prototypes
    return reconstruct(plan, prototypes, choose(backend, prototypes, k=plan.shape[-1]))


def transport_context(plan: Tensor, tokens: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Gives c_k = sum_n T_nk z_n / sum_n T_nk, each prototype's mean of its tokens (paper section 3.3).

    Args:
        plan: (... n k), non-negative.
        tokens: (... n d).
        backend: "auto", "torch" or "triton".

    Returns:
        (... k d) in the wider of both dtypes; zero for a prototype that receives no mass.

    Raises:
        ShapeError: if n or the leading axes differ.
        ValueError: for a backend that cannot serve.
    """
    if plan.shape[-2] != tokens.shape[-2] or plan.shape[:-2] != tokens.shape[:-2]:
        raise ShapeError(
            f"tokens: expected n={plan.shape[-2]} and leading axes {tuple(plan.shape[:-2])} as in plan "
            f"{tuple(plan.shape)}, got {tuple(tokens.shape)}"
        )
    dtype = torch.promote_types(plan.dtype, tokens.dtype)
    plan, tokens = plan.to(dtype), tokens.to(dtype)
    if exporting():
        mass = plan.sum(-2).unsqueeze(-1)
        return plan.mT @ tokens / mass.clamp_min(torch.finfo(mass.dtype).tiny)
    means, _ = context(plan, tokens, choose(backend, tokens, k=plan.shape[-1]))
    return means


def _similarity(tokens: Tensor, prototypes: Tensor, epsilon: float) -> Tensor:
    check_positive(epsilon=epsilon)
    check_tokens_and_prototypes(tokens, prototypes)
    with full_precision(tokens):
        dtype = solver_dtype(tokens)
        return (1 - cosine_cost(tokens.to(dtype), prototypes.to(dtype))) / epsilon


def _masked_rows(plan: Tensor, tokens: Tensor, token_mask: Tensor | None) -> Tensor:
    check_mask(token_mask, tokens)
    if token_mask is not None:
        plan = plan * token_mask.unsqueeze(-1)
    return plan.to(tokens.dtype)
