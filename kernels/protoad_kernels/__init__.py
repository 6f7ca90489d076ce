"""Triton kernels and their launchers: no autograd, no checks, no dispatch; `protoad.ops` calls them."""
