"""Both averages that a plan stands for, as operators: plans have n dense in memory, and so have their gradients.

On a CPU, item by item: an item's tokens stay in the cache for both products of a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from protoad.ops._items import items
from protoad.ops.precision import full_precision

__all__ = ["context", "reconstruct"]

_PAIR = " -> (Tensor, Tensor)"


@torch.library.custom_op(
    "protoad::reconstruct", mutates_args=(), schema="(Tensor plan, Tensor prototypes, str backend) -> Tensor"
)
def reconstruct(plan: Tensor, prototypes: Tensor, backend: str) -> Tensor:
    """Gives T P (... n d) of plan (... n k) and prototypes (k d) or (... k d), of one dtype."""
    if backend == "triton":
        from protoad.ops import _triton

        return _triton.reconstruct(plan, prototypes)
    rebuilt = _empty_rebuilt(plan, prototypes, backend)
    with full_precision(plan):
        for t, p, r in items(plan, prototypes, rebuilt):
            torch.matmul(t, p, out=r)
    return rebuilt


@reconstruct.register_fake
def _empty_rebuilt(plan: Tensor, prototypes: Tensor, backend: str) -> Tensor:
    return prototypes.new_empty((*plan.shape[:-1], prototypes.shape[-1]))


@torch.library.custom_op(
    "protoad::reconstruct_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor plan, Tensor prototypes, str backend)" + _PAIR,
)
def _reconstruct_backward(grad: Tensor, plan: Tensor, prototypes: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Gives the gradients to the plan (... n k) and to the prototypes, of their shape."""
    if backend == "triton":
        from protoad.ops import _triton

        return _triton.reconstruct_backward(grad, plan, prototypes)
    grad_plan, _ = _empty_gradients_of_rebuilt(grad, plan, prototypes, backend)
    grad_prototypes = prototypes.new_empty((*plan.shape[:-2], *prototypes.shape[-2:]))
    with full_precision(plan):
        for g, t, p, gt, gp in items(grad, plan, prototypes, grad_plan, grad_prototypes):
            torch.matmul(p, g.mT, out=gt.mT)
            torch.matmul(t.mT, g, out=gp)
    return grad_plan, grad_prototypes.sum_to_size(prototypes.shape)


@_reconstruct_backward.register_fake
def _empty_gradients_of_rebuilt(grad: Tensor, plan: Tensor, prototypes: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    *leading, n, k = plan.shape
    return plan.new_empty((*leading, k, n)).mT, prototypes.new_empty(prototypes.shape)


@torch.library.custom_op(
    "protoad::context", mutates_args=(), schema="(Tensor plan, Tensor tokens, str backend)" + _PAIR
)
def context(plan: Tensor, tokens: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Gives the weighted means (... k d) of tokens (... n d) under plan (... n k), and the weights' sums (... k)."""
    if backend == "triton":
        from protoad.ops import _triton

        return _triton.context(plan, tokens)
    means, mass = _empty_context(plan, tokens, backend)
    torch.sum(plan, -2, out=mass)
    with full_precision(plan):
        for t, z, c, m in items(plan, tokens, means, mass.unsqueeze(-1)):
            torch.matmul(t.mT, z, out=c).div_(_above_zero(m))
    return means, mass


@context.register_fake
def _empty_context(plan: Tensor, tokens: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    *leading, _, k = plan.shape
    return tokens.new_empty((*leading, k, tokens.shape[-1])), plan.new_empty((*leading, k))


@torch.library.custom_op(
    "protoad::context_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor plan, Tensor tokens, Tensor means, Tensor mass, str backend)" + _PAIR,
)
def _context_backward(
    grad: Tensor, plan: Tensor, tokens: Tensor, means: Tensor, mass: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """Gives the gradients (g_k z_n - g_k c_k) / m_k to plan (... n k) and sum_k T_nk g_k / m_k to tokens (... n d)."""
    if backend == "triton":
        from protoad.ops import _triton

        return _triton.context_backward(grad, plan, tokens, means, mass)
    grad_plan, grad_tokens = _empty_gradients_of_context(grad, plan, tokens, means, mass, backend)
    everything = grad, plan, tokens, means, mass.unsqueeze(-1), grad_plan, grad_tokens
    with full_precision(plan):
        for g, t, z, c, m, gt, gz in items(*everything):
            scaled = g / _above_zero(m)
            scaled.masked_fill_(m == 0, 0)
            torch.matmul(scaled, z.mT, out=gt.mT).sub_((scaled * c).sum(-1, keepdim=True))
            torch.matmul(t, scaled, out=gz)
    return grad_plan, grad_tokens


@_context_backward.register_fake
def _empty_gradients_of_context(
    grad: Tensor, plan: Tensor, tokens: Tensor, means: Tensor, mass: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    *leading, n, k = plan.shape
    return plan.new_empty((*leading, k, n)).mT, tokens.new_empty(tokens.shape)


def _above_zero(mass: Tensor) -> Tensor:
    return mass.clamp_min(torch.finfo(mass.dtype).tiny)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    plan, prototypes, ctx.backend = inputs
    ctx.save_for_backward(plan, prototypes)


def _differentiate_rebuilt(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    plan, prototypes = ctx.saved_tensors
    if torch.is_grad_enabled():  # in steps that autograd can follow, for a second derivative
        return grad @ prototypes.mT, (plan.mT @ grad).sum_to_size(prototypes.shape), None
    return *_reconstruct_backward(grad, plan, prototypes, ctx.backend), None


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    plan, tokens, ctx.backend = inputs
    ctx.save_for_backward(plan, tokens, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate_context(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
    plan, tokens, means, mass = ctx.saved_tensors
    if torch.is_grad_enabled():
        sums = plan.sum(-2).unsqueeze(-1)
        scaled = torch.where(sums == 0, 0, grad / _above_zero(sums))
        centred = (scaled * (plan.mT @ tokens / _above_zero(sums))).sum(-1).unsqueeze(-2)
        return tokens @ scaled.mT - centred, plan @ scaled, None
    return *_context_backward(grad, plan, tokens, means, mass, ctx.backend), None


reconstruct.register_autograd(_differentiate_rebuilt, setup_context=_save_inputs)
context.register_autograd(_differentiate_context, setup_context=_save_all)
