"""Timing several calls beside each other, and what they keep for the gradient."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from rivals import Layout
from torch import Tensor

__all__ = ["Call", "Clock", "Entry", "Spread", "capture", "clock_for", "contest", "race", "saved_bytes", "spread"]

Call = Callable[[], object]
Clock = Callable[[Call, int], float]

# A sample repeats its call for about this many seconds, well above the resolution of any of the clocks.
SAMPLE = 2e-3
# A first call that takes longer is not mostly warming up: it tells how long the next will take.
SLOW = 0.3


class Spread(NamedTuple):
    """Quartiles."""

    low: float
    median: float
    high: float


def spread(values: list[float]) -> Spread:
    """Gives the quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def clock_for(device: str, threads: int) -> tuple[str, Clock]:
    """Gives the clock to use, and its name.

    One thread is timed in CPU time of the process, which other processes disturb least; more threads in wall time, as
    threads that wait for each other burn CPU time; a GPU by its own events.
    """
    if device == "cuda":
        return "GPU time", _gpu_time
    if threads == 1:
        return "CPU time", _host_clock(time.process_time)
    return "wall time", _host_clock(time.perf_counter)


def _host_clock(now: Callable[[], float]) -> Clock:
    def clock(call: Call, repeats: int) -> float:
        start = now()
        for _ in range(repeats):
            call()
        return (now() - start) / repeats

    return clock


def _gpu_time(call: Call, repeats: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def capture(call: Call) -> Call:
    """Gives the replay of a CUDA graph of a call that was made before, so that nothing is left to compile."""
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def race(
    calls: dict[str, Call],
    expected: dict[str, float],
    baseline: str,
    clock: Clock,
    seconds: float,
    fewest: int = 3,
    most: int = 100,
) -> dict[str, list[float]]:
    """Gives seconds per call, round by round: all have a turn in each round, in random order.

    A call leaves after `seconds` of its own, but not before `fewest` rounds; the baseline stays until the last leaves,
    so that sample i of any call has a sample i of the baseline beside it.

    Args:
        calls: what to time, by name; each was called before.
        expected: roughly how many seconds each takes.
        baseline: the name of the one the others are compared to.
        clock: as `clock_for` gives it.
        seconds: budget per call.
        fewest: rounds that every call has.
        most: rounds that none exceeds.
    """
    order = random.Random(0)
    repeats = {name: max(1, round(SAMPLE / max(expected[name], 1e-7))) for name in calls}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    running = set(calls)
    gc.collect()
    for done in range(most):
        running = {name for name in running if done < fewest or sum(samples[name]) * repeats[name] < seconds}
        if not running:
            break
        turns = sorted(running | {baseline})
        order.shuffle(turns)
        for name in turns:
            samples[name].append(clock(calls[name], repeats[name]))
    return samples


def saved_bytes(call: Callable[[], Tensor]) -> int:
    """Gives the bytes that autograd keeps from a call for its gradient, each storage counted once."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Held, or another tensor could come to lie at the same address.
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class TooFarOffError(Exception):
    """What an entry computes is not what it is to be timed for."""


@dataclass(frozen=True)
class Entry:
    """One way to do the task of a case.

    Attributes:
        name: as printed.
        make: order of the axes in memory -> the call to time.
        error: output of the call -> how far off it is.
        tolerance: largest error with which it is timed.
        layouts: orders to try; the faster one is timed.
        capturable: whether a CUDA graph can hold it.
    """

    name: str
    make: Callable[[Layout], Callable[[], Any]]
    error: Callable[[Any], float]
    tolerance: float
    layouts: tuple[Layout, ...] = ("tokens first", "prototypes first")
    capturable: bool = True


def contest(entries: list[Entry], baseline: str, clock: Clock, seconds: float, graphs: bool) -> list[dict[str, Any]]:
    """Gives one row per entry: times and ratios to the baseline as quartiles, or why it was not timed.

    Args:
        entries: the baseline among them.
        baseline: name of the entry that ratios refer to.
        clock: as `clock_for` gives it.
        seconds: budget per entry.
        graphs: whether to time the replay of a CUDA graph instead of the call.
    """
    calls: dict[str, Call] = {}
    expected: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for entry in entries:
        row: dict[str, Any] = {"name": entry.name}
        rows.append(row)
        if graphs and not entry.capturable:
            row["failed"] = "waits for the host: no CUDA graph can hold it"
            continue
        try:
            best = _qualify(entry, clock)
            calls[entry.name] = capture(best.call) if graphs else best.call
        except TooFarOffError as error:
            row["failed"] = str(error)
        except Exception as error:  # a rival that breaks down is a result
            row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            expected[entry.name], row["layout"], row["error"] = best.seconds, best.layout, best.error
    if baseline not in calls:
        return rows
    samples = race(calls, expected, baseline, clock, seconds)
    for row in rows:
        if times := samples.get(row["name"]):
            row["ms"] = [1e3 * value for value in spread(times)]
            row["ratio"] = list(spread([time / base for time, base in zip(times, samples[baseline], strict=False)]))
            row["rounds"] = len(times)
    return rows


class _Candidate(NamedTuple):
    """An entry in one layout, and what one call of it took and gave."""

    seconds: float
    layout: Layout
    call: Call
    error: float


def _qualify(entry: Entry, clock: Clock) -> _Candidate:
    """The entry in its faster layout, checked."""
    return min((_try(entry, layout, clock) for layout in entry.layouts), key=lambda candidate: candidate.seconds)


def _try(entry: Entry, layout: Layout, clock: Clock) -> _Candidate:
    """The entry in one layout.

    Raises:
        TooFarOffError: for a wrong output.
    """
    call, outputs = entry.make(layout), list[Any]()
    seconds = clock(lambda: outputs.append(call()), 1)
    error = entry.error(outputs.pop())
    if not error <= entry.tolerance:
        raise TooFarOffError(f"off by {error:.1e}, more than {entry.tolerance:.0e}")
    return _Candidate(seconds if seconds > SLOW else clock(call, 1), layout, call, error)
