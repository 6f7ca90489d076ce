"""Counting floating point operations, two for a multiplication and its addition, as most papers do.

Counted are products of matrices and convolutions. Neither torch's counter nor this one sees what is done entry by entry
(activations, normalisations, softmax, exponentials), nor sorting and interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import protoad.ops  # noqa: F401 - registers its operators

__all__ = ["FORMULAS", "count_flops", "feed_forward_flops", "transformer_block_flops"]


def count_flops(call: Callable[[], object]) -> int:
    """Gives the operations of a call that asks for no gradient; its parameters must not either."""
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        call()
    return counter.get_total_flops()


def transformer_block_flops(tokens: int, dim: int) -> int:
    """A block of a vision transformer on one image: queries, keys, values and output, attention, four times as wide
    a hidden layer.
    """
    return 8 * tokens * dim**2 + 4 * tokens**2 * dim + feed_forward_flops(tokens, dim)


def feed_forward_flops(tokens: int, dim: int) -> int:
    """Two linear layers with four times as wide a hidden layer between them."""
    return 16 * tokens * dim**2


_Shape = Sequence[int]


def _product(left: _Shape, right: _Shape, *_: Any, **__: Any) -> int:
    """(... n m) times (m d) or (... m d), or times a vector (m)."""
    return 2 * math.prod(left) * (right[-1] if len(right) > 1 else 1)


def _pairs(left: _Shape, right: _Shape, *_: Any, **__: Any) -> int:
    """(... n d) with each of (... k d)."""
    return 2 * math.prod(left) * right[-2]


def _context(plan: _Shape, tokens: _Shape, *_: Any, **__: Any) -> int:
    """(... n k) transposed, times (... n d)."""
    return 2 * math.prod(plan) * tokens[-1]


def _transport(
    cost: _Shape,
    rows: Any,
    cols: Any,
    init: Any,
    epsilon: float,
    n_iters: int,
    tol: Any,
    method: str,
    *_: Any,
    **__: Any,
) -> int:
    """Each iteration multiplies the kernel matrix (... n k) with two vectors."""
    if method != "sinkhorn" or tol is not None:
        raise ValueError(f"transport: expected a fixed number of Sinkhorn iterations to count, got {method}, tol={tol}")
    return 4 * n_iters * math.prod(cost)


def _attention(query: _Shape, key: _Shape, value: _Shape, *_: Any, **__: Any) -> int:
    """(b h n d) with keys (b h k d), then with values (b h k e)."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.protoad.cosine_cost: _pairs,
    torch.ops.protoad.transport: _transport,
    torch.ops.protoad.reconstruct: _product,
    torch.ops.protoad.context: _context,
    # those that torch's counter, of version 2.13, knows no formula for: a CPU's attention is one
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten.mv: _product,
    torch.ops.aten._cdist_forward: _pairs,
    torch.ops.aten._euclidean_dist: _pairs,
}
"""Operator -> what it costs, from the shapes of its arguments."""
