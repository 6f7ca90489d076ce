# mypy: allow-untyped-defs
"""The cosine similarity of tokens with directions, each token read once: for its products and its norm together."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from protoad_kernels.blocks import batch_stride, blocks, load_rows

__all__ = ["similarity_backward", "similarity_forward"]

# Squared norms up to the smallest normal float32 belong to zero tokens.
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


def similarity_forward(tokens: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Gives <z_n, p_k> / |z_n| and 1 / |z_n|.

    Args:
        tokens: (b n d) float32, bfloat16 or float16, contiguous.
        directions: (b k d) or (1 k d) float32, contiguous, unit rows.

    Returns:
        (b k n) and (b n), float32; 0 for zero tokens.
    """
    b, n, d = tokens.shape
    k = directions.shape[1]
    similarity = torch.empty((b, k, n), device=tokens.device, dtype=torch.float32)
    inverse = torch.empty((b, n), device=tokens.device, dtype=torch.float32)
    size = blocks(k, d)
    _similarity_fwd_kernel[(triton.cdiv(n, size.n), b)](
        tokens,
        directions,
        similarity,
        inverse,
        n,
        k,
        d,
        batch_stride(directions),
        **size.launch(),
    )
    return similarity, inverse


def similarity_backward(
    grad: Tensor, tokens: Tensor, directions: Tensor, similarity: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """Gives the gradients to tokens and directions, the tokens read once.

    With w = grad / |z|: to a token sum_k w_k p_k - z / |z| sum_k w_k s_k, to a direction sum_n w_n z_n.

    Args:
        grad: (b k n) float32, contiguous.
        tokens: (b n d), as in `similarity_forward`.
        directions: (b k d) or (1 k d).
        similarity: (b k n), as given forward.
        inverse: (b n), as given forward.

    Returns:
        (b n d) in the tokens' dtype, and the directions' shape in float32.
    """
    b, n, d = tokens.shape
    k = directions.shape[1]
    size = blocks(k, d)
    parts = triton.cdiv(n, size.n)
    grad_tokens = torch.empty((b, n, d), device=tokens.device, dtype=tokens.dtype)
    partial = torch.empty((b, parts, k, d), device=tokens.device, dtype=torch.float32)
    _similarity_bwd_kernel[(parts, b)](
        grad,
        tokens,
        directions,
        similarity,
        inverse,
        grad_tokens,
        partial,
        n,
        k,
        d,
        batch_stride(directions),
        **size.launch(),
    )
    return grad_tokens, partial.sum((0, 1) if len(directions) == 1 else 1).view(directions.shape)


@triton.jit
def _similarity_fwd_kernel(
    tokens, directions, similarity, inverse, n, k, d, directions_stride,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part, item = tl.program_id(0), tl.program_id(1).to(tl.int64)
    ns, ks = part * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    tokens += item * n * d
    directions += item * directions_stride
    products = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, d, BLOCK_D):
        ds = first + tl.arange(0, BLOCK_D)
        z = load_rows(tokens, ns, ds, n, d)
        p = load_rows(directions, ks, ds, k, d)
        products = tl.dot(p, tl.trans(z), products, input_precision="tf32x3")
        squares += tl.sum(z * z, 1)
    zero = squares <= TINY  # written so that NaN stays NaN
    scale = tl.where(zero, 0.0, 1.0 / tl.sqrt(tl.where(zero, 1.0, squares)))
    real = (ks[:, None] < k) & (ns[None, :] < n)
    tl.store(similarity + item * k * n + ks[:, None] * n + ns[None, :], products * scale[None, :], mask=real)
    tl.store(inverse + item * n + ns, scale, mask=ns < n)


@triton.jit
def _similarity_bwd_kernel(
    grad, tokens, directions, similarity, inverse, grad_tokens, partial, n, k, d, directions_stride,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part, parts, item = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    ns, ks = part * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    tokens += item * n * d
    grad_tokens += item * n * d
    directions += item * directions_stride
    partial += (item * parts + part) * k * d
    scale = tl.load(inverse + item * n + ns, mask=ns < n, other=0.0)
    weights = load_rows(grad + item * k * n, ks, ns, k, n) * scale[None, :]
    along = tl.sum(weights * load_rows(similarity + item * k * n, ks, ns, k, n), 0) * scale
    for first in range(0, d, BLOCK_D):
        ds = first + tl.arange(0, BLOCK_D)
        z = load_rows(tokens, ns, ds, n, d)
        p = load_rows(directions, ks, ds, k, d)
        pull = tl.dot(tl.trans(weights), p, input_precision="tf32x3") - z * along[:, None]
        inside = (ns[:, None] < n) & (ds[None, :] < d)
        pull = pull.to(grad_tokens.dtype.element_ty)
        tl.store(grad_tokens + ns[:, None].to(tl.int64) * d + ds[None, :], pull, mask=inside)
        total = tl.dot(weights, z, input_precision="tf32x3")
        tl.store(partial + ks[:, None] * d + ds[None, :], total, mask=(ks[:, None] < k) & (ds[None, :] < d))
