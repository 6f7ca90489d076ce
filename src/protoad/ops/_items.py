"""Walking through a batch so that what belongs together is computed together."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

__all__ = ["items"]

# From so many entries in its largest tensor on, an item is worth a call of its own: its tensors then stay in the cache
# from one product to the next, while those of a batch pass through it again for each.
LARGE = 1 << 14


def items(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Gives views of all tensors, item by item (y x) on a CPU where items are large, else of the whole batch (b y x).

    Args:
        tensors: (... y x), the leading axes as in the longest, or none: then every item gets the same.
    """
    leading = max((one.shape[:-2] for one in tensors), key=len)
    flat = [one.expand(*leading, -1, -1).reshape(-1, *one.shape[-2:]) for one in tensors]
    if flat[0].device.type == "cpu" and (len(flat[0]) == 1 or max(one[0].numel() for one in flat) >= LARGE):
        yield from zip(*(one.unbind(0) for one in flat), strict=True)
    else:
        yield tuple(flat)
