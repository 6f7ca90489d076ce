"""What transport is asked with and answers with."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

__all__ = ["Backend", "Cost", "Gradient", "Init", "Method", "Transport"]

Backend = Literal["auto", "torch", "triton"]
Cost = Literal["cosine", "sqeuclidean"]
Method = Literal["sinkhorn", "newton"]
Gradient = Literal["unrolled", "implicit", "detached"]


class Transport(NamedTuple):
    """A transport plan and the potentials it came from: plan = exp(f + g - cost / epsilon).

    Attributes:
        plan: (... n k), rows sum to the row mass exactly, columns up to `marginal_error`.
        f: (... n) logarithmic row potential, -inf where a row carries no mass.
        g: (... k) logarithmic column potential, -inf where a column is to carry none.
        iterations: () int64, how many iterations (or Newton steps) the slowest item took.
        marginal_error: (...) largest relative error of a column sum, max_k |sum_n plan - b_k| / b_k.
    """

    plan: Tensor
    f: Tensor
    g: Tensor
    iterations: Tensor
    marginal_error: Tensor


Init = Tensor | tuple[Tensor, Tensor] | Transport
