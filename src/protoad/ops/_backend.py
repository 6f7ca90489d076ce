"""The one decision between plain PyTorch and the Triton kernels."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from protoad.ops._checks import check_choice
from protoad.ops._types import Backend

__all__ = ["choose", "exporting"]

_INSTALLED = importlib.util.find_spec("triton") is not None


def exporting() -> bool:
    """Whether torch.export or ONNX is looking: what it gets are plain operators, for runtimes that know no protoad."""
    return torch.compiler.is_exporting()


def choose(backend: Backend, tensor: Tensor, *, k: int, n: int = 1) -> str:
    """Gives "torch" or "triton" for tensors like this one and k prototypes.

    Raises:
        ValueError: for an unknown backend, or "triton" where it cannot serve.
    """
    check_choice("backend", backend, Backend)
    if backend == "torch" or (backend == "auto" and not tensor.is_cuda):
        return "torch"
    obstacle = _obstacle(tensor, k)
    if backend == "triton" and obstacle:
        raise ValueError(f"backend: expected what the Triton kernels can serve, got {obstacle}; use backend='torch'")
    return "torch" if obstacle else "triton"


def _obstacle(tensor: Tensor, k: int) -> str | None:
    if not _INSTALLED:
        return "no installed triton (pip install 'protoad[triton]')"
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"tensors on {tensor.device.type}"
    if tensor.dtype == torch.float64:
        return "float64"
    from protoad_kernels.tiers import MAX_PROTOTYPES

    if k > MAX_PROTOTYPES:
        return f"{k} prototypes, more than {MAX_PROTOTYPES}"
    return None
