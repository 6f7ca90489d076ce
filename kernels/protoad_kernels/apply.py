# mypy: allow-untyped-defs
"""Both averages that a plan stands for: tokens made of prototypes, and prototypes' means of their tokens.

Sums over tokens are taken within each block of tokens and then over the blocks in their order, so that two runs agree
to the bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from protoad_kernels.blocks import batch_stride, blocks, load_rows

__all__ = ["context_backward", "context_forward", "reconstruct_backward", "reconstruct_forward"]


def reconstruct_forward(plan: Tensor, prototypes: Tensor) -> Tensor:
    """Gives sum_k T_kn p_k.

    Args:
        plan: (b k n) float32, contiguous.
        prototypes: (b k d) or (1 k d), float32, bfloat16 or float16, contiguous.

    Returns:
        (b n d) in the prototypes' dtype.
    """
    b, k, n = plan.shape
    d = prototypes.shape[2]
    rebuilt = torch.empty((b, n, d), device=plan.device, dtype=prototypes.dtype)
    size = blocks(k, d)
    _reconstruct_fwd_kernel[(triton.cdiv(n, size.n), b)](
        plan,
        prototypes,
        rebuilt,
        n,
        k,
        d,
        batch_stride(prototypes),
        **size.launch(),
    )
    return rebuilt


def reconstruct_backward(grad: Tensor, plan: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Gives the gradients g_n p_k to the plan and sum_n T_kn g_n to the prototypes, `grad` read once.

    Args:
        grad: (b n d), contiguous.
        plan: (b k n) float32, contiguous.
        prototypes: (b k d) or (1 k d), contiguous.

    Returns:
        (b k n) in float32, and the prototypes' shape and dtype.
    """
    b, k, n = plan.shape
    d = prototypes.shape[2]
    size = blocks(k, d)
    parts = triton.cdiv(n, size.n)
    grad_plan = torch.empty((b, k, n), device=plan.device, dtype=torch.float32)
    partial = torch.empty((b, parts, k, d), device=plan.device, dtype=torch.float32)
    _reconstruct_bwd_kernel[(parts, b)](
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
    total = partial.sum((0, 1) if len(prototypes) == 1 else 1).view(prototypes.shape)
    return grad_plan, total.to(prototypes.dtype)


def context_forward(plan: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Gives sum_n T_kn z_n / sum_n T_kn, and the sums.

    Args:
        plan: (b k n) float32, contiguous.
        tokens: (b n d) float32, bfloat16 or float16, contiguous.

    Returns:
        (b k d) in the tokens' dtype, 0 for a prototype without mass; (b k) in float32.
    """
    b, k, n = plan.shape
    d = tokens.shape[2]
    size = blocks(k, d)
    parts = triton.cdiv(n, size.n)
    partial = torch.empty((b, parts, k, d), device=plan.device, dtype=torch.float32)
    partial_mass = torch.empty((b, parts, k), device=plan.device, dtype=torch.float32)
    _context_fwd_kernel[(parts, b)](
        plan,
        tokens,
        partial,
        partial_mass,
        n,
        k,
        d,
        **size.launch(),
    )
    mass = partial_mass.sum(1)
    return (partial.sum(1) / _above_zero(mass)).to(tokens.dtype), mass


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
    b, k, n = plan.shape
    d = tokens.shape[2]
    size = blocks(k, d)
    size = size._replace(n=min(size.n, 32))  # two products of a tile at once: with 64 tokens registers spill
    scaled = torch.where(mass.unsqueeze(-1) > 0, grad.float() / _above_zero(mass), 0.0).contiguous()
    level = (scaled * context).sum(-1)
    grad_plan = torch.empty((b, k, n), device=plan.device, dtype=torch.float32)
    grad_tokens = torch.empty((b, n, d), device=plan.device, dtype=tokens.dtype)
    _context_bwd_kernel[(triton.cdiv(n, size.n), b)](
        scaled,
        level,
        plan,
        tokens,
        grad_plan,
        grad_tokens,
        n,
        k,
        d,
        **size.launch(),
    )
    return grad_plan, grad_tokens


def _above_zero(mass: Tensor) -> Tensor:
    return mass.clamp_min(torch.finfo(mass.dtype).tiny).unsqueeze(-1)


@triton.jit
def _reconstruct_fwd_kernel(
    plan, prototypes, rebuilt, n, k, d, prototypes_stride,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part, item = tl.program_id(0), tl.program_id(1).to(tl.int64)
    ns, ks = part * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    prototypes += item * prototypes_stride
    rebuilt += item * n * d
    shares = tl.trans(load_rows(plan + item * k * n, ks, ns, k, n))
    for first in range(0, d, BLOCK_D):
        ds = first + tl.arange(0, BLOCK_D)
        tile = tl.dot(shares, load_rows(prototypes, ks, ds, k, d), input_precision="tf32x3")
        inside = (ns[:, None] < n) & (ds[None, :] < d)
        tl.store(rebuilt + ns[:, None].to(tl.int64) * d + ds[None, :], tile.to(rebuilt.dtype.element_ty), mask=inside)


@triton.jit
def _reconstruct_bwd_kernel(
    grad, plan, prototypes, grad_plan, partial, n, k, d, prototypes_stride,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part, parts, item = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    ns, ks = part * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    grad += item * n * d
    prototypes += item * prototypes_stride
    partial += (item * parts + part) * k * d
    shares = load_rows(plan + item * k * n, ks, ns, k, n)
    pull = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
    for first in range(0, d, BLOCK_D):
        ds = first + tl.arange(0, BLOCK_D)
        g = load_rows(grad, ns, ds, n, d)
        p = load_rows(prototypes, ks, ds, k, d)
        pull = tl.dot(p, tl.trans(g), pull, input_precision="tf32x3")
        total = tl.dot(shares, g, input_precision="tf32x3")
        tl.store(partial + ks[:, None] * d + ds[None, :], total, mask=(ks[:, None] < k) & (ds[None, :] < d))
    real = (ks[:, None] < k) & (ns[None, :] < n)
    tl.store(grad_plan + item * k * n + ks[:, None] * n + ns[None, :], pull, mask=real)


@triton.jit
def _context_fwd_kernel(
    plan, tokens, partial, partial_mass, n, k, d,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part, parts, item = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    ns, ks = part * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    tokens += item * n * d
    partial += (item * parts + part) * k * d
    shares = load_rows(plan + item * k * n, ks, ns, k, n)
    tl.store(partial_mass + (item * parts + part) * k + ks, tl.sum(shares, 1), mask=ks < k)
    for first in range(0, d, BLOCK_D):
        ds = first + tl.arange(0, BLOCK_D)
        total = tl.dot(shares, load_rows(tokens, ns, ds, n, d), input_precision="tf32x3")
        tl.store(partial + ks[:, None] * d + ds[None, :], total, mask=(ks[:, None] < k) & (ds[None, :] < d))


@triton.jit
def _context_bwd_kernel(
    scaled, level, plan, tokens, grad_plan, grad_tokens, n, k, d,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part, item = tl.program_id(0), tl.program_id(1).to(tl.int64)
    ns, ks = part * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    tokens += item * n * d
    grad_tokens += item * n * d
    shares = tl.trans(load_rows(plan + item * k * n, ks, ns, k, n))
    pull = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
    for first in range(0, d, BLOCK_D):
        ds = first + tl.arange(0, BLOCK_D)
        z = load_rows(tokens, ns, ds, n, d)
        g = load_rows(scaled + item * k * d, ks, ds, k, d)
        pull = tl.dot(g, tl.trans(z), pull, input_precision="tf32x3")
        tile = tl.dot(shares, g, input_precision="tf32x3")
        inside = (ns[:, None] < n) & (ds[None, :] < d)
        tl.store(
            grad_tokens + ns[:, None].to(tl.int64) * d + ds[None, :], tile.to(grad_tokens.dtype.element_ty), mask=inside
        )
    pull -= tl.load(level + item * k + ks, mask=ks < k, other=0.0)[:, None]
    real = (ks[:, None] < k) & (ns[None, :] < n)
    tl.store(grad_plan + item * k * n + ks[:, None] * n + ns[None, :], pull, mask=real)
