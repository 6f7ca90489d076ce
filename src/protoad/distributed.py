"""One training over several processes: the few collectives it takes. Without a process group they change nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Group", "from_first", "gather", "is_first", "join", "mean_figures", "share", "size", "total"]

Group = dist.ProcessGroup | None
"""Processes that work together; None where there is one alone."""

T = TypeVar("T")
_joined = itertools.count()


@contextlib.contextmanager
def join(device: torch.device | str = "cpu") -> Iterator[Group]:
    """Joins the processes that `torchrun` started; gives their group, or None where there is one process only.

    Gloo carries tensors of the CPU, NCCL those of a GPU. Of several processes that fail, the first lets its error
    through; the others, which may only have lost their peer, end quietly with exit code 2: a user reads one message.

    Args:
        device: of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    store, rank, world = next(dist.rendezvous("env://"))
    # torchrun's store outlives a group and even a restart, and so would the addresses of processes that are gone
    store = dist.PrefixStore(f"protoad/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_joined)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.device(device).type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    try:
        yield dist.group.WORLD
        dist.barrier()  # the first holds the others' store: none may lose it before it is done
    except BaseException:
        if _is_reported(store):
            raise SystemExit(2) from None
        raise
    finally:
        dist.destroy_process_group()


def _is_reported(store: dist.Store) -> bool:
    """Whether another process failed before."""
    try:
        return store.add("failed", 1) > 1
    except RuntimeError:  # without torchrun the first process holds the store, and it is gone
        return True


def size(group: Group) -> int:
    """The number of processes."""
    return 1 if group is None else dist.get_world_size(group)


def is_first(group: Group) -> bool:
    """Whether this process is the one that writes files and talks."""
    return group is None or dist.get_rank(group) == 0


def share(indices: Tensor, group: Group) -> Tensor:
    """Gives this process's part of indices (n), in order; parts differ by one in length at most, and may be empty."""
    return indices if group is None else indices.tensor_split(dist.get_world_size(group))[dist.get_rank(group)]


@torch.no_grad()
def total(value: Tensor, group: Group) -> Tensor:
    """Gives the sum of a tensor over all processes, a constant for autograd."""
    if group is None:
        return value
    value = value.detach().clone()
    dist.all_reduce(value, group=group)
    return value


@torch.no_grad()
def gather(pieces: Tensor, group: Group) -> Tensor:
    """Gives the pieces (n_i ...) of all processes one after the other, (sum n_i ...); n_i may differ, and be 0."""
    if group is None:
        return pieces
    lengths = torch.zeros(dist.get_world_size(group), dtype=torch.int64)
    lengths[dist.get_rank(group)] = len(pieces)
    lengths = total(lengths, group)
    whole = pieces.new_empty(int(lengths.sum()), *pieces.shape[1:])
    for rank, part in enumerate(whole.split(lengths.tolist())):
        if rank == dist.get_rank(group):
            part.copy_(pieces)
        if len(part):
            dist.broadcast(part, dist.get_global_rank(group, rank), group=group)
    return whole


def from_first(value: T, group: Group) -> T:
    """Gives what the first process has, whatever the others have."""
    if group is None:
        return value
    held = [value]
    dist.broadcast_object_list(held, dist.get_global_rank(group, 0), group=group)
    return held[0]


def mean_figures(figures: Mapping[str, float], weight: float, group: Group) -> dict[str, float]:
    """Gives the means of figures over the processes, each process counting by its weight, 0 for none.

    The same names in the same order on all processes; what a process of weight 0 says does not matter.
    """
    if group is None:
        return dict(figures)
    weighted = [value * weight if weight else 0.0 for value in (*figures.values(), 1.0)]  # NaN times 0 would be NaN
    summed = total(torch.tensor(weighted, dtype=torch.float64), group)
    return dict(zip(figures, (summed[:-1] / summed[-1]).tolist(), strict=True))
