# mypy: allow-untyped-defs
"""Both averages that a plan stands for: tokens made of prototypes, and prototypes' means of their tokens.

Sums over tokens are taken within each of a few splits of the tokens and then over the splits in their order, so that
two runs agree to the bit. Programs that read the same tokens have neighbouring ids, for the second to find them cached.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from protoad_kernels.blocks import batch_stride, blocks, load_rows, split_tokens, store_rows

__all__ = [
    "context_backward",
    "context_forward",
    "mix",
    "reconstruct_backward",
    "reconstruct_forward",
    "sum_splits",
    "sum_tokens",
]


def reconstruct_forward(plan: Tensor, prototypes: Tensor) -> Tensor:
    """Gives sum_k T_kn p_k.

    Args:
        plan: (b k n) float32, contiguous.
        prototypes: (b k d) or (1 k d), float32, bfloat16 or float16, contiguous.

    Returns:
        (b n d) in the prototypes' dtype.
    """
    return mix(plan, prototypes, prototypes.dtype)


def reconstruct_backward(grad: Tensor, plan: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Gives the gradients g_n p_k to the plan and sum_n T_kn g_n to the prototypes.

    Args:
        grad: (b n d), contiguous; read once for up to 16 prototypes. With more, the sums that one reading leaves behind
            for every block of tokens would outweigh a second reading.
        plan: (b k n) float32, contiguous.
        prototypes: (b k d) or (1 k d), contiguous.

    Returns:
        (b k n) in float32, and the prototypes' shape and dtype.
    """
    b, k, n = plan.shape
    d = prototypes.shape[2]
    shared = len(prototypes) == 1
    if k > 16:
        grad_plan, total = _gradient_of_plan(grad, prototypes, None), sum_tokens(plan, grad, shared)
        return grad_plan, total.to(prototypes.dtype)
    size = blocks(k, 32, n=64)
    parts = triton.cdiv(n, size.n)
    grad_plan = torch.empty((b, k, n), device=plan.device, dtype=torch.float32)
    partial = torch.empty((b, parts, k, d), device=plan.device, dtype=torch.float32)
    _reconstruct_bwd_kernel[(b * parts,)](
        grad,
        plan,
        prototypes,
        grad_plan,
        partial,
        n,
        k,
        d,
        batch_stride(prototypes),
        **size.launch(),
    )
    return grad_plan, sum_splits(partial, shared).to(prototypes.dtype)


