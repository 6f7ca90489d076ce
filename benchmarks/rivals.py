"""Other ways to the same transport plan, each in the spirit of the project it is named after.

A solver takes cost (b n k), epsilon and a number of iterations to a plan (b n k) of masses 1 per token and n / k per
prototype. All of them update the prototypes first and the tokens last, as `protoad.ops` does, so that after the same
number of iterations they hold the same plan; where a project cannot do that, `same_iterates` is False.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = [
    "FLASH_SINKHORN",
    "GEOMLOSS",
    "RIVALS",
    "SOFTMAX",
    "Layout",
    "Solve",
    "Solver",
    "cosine_cost",
    "flash_sinkhorn",
    "missing",
    "pot_exp_with_tolerance",
]

Layout = Literal["tokens first", "prototypes first"]
Solve = Callable[[Tensor, float, int], Tensor]


@dataclass(frozen=True)
class Solver:
    """A way to a plan, and what it can do.

    Attributes:
        name: as printed.
        solve: cost (b n k), epsilon, n_iters -> plan (b n k).
        differentiable: the same with a gradient of the plan by autograd; None if it has none, or not the plan's.
        needs: the module it comes from.
        same_iterates: whether its plan after some number of iterations is the one of `protoad.ops`.
        on_device: whether it runs where the cost lies, with as many threads as torch.
        capturable: whether a CUDA graph can hold it: it never waits for a value on the host.
        compiled: whether torch.compile is to be applied.
        is_transport: whether it solves the problem at all.
        layouts: orders of the axes in memory to try; the faster one is timed.
    """

    name: str
    solve: Solve
    differentiable: Solve | None = None
    needs: str | None = None
    same_iterates: bool = True
    on_device: bool = True
    capturable: bool = True
    compiled: bool = False
    is_transport: bool = True
    layouts: tuple[Layout, ...] = ("tokens first", "prototypes first")


def missing(module: str | None) -> bool:
    """Whether a module that a rival needs is not installed."""
    return module is not None and importlib.util.find_spec(module) is None


def _log_loop(cost: Tensor, epsilon: float, n_iters: int) -> Tensor:
    """As SuperGlue's matching layer does: potentials in the log domain, one logsumexp per half step."""
    b, n, k = cost.shape
    scores = cost / -epsilon
    log_mass = math.log(n / k)
    u, v = scores.new_zeros(b, n), scores.new_zeros(b, k)
    for _ in range(n_iters):
        v = log_mass - torch.logsumexp(scores + u.unsqueeze(2), dim=1)
        u = -torch.logsumexp(scores + v.unsqueeze(1), dim=2)
    return torch.exp(scores + u.unsqueeze(2) + v.unsqueeze(1))


def _normalising_loop(cost: Tensor, epsilon: float, n_iters: int) -> Tensor:
    """As SwAV and DINO do: exponentiate once, then divide the whole matrix by its sums in turn."""
    _, n, k = cost.shape
    plan = torch.exp(cost / -epsilon)
    plan = plan / plan.sum((1, 2), keepdim=True)
    for _ in range(n_iters):
        plan /= plan.sum(1, keepdim=True) * k
        plan /= plan.sum(2, keepdim=True) * n
    return plan * n


def _scaling_loop(cost: Tensor, epsilon: float, n_iters: int) -> Tensor:
    """The textbook's matrix scaling, in range for float32: what torch.compile makes the most of."""
    _, n, k = cost.shape
    scores = cost / -epsilon
    peaks = scores.amax(2, keepdim=True)
    kernel = torch.exp(scores - peaks)
    u = torch.exp(peaks - peaks.amax(1, keepdim=True))
    v = torch.ones_like(kernel[:, :1])
    for _ in range(n_iters):
        v = (n / k) / (kernel * u).sum(1, keepdim=True)
        u = 1 / (kernel * v).sum(2, keepdim=True)
    return kernel * u * v


def _softmax(cost: Tensor, epsilon: float, n_iters: int) -> Tensor:
    return torch.softmax(cost / -epsilon, dim=2)


def _pot_batch(method: str, grad: str) -> Solve:
    """POT updates its first axis first: it gets prototypes as rows."""

    def solve(cost: Tensor, epsilon: float, n_iters: int) -> Tensor:
        return _pot_batch_plan(cost, epsilon, n_iters, 0.0, method, grad)

    return solve


def pot_exp_with_tolerance(cost: Tensor, epsilon: float, tolerance: float) -> Tensor:
    """Gives POT's batched plan, stopped by its own rule: the norm of the marginals' error, at every tenth iteration."""
    return _pot_batch_plan(cost, epsilon, 100_000, tolerance, "sinkhorn", "detach")


def _pot_batch_plan(cost: Tensor, epsilon: float, n_iters: int, tolerance: float, method: str, grad: str) -> Tensor:
    batch = importlib.import_module("ot.batch")
    b, n, k = cost.shape
    masses = cost.new_full((b, k), 1 / k), cost.new_full((b, n), 1 / n)
    result = batch.solve_batch(cost.mT, epsilon, *masses, max_iter=n_iters, tol=tolerance, method=method, grad=grad)
    return result.plan.mT * n


