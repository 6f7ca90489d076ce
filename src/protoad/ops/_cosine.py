"""The cosine similarity as one operator: no normalised copy of the tokens, neither forward nor for the gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from protoad.ops.precision import full_precision

__all__ = ["cosine_similarity"]


def cosine_similarity(tokens: Tensor, directions: Tensor) -> Tensor:
    """Gives cos(z_n, p_k); a zero token has cosine 0 to everything, and zero gradient.

    Args:
        tokens: (... n d).
        directions: (k d) or (... k d), unit vectors.

    Returns:
        (... n k), n dense in memory, as the Sinkhorn solver likes it.
    """
    similarity, _ = _cosine_op(tokens, directions)
    return similarity.mT


@torch.library.custom_op(
    "protoad::cosine", mutates_args=(), schema="(Tensor tokens, Tensor directions) -> (Tensor, Tensor)"
)
def _cosine_op(tokens: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Gives the similarity (... k n) and 1 / |z| (... n), 0 for zero tokens."""
    norms = torch.linalg.vector_norm(tokens, dim=-1)
    inverse = torch.where(norms > math.sqrt(torch.finfo(norms.dtype).tiny), norms, torch.inf).reciprocal_()
    with full_precision(tokens):
        # Expanded, or matmul would fold the batch into the rows of (tokens directions^T), and transpose the result.
        similarity = directions.expand(*tokens.shape[:-2], -1, -1) @ tokens.mT
    return similarity.mul_(inverse.unsqueeze(-2)), inverse


@_cosine_op.register_fake
def _(tokens: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    *leading, n, _ = tokens.shape
    return tokens.new_empty((*leading, directions.shape[-2], n)), tokens.new_empty((*leading, n))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad_similarity: Tensor, grad_inverse: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """In differentiable steps, of all that was saved: second derivatives come from autograd."""
    tokens, directions, similarity, inverse = ctx.saved_tensors
    grad_tokens, grad_directions = None, None
    with full_precision(tokens):
        scaled = grad_similarity * inverse.unsqueeze(-2)
        if ctx.needs_input_grad[0]:
            along = (scaled * similarity).sum(-2) * inverse + grad_inverse * inverse**3
            pull = scaled.mT @ directions.expand(*tokens.shape[:-2], -1, -1)
            grad_tokens = pull.addcmul_(tokens, along.unsqueeze(-1), value=-1)
        if ctx.needs_input_grad[1]:
            grad_directions = (scaled @ tokens).sum_to_size(directions.shape)
    return grad_tokens, grad_directions


_cosine_op.register_autograd(_differentiate, setup_context=_setup_context)