def context_forward(plan: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Gives sum_n T_kn z_n / sum_n T_kn, and the sums.

    Args:
        plan: (b k n) float32, contiguous.
        tokens: (b n d) float32, bfloat16 or float16, contiguous.

    Returns:
        (b k d) in the tokens' dtype, 0 for a prototype without mass; (b k) in float32.
    """
    mass = plan.sum(-1)
    return (sum_tokens(plan, tokens, shared=False) / _above_zero(mass)).to(tokens.dtype), mass


def context_backward(
    grad: Tensor, plan: Tensor, tokens: Tensor, context: Tensor, mass: Tensor
) -> tuple[Tensor, Tensor]:
    """Gives the gradients (g_k z_n - g_k c_k) / m_k to the plan and sum_k T_kn g_k / m_k to the tokens, read once.

    Args:
        grad: (b k d), contiguous.
        plan: (b k n) float32, contiguous.
        tokens: (b n d), contiguous.
        context: (b k d), as given forward.
        mass: (b k) float32, as given forward; none gives no gradient.

    Returns:
        (b k n) in float32, and (b n d) in the tokens' dtype.
    """
    scaled = torch.where(mass.unsqueeze(-1) > 0, grad.float() / _above_zero(mass), 0.0)
    level = (scaled * context).sum(-1)
    return _gradient_of_plan(tokens, scaled, level), mix(plan, scaled, tokens.dtype)


def mix(
    weights: Tensor, prototypes: Tensor, dtype: torch.dtype, tokens: Tensor | None = None, along: Tensor | None = None
) -> Tensor:
    """Gives sum_k w_kn p_k - a_n z_n, the latter if there are tokens.

    Args:
        weights: (b k n) float32, contiguous.
        prototypes: (b k d) or (1 k d), contiguous.
        dtype: of the result.
        tokens: (b n d), contiguous.
        along: (b n) float32, contiguous.

    Returns:
        (b n d).
    """
    b, k, n = weights.shape
    d = prototypes.shape[2]
    size = blocks(k, d, most_k=32)
    mixed = torch.empty((b, n, d), device=weights.device, dtype=dtype)
    _mix_fwd_kernel[(b * triton.cdiv(n, size.n) * triton.cdiv(d, size.d),)](
        weights,
        prototypes,
        tokens,
        along,
        mixed,
        n,
        k,
        d,
        batch_stride(prototypes),
        **size.launch(),
    )
    return mixed


def sum_tokens(weights: Tensor, tokens: Tensor, shared: bool) -> Tensor:
    """Gives sum_n w_kn z_n, over all items if shared.

    Args:
        weights: (b k n) float32, contiguous.
        tokens: (b n d), contiguous.
        shared: whether the sum is over the items as well.

    Returns:
        (b k d) or (1 k d) in float32.
    """
    b, k, n = weights.shape
    d = tokens.shape[2]
    size = blocks(k, d)
    programs = b * triton.cdiv(d, size.d) * triton.cdiv(k, size.k)
    splits, chunk = split_tokens(n, size.n, programs)
    partial = torch.empty((b, splits, k, d), device=weights.device, dtype=torch.float32)
    _sum_fwd_kernel[(programs, splits)](
        weights,
        tokens,
        partial,
        n,
        k,
        d,
        chunk,
        **size.launch(),
    )
    return sum_splits(partial, shared)


def _gradient_of_plan(tokens: Tensor, prototypes: Tensor, level: Tensor | None) -> Tensor:
    """Gives z_n p_k - level_k (b k n) of tokens (b n d), prototypes (b k d) or (1 k d), and level (b k)."""
    b, n, d = tokens.shape
    k = prototypes.shape[1]
    size = blocks(k, d, most_d=64 if k <= 16 else 32)
    grad = torch.empty((b, k, n), device=tokens.device, dtype=torch.float32)
    _plan_bwd_kernel[(b * triton.cdiv(n, size.n) * triton.cdiv(k, size.k),)](
        tokens,
        prototypes,
        level,
        grad,
        n,
        k,
        d,
        batch_stride(prototypes),
        **size.launch(),
    )
    return grad


def sum_splits(partial: Tensor, shared: bool) -> Tensor:
    """Gives (b k d) of partial sums (b splits k d), or (1 k d) if all items share it."""
    return partial.flatten(0, 1).sum(0, keepdim=True) if shared else partial.sum(1)


def _above_zero(mass: Tensor) -> Tensor:
    return mass.clamp_min(torch.finfo(mass.dtype).tiny).unsqueeze(-1)


@triton.jit
def _mix_fwd_kernel(
    weights, prototypes, tokens, along, mixed, n, k, d, prototypes_stride,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    columns, parts = tl.cdiv(d, BLOCK_D), tl.cdiv(n, BLOCK_N)
    block = tl.program_id(0) // columns
    item = (block // parts).to(tl.int64)
    ns = block % parts * BLOCK_N + tl.arange(0, BLOCK_N)
    ds = tl.program_id(0) % columns * BLOCK_D + tl.arange(0, BLOCK_D)
    weights += item * k * n
    prototypes += item * prototypes_stride
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(0, k, BLOCK_K):
        ks = first + tl.arange(0, BLOCK_K)
        w = load_rows(weights, ks, ns, k, n)
        total = tl.dot(tl.trans(w), load_rows(prototypes, ks, ds, k, d), total, input_precision="tf32x3")
    if tokens is not None:
        a = tl.load(along + item * n + ns, mask=ns < n, other=0.0)
        total -= load_rows(tokens + item * n * d, ns, ds, n, d) * a[:, None]
    store_rows(mixed + item * n * d, total, ns, ds, n, d)


@triton.jit
def _sum_fwd_kernel(
    weights, tokens, partial, n, k, d, chunk,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = tl.cdiv(k, BLOCK_K), tl.cdiv(d, BLOCK_D)
    block, split, splits = tl.program_id(0) // rows, tl.program_id(1), tl.num_programs(1)
    item = (block // columns).to(tl.int64)
    ks = tl.program_id(0) % rows * BLOCK_K + tl.arange(0, BLOCK_K)
    ds = block % columns * BLOCK_D + tl.arange(0, BLOCK_D)
    weights += item * k * n
    tokens += item * n * d
    total = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for first in range(split * chunk, tl.minimum(split * chunk + chunk, n), BLOCK_N):
        ns = first + tl.arange(0, BLOCK_N)
        w = load_rows(weights, ks, ns, k, n)
        total = tl.dot(w, load_rows(tokens, ns, ds, n, d), total, input_precision="tf32x3")
    store_rows(partial + (item * splits + split) * k * d, total, ks, ds, k, d)


@triton.jit
def _plan_bwd_kernel(
    tokens, prototypes, level, grad, n, k, d, prototypes_stride,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, parts = tl.cdiv(k, BLOCK_K), tl.cdiv(n, BLOCK_N)
    block = tl.program_id(0) // rows
    item = (block // parts).to(tl.int64)
    ks = tl.program_id(0) % rows * BLOCK_K + tl.arange(0, BLOCK_K)
    ns = block % parts * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens += item * n * d
    prototypes += item * prototypes_stride
    products = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
    for first in range(0, d, BLOCK_D):
        ds = first + tl.arange(0, BLOCK_D)
        z = load_rows(tokens, ns, ds, n, d)
        products = tl.dot(load_rows(prototypes, ks, ds, k, d), tl.trans(z), products, input_precision="tf32x3")
    if level is not None:
        products -= tl.load(level + item * k + ks, mask=ks < k, other=0.0)[:, None]
    store_rows(grad + item * k * n, products, ks, ns, k, n)


@triton.jit
def _reconstruct_bwd_kernel(
    grad, plan, prototypes, grad_plan, partial, n, k, d, prototypes_stride,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    parts = tl.cdiv(n, BLOCK_N)
    block = tl.program_id(0).to(tl.int64)
    item = block // parts
    ns, ks = tl.program_id(0) % parts * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    grad += item * n * d
    prototypes += item * prototypes_stride
    partial += block * k * d
    shares = load_rows(plan + item * k * n, ks, ns, k, n)
    products = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
    for first in range(0, d, BLOCK_D):
        ds = first + tl.arange(0, BLOCK_D)
        g = load_rows(grad, ns, ds, n, d)
        products = tl.dot(load_rows(prototypes, ks, ds, k, d), tl.trans(g), products, input_precision="tf32x3")
        store_rows(partial, tl.dot(shares, g, input_precision="tf32x3"), ks, ds, k, d)
    store_rows(grad_plan + item * k * n, products, ks, ns, k, n)
