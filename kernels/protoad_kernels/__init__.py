"""Triton kernels and their launchers, and nothing else: no autograd, no checks, no dispatch.

No kernel is written yet; `protoad.ops` runs in plain PyTorch.
"""
