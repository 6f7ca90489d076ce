"""The cosine cost as one operator: no normalised copy of the tokens, neither forward nor for the gradient.

On a CPU, item by item: an item's tokens stay in the cache from their norms to their products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from protoad.ops._backend import choose, exporting
from protoad.ops._items import items
from protoad.ops._types import Backend
from protoad.ops.precision import full_precision, solver_dtype, unit

__all__ = ["cosine_cost"]


def cosine_cost(tokens: Tensor, prototypes: Tensor, backend: Backend) -> Tensor:
    """Gives 1 - cos(z_n, p_k); a zero vector has cosine 0 to everything, and zero gradient.

    Args:
        tokens: (... n d).
        prototypes: (k d) or (... k d).
        backend: "auto", "torch" or "triton".

    Returns:
        (... n k) in float32 (float64 for float64); n dense in memory, as the Sinkhorn solver likes it.
    """
    if exporting():
        return _plain(tokens, prototypes)
    cost, _ = _cosine_cost(tokens, prototypes, choose(backend, tokens, k=prototypes.shape[-2]))
    return cost.mT


def _plain(tokens: Tensor, prototypes: Tensor) -> Tensor:
    """The same in operators that autograd and other runtimes know."""
    dtype = solver_dtype(tokens)
    with full_precision(tokens):
        return 1 - unit(tokens.to(dtype)) @ unit(prototypes.to(dtype)).mT


@torch.library.custom_op(
    "protoad::cosine_cost",
    mutates_args=(),
    schema="(Tensor tokens, Tensor prototypes, str backend) -> (Tensor, Tensor)",
)
def _cosine_cost(tokens: Tensor, prototypes: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Gives the cost (... k n) and 1 / |z| (... n), 0 for zero tokens."""
    cost, inverse = _empty_cost(tokens, prototypes, backend)
    with full_precision(tokens):
        directions, _ = _directions(prototypes.to(cost.dtype))
        if backend == "triton":
            from protoad.ops import _triton

            similarity, inverse = _triton.cosine(tokens, directions)
            return 1 - similarity, inverse
        for z, p, c, i in items(tokens.to(cost.dtype), directions, cost, inverse.unsqueeze(-2)):
            _invert_norms(torch.linalg.vector_norm(z, dim=-1, keepdim=True, out=i.mT))
            torch.matmul(p, z.mT, out=c).mul_(i)
        return cost.neg_().add_(1), inverse


@_cosine_cost.register_fake
def _empty_cost(tokens: Tensor, prototypes: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    *leading, n, _ = tokens.shape
    dtype = solver_dtype(tokens)
    return tokens.new_empty((*leading, prototypes.shape[-2], n), dtype=dtype), tokens.new_empty(
        (*leading, n), dtype=dtype
    )


@torch.library.custom_op(
    "protoad::cosine_cost_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor tokens, Tensor prototypes, Tensor cost, Tensor inverse, str backend)"
    " -> (Tensor, Tensor)",
)
def _cosine_cost_backward(
    grad: Tensor, tokens: Tensor, prototypes: Tensor, cost: Tensor, inverse: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """Gives the gradients to the tokens (... n d) and to the prototypes, of their shapes and dtypes."""
    with full_precision(tokens):
        directions, lengths = _directions(prototypes.to(cost.dtype))
        similarity, grad = 1 - cost, -grad
        if backend == "triton":
            from protoad.ops import _triton

            grad_tokens, pull = _triton.cosine_backward(grad, tokens, directions, similarity, inverse)
        else:
            grad_tokens, pull = _pull(grad, tokens.to(cost.dtype), directions, similarity, inverse)
        pull = pull.sum_to_size(directions.shape)
        pull.addcmul_(directions, (pull * directions).sum(-1, keepdim=True), value=-1).mul_(lengths)
    return grad_tokens.to(tokens.dtype), pull.to(prototypes.dtype)


def _pull(
    grad: Tensor, tokens: Tensor, directions: Tensor, similarity: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """Gives the gradients to the tokens (... n d), and to the directions of each item (... k d)."""
    grad_tokens = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    grad_directions = directions.new_empty((*tokens.shape[:-2], *directions.shape[-2:]))
    everything = grad, tokens, directions, similarity, inverse.unsqueeze(-2), grad_tokens, grad_directions
    for g, z, p, s, i, gz, gp in items(*everything):
        scaled = g * i
        along = (scaled * s).sum(-2, keepdim=True).mul_(i)
        torch.matmul(scaled.mT, p, out=gz).addcmul_(z, along.mT, value=-1)
        torch.matmul(scaled, z, out=gp)
    return grad_tokens, grad_directions


@_cosine_cost_backward.register_fake
def _empty_gradients(
    grad: Tensor, tokens: Tensor, prototypes: Tensor, cost: Tensor, inverse: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return tokens.new_empty(tokens.shape), prototypes.new_empty(prototypes.shape)


def _directions(prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Gives p / |p| (... k d) and 1 / |p| (... k 1), both 0 for a zero vector."""
    inverse = _invert_norms(torch.linalg.vector_norm(prototypes, dim=-1, keepdim=True))
    return prototypes * inverse, inverse


def _invert_norms(norms: Tensor) -> Tensor:
    """1 over them in place, 0 for those of zero vectors; written so that NaN stays NaN."""
    return norms.masked_fill_(norms <= torch.finfo(norms.dtype).tiny ** 0.5, torch.inf).reciprocal_()


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tokens, prototypes, ctx.backend = inputs
    ctx.save_for_backward(tokens, prototypes, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    tokens, prototypes, cost, inverse = ctx.saved_tensors
    if torch.is_grad_enabled():  # in steps that autograd can follow, for a second derivative
        cost = _plain(tokens, prototypes).mT
        of = [one for one, needed in zip((tokens, prototypes), ctx.needs_input_grad, strict=False) if needed]
        found = iter(torch.autograd.grad(cost, of, grad, create_graph=True))
        return *(next(found) if needed else None for needed in ctx.needs_input_grad[:2]), None
    return *_cosine_cost_backward(grad, tokens, prototypes, cost, inverse, ctx.backend), None


_cosine_cost.register_autograd(_differentiate, setup_context=_save)
