"""Triton kernels and their launchers, and nothing else: no autograd, no checks, no dispatch. `protoad.ops` calls them."""
