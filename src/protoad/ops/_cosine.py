"""The cosine similarity as one operator: no normalised copy of the tokens, neither forward nor for the gradient.

On a CPU, item by item: an item's tokens stay in the cache from their norms to their products.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from protoad.ops._backend import choose, exporting
from protoad.ops._items import items
from protoad.ops._types import Backend
from protoad.ops.precision import full_precision, unit

__all__ = ["cosine_similarity"]


def cosine_similarity(tokens: Tensor, directions: Tensor, backend: Backend) -> Tensor:
    """Gives cos(z_n, p_k); a zero token has cosine 0 to everything, and zero gradient.

    Args:
        tokens: (... n d).
        directions: (k d) or (... k d), unit vectors in float32 (float64 for float64).
        backend: "auto", "torch" or "triton".

    Returns:
        (... n k) in the dtype of the directions; n dense in memory, as the Sinkhorn solver likes it.
    """
    if exporting():
        return unit(tokens.to(directions.dtype)) @ directions.mT
    similarity, _ = _cosine(tokens, directions, choose(backend, directions, k=directions.shape[-2]))
    return similarity.mT


@torch.library.custom_op(
    "protoad::cosine", mutates_args=(), schema="(Tensor tokens, Tensor directions, str backend) -> (Tensor, Tensor)"
)
def _cosine(tokens: Tensor, directions: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Gives the similarity (... k n) and 1 / |z| (... n), 0 for zero tokens."""
    if backend == "triton":
        from protoad.ops._triton import cosine

        return cosine(tokens, directions)
    similarity, inverse = _empty_similarity(tokens, directions, backend)
    with full_precision(tokens):
        for z, p, s, i in items(tokens.to(directions.dtype), directions, similarity, inverse.unsqueeze(-2)):
            torch.linalg.vector_norm(z, dim=-1, keepdim=True, out=i.mT)
            i.masked_fill_(i <= math.sqrt(torch.finfo(i.dtype).tiny), torch.inf).reciprocal_()
            torch.matmul(p, z.mT, out=s).mul_(i)
    return similarity, inverse


@_cosine.register_fake
def _empty_similarity(tokens: Tensor, directions: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    *leading, n, _ = tokens.shape
    return directions.new_empty((*leading, directions.shape[-2], n)), directions.new_empty((*leading, n))


@torch.library.custom_op(
    "protoad::cosine_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor tokens, Tensor directions, Tensor similarity, Tensor inverse, str backend)"
    " -> (Tensor, Tensor)",
)
def _cosine_backward(
    grad: Tensor, tokens: Tensor, directions: Tensor, similarity: Tensor, inverse: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """Gives the gradients to the tokens (... n d) and to the directions, of their shape."""
    if backend == "triton":
        from protoad.ops._triton import cosine_backward

        return cosine_backward(grad, tokens, directions, similarity, inverse)
    exact = tokens.to(directions.dtype)
    grad_tokens = exact.new_empty(tokens.shape)
    grad_directions = directions.new_empty((*tokens.shape[:-2], *directions.shape[-2:]))
    everything = grad, exact, directions, similarity, inverse.unsqueeze(-2), grad_tokens, grad_directions
    with full_precision(tokens):
        for g, z, p, s, i, gz, gp in items(*everything):
            scaled = g * i
            along = (scaled * s).sum(-2, keepdim=True).mul_(i)
            torch.matmul(scaled.mT, p, out=gz).addcmul_(z, along.mT, value=-1)
            torch.matmul(scaled, z, out=gp)
    return grad_tokens.to(tokens.dtype), grad_directions.sum_to_size(directions.shape)


@_cosine_backward.register_fake
def _empty_gradients(
    grad: Tensor, tokens: Tensor, directions: Tensor, similarity: Tensor, inverse: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return tokens.new_empty(tokens.shape), directions.new_empty(directions.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tokens, directions, ctx.backend = inputs
    ctx.save_for_backward(tokens, directions, *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, grad_inverse: Tensor | None) -> tuple[Tensor, Tensor, None]:
    tokens, directions, similarity, inverse = ctx.saved_tensors
    grad = torch.zeros_like(similarity) if grad is None else grad
    if torch.is_grad_enabled() or grad_inverse is not None:  # only a second derivative asks for that of 1 / |z|
        return *_differentiable_gradient(tokens, directions, similarity, inverse, grad, grad_inverse), None
    return *_cosine_backward(grad, tokens, directions, similarity, inverse, ctx.backend), None


def _differentiable_gradient(
    tokens: Tensor, directions: Tensor, similarity: Tensor, inverse: Tensor, grad: Tensor, grad_inverse: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same in steps that autograd can follow, for a second derivative."""
    with full_precision(tokens):
        exact, scaled = tokens.to(directions.dtype), grad * inverse.unsqueeze(-2)
        along = (scaled * similarity).sum(-2) * inverse
        if grad_inverse is not None:
            along = along + grad_inverse * inverse**3
        grad_tokens = scaled.mT @ directions - exact * along.unsqueeze(-1)
        return grad_tokens.to(tokens.dtype), (scaled @ exact).sum_to_size(directions.shape)


_cosine.register_autograd(_differentiate, setup_context=_setup_context)