def _pot_knopp(cost: Tensor, epsilon: float, n_iters: int) -> Tensor:
    """One item at a time."""
    _, n, k = cost.shape
    a, b = cost.new_ones(n), cost.new_full((k,), n / k)
    return _stack([_pot_knopp_item(a, b, item, epsilon, n_iters) for item in cost])


def _pot_knopp_numpy(cost: Tensor, epsilon: float, n_iters: int) -> Tensor:
    """One item at a time, as numpy arrays."""
    _, n, k = cost.shape
    a, b = np.ones(n, np.float32), np.full(k, n / k, np.float32)
    return _stack([torch.from_numpy(_pot_knopp_item(a, b, item, epsilon, n_iters)) for item in cost.numpy()])


def _pot_knopp_item(a: Any, b: Any, cost: Any, epsilon: float, n_iters: int) -> Any:
    bregman = importlib.import_module("ot.bregman")
    return bregman.sinkhorn_knopp(a, b, cost, epsilon, numItermax=n_iters, stopThr=0, warn=False)


def _stack(plans: list[Tensor]) -> Tensor:
    """In the order that the plans have in memory."""
    return torch.stack(plans) if plans[0].is_contiguous() else torch.stack([plan.mT for plan in plans]).mT


def _geomloss(cost: Tensor, epsilon: float, n_iters: int) -> Tensor:
    """Symmetric updates at an epsilon that falls to the one asked for."""
    ot = importlib.import_module("geomloss.ot")
    return ot.solve_batch(cost, reg=epsilon, max_iter=n_iters).plan * cost.shape[1]


GEOMLOSS = Solver("geomloss", _geomloss, needs="geomloss", same_iterates=False, capturable=False)

SOFTMAX = Solver("softmax, no transport", _softmax, _softmax, is_transport=False)

RIVALS = (
    Solver("log loop (SuperGlue)", _log_loop, _log_loop),
    Solver("normalising loop (SwAV)", _normalising_loop, _normalising_loop),
    # Compiling takes seconds for each shape, and tokens first in memory was slower wherever it was tried.
    Solver("scaling loop, torch.compile", _scaling_loop, _scaling_loop, compiled=True, layouts=("prototypes first",)),
    Solver(
        "POT batch, exp",
        _pot_batch("sinkhorn", "detach"),
        _pot_batch("sinkhorn", "autodiff"),
        needs="ot",
        capturable=False,
    ),
    Solver(
        "POT batch, log",
        _pot_batch("log_sinkhorn", "detach"),
        _pot_batch("log_sinkhorn", "autodiff"),
        needs="ot",
        capturable=False,
    ),
    Solver("POT Knopp, torch", _pot_knopp, _pot_knopp, needs="ot", capturable=False),
    Solver("POT Knopp, numpy", _pot_knopp_numpy, needs="ot", on_device=False),
    GEOMLOSS,
)


def cosine_cost(tokens: Tensor, prototypes: Tensor, layout: Layout) -> Tensor:
    """Gives 1 - cos (b n k) as usually written.

    Args:
        tokens: (b n d).
        prototypes: (k d).
        layout: order of the result in memory.
    """
    tokens, prototypes = normalize(tokens, dim=-1), normalize(prototypes, dim=-1)
    if layout == "prototypes first":
        return 1 - (prototypes.expand(len(tokens), -1, -1) @ tokens.mT).mT
    return 1 - tokens @ prototypes.mT


FLASH_SINKHORN = "flash_sinkhorn"


def flash_sinkhorn(tokens: Tensor, prototypes: Tensor, epsilon: float, n_iters: int) -> Tensor:
    """Gives sum_k T_nk p_k by flash-sinkhorn, which has no batch, no cosine, and recomputes the cost at each half step.

    Half the squared distance of unit vectors is the cosine cost. Its default precision, TF32, is its fastest.
    """
    solvers = importlib.import_module("flash_sinkhorn.sinkhorn_solvers")
    apply = importlib.import_module("flash_sinkhorn.kernels.apply_flash")
    units, n, k = normalize(prototypes, dim=-1), tokens.shape[1], prototypes.shape[0]
    a, b = tokens.new_full((k,), 1 / k), tokens.new_full((n,), 1 / n)
    results = []
    for item in normalize(tokens, dim=-1).unbind():
        f, g = solvers.sinkhorn_flashstyle_alternating(units, item, a, b, eps=epsilon, n_iters=n_iters, cost_scale=0.5)
        # It shifts potentials by half the squared norms, 1/2 for unit vectors.
        results.append(
            apply.apply_plan_mat_flashstyle(
                units, item, f - 0.5, g - 0.5, a.log(), b.log(), prototypes, eps=epsilon, axis=0, cost_scale=0.5
            )
        )
    return torch.stack(results) * n
