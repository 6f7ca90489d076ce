"""Solving in float32 whatever comes in, and unit vectors that survive zero tokens."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["full_precision", "solver_dtype", "unit"]


def solver_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything else: bf16 rows would be off by two per cent."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """Gives a context in which autocast is off on the tensor's device."""
    device = tensor.device.type
    # Entering autocast takes as long as ten small operations.
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def unit(vectors: Tensor) -> Tensor:
    """Gives vectors / |vectors| over the last axis; a zero vector stays zero, with zero gradient.

    Args:
        vectors: (... d). Background tokens of a normal map are exactly zero: a division by a clamped norm would
            give them gradients of 1e12.
    """
    squares = vectors.square().sum(-1, keepdim=True)
    alive = ~(squares <= torch.finfo(vectors.dtype).tiny)  # written so that NaN stays NaN
    scale = torch.where(alive, squares, torch.ones_like(squares)).rsqrt()
    return torch.where(alive, vectors * scale, torch.zeros_like(vectors))
