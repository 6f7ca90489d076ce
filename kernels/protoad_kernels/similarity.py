# mypy: allow-untyped-defs
"""The cosine similarity of tokens with directions, each token read once: for its products and its norm together."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from protoad_kernels.apply import mix, sum_splits, sum_tokens
from protoad_kernels.blocks import batch_stride, blocks, load_rows, split_tokens, store_rows

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
    size = blocks(k, d, most_d=64 if k <= 16 else 32)
    _similarity_fwd_kernel[(b * triton.cdiv(n, size.n) * triton.cdiv(k, size.k),)](
        tokens, directions, similarity, inverse, n, k, d, batch_stride(directions), **size.launch()
    )
    return similarity, inverse


def similarity_backward(
    grad: Tensor, tokens: Tensor, directions: Tensor, similarity: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """Gives the gradients to tokens and directions.

    With w = grad / |z|: to a token sum_k w_k p_k - z / |z| sum_k w_k s_k, to a direction sum_n w_n z_n.

    Args:
        grad: (b k n) float32, contiguous.
        tokens: (b n d), as in `similarity_forward`; read once for up to 64 directions. With more, the registers do not
            hold both sums at a time.
        directions: (b k d) or (1 k d).
        similarity: (b k n), as given forward.
        inverse: (b n), as given forward.

    Returns:
        (b n d) in the tokens' dtype, and the directions' shape in float32.
    """
    b, n, d = tokens.shape
    k = directions.shape[1]
    shared = len(directions) == 1
    if k > 64:
        weights = grad * inverse.unsqueeze(1)
        along = (weights * similarity).sum(1) * inverse
        return mix(weights, directions, tokens.dtype, tokens, along), sum_tokens(weights, tokens, shared)
    size = blocks(k, d, n=32 if k <= 32 else 16)
    programs = b * triton.cdiv(d, size.d)
    splits, chunk = split_tokens(n, size.n, programs)
    grad_tokens = torch.empty((b, n, d), device=tokens.device, dtype=tokens.dtype)
    partial = torch.empty((b, splits, k, d), device=tokens.device, dtype=torch.float32)
    _similarity_bwd_kernel[(programs, splits)](
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
        chunk,
        **size.launch(),
    )
    return grad_tokens, sum_splits(partial, shared)


@triton.jit
def _similarity_fwd_kernel(
    tokens, directions, similarity, inverse, n, k, d, directions_stride,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, parts = tl.cdiv(k, BLOCK_K), tl.cdiv(n, BLOCK_N)
    row, block = tl.program_id(0) % rows, tl.program_id(0) // rows
    item = (block // parts).to(tl.int64)
    ns, ks = block % parts * BLOCK_N + tl.arange(0, BLOCK_N), row * BLOCK_K + tl.arange(0, BLOCK_K)
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
    scale = tl.where(zero, 0.0, tl.rsqrt(tl.where(zero, 1.0, squares)))
    store_rows(similarity + item * k * n, products * scale[None, :], ks, ns, k, n)
    tl.store(inverse + item * n + ns, scale, mask=(ns < n) & (row == 0))


@triton.jit
def _similarity_bwd_kernel(
    grad, tokens, directions, similarity, inverse, grad_tokens, partial, n, k, d, directions_stride, chunk,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    columns = tl.cdiv(d, BLOCK_D)
    item = (tl.program_id(0) // columns).to(tl.int64)
    split, splits = tl.program_id(1), tl.num_programs(1)
    ks, ds = tl.arange(0, BLOCK_K), tl.program_id(0) % columns * BLOCK_D + tl.arange(0, BLOCK_D)
    grad += item * k * n
    similarity += item * k * n
    tokens += item * n * d
    grad_tokens += item * n * d
    p = load_rows(directions + item * directions_stride, ks, ds, k, d)
    total = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for first in range(split * chunk, tl.minimum(split * chunk + chunk, n), BLOCK_N):
        ns = first + tl.arange(0, BLOCK_N)
        scale = tl.load(inverse + item * n + ns, mask=ns < n, other=0.0)
        weights = load_rows(grad, ks, ns, k, n) * scale[None, :]
        along = tl.sum(weights * load_rows(similarity, ks, ns, k, n), 0) * scale
        z = load_rows(tokens, ns, ds, n, d)
        total = tl.dot(weights, z, total, input_precision="tf32x3")
        pull = tl.dot(tl.trans(weights), p, input_precision="tf32x3") - z * along[:, None]
        store_rows(grad_tokens, pull, ns, ds, n, d)
    store_rows(partial + (item * splits + split) * k * d, total, ks, ds, k, d)
