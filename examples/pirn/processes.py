"""Where commands run: devices, processes for several categories, determinism."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

from protoad.data import DataWarning
from protoad.errors import ConfigError, ProtoadError, TrainingError

__all__ = ["choose_device", "count_workers", "deterministic", "run_each", "show_plainly"]

T = TypeVar("T")
R = TypeVar("R")


def choose_device(name: str | None) -> torch.device:
    """Gives the device of a name; None takes a GPU if there is one. Of several processes each takes a GPU of its own.

    Raises:
        ConfigError: for another kind of device, or one that is not there.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: expected cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cpu":
        return device
    index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
    found = torch.cuda.device_count()
    if index >= found:
        raise ConfigError(
            f"device: asked for cuda:{index}, found {found} GPUs; give another --device, or fewer processes"
        )
    if "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Makes PyTorch refuse what gives other bits in every run: on a GPU, before its first use; on a CPU nothing."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def show_plainly() -> None:
    """Makes a warning about data one sentence, without the line of code that raised it."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, DataWarning):
            print(f"pirn: warning: {message}", file=sys.stderr)
        else:
            usual(message, category, *place, **more)

    warnings.showwarning = show


def count_workers(jobs: int | None, device: torch.device, items: int) -> int | None:
    """Gives how many processes work at a time; None: this one does it all.

    Args:
        jobs: asked for; None takes one per GPU, or one on a CPU.
        device: to work on.
        items: to work at.

    Raises:
        ConfigError: if `jobs` is below 1.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs: expected 1 or more, got {jobs}")
    if jobs is None:
        jobs = len(_visible_gpus()) if device == torch.device("cuda") else 1
    workers = min(jobs, items)
    return workers if workers > 1 else None


def run_each(
    function: Callable[[T], R], items: Sequence[T], *, workers: int | None, device: torch.device
) -> Iterator[R | ProtoadError]:
    """Gives what a function makes of each item, in order; where it ends in an error that protoad raised, the error.

    Args:
        function: of a module, so that another process finds it.
        items: to be pickled.
        workers: processes, each with one thread, and with one GPU to see if `device` is "cuda"; None: this process.
        device: to work on.
    """
    if workers is None:
        yield from (_attempt(function, item) for item in items)
        return
    context = get_context("spawn")  # a forked child may inherit torch's threads in a state that hangs
    gpus = _visible_gpus() if device == torch.device("cuda") else []
    places = context.Queue()
    for index in range(workers):
        places.put(gpus[index % len(gpus)] if gpus else None)
    setup = (places, torch.are_deterministic_algorithms_enabled())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=setup)
    try:
        for future in [pool.submit(_attempt, function, item) for item in items]:
            try:
                yield future.result()
            except BrokenProcessPool:
                yield TrainingError("its process died, perhaps for want of memory; try fewer --jobs")
    finally:
        pool.shutdown(cancel_futures=True)


def _attempt(function: Callable[[T], R], item: T) -> R | ProtoadError:
    try:
        return function(item)
    except ProtoadError as error:
        return error


def _start(places: Any, deterministic_algorithms: bool) -> None:
    """Prepares a process of the pool."""
    gpu = places.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when CUDA is first used, which is later
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(deterministic_algorithms)
    show_plainly()


def _visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
