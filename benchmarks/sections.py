"""What is compared: each section yields its cases, timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from measure import Call, Entry, clock_for, contest, saved_bytes
from rivals import (
    FLASH_SINKHORN,
    GEOMLOSS,
    RIVALS,
    SOFTMAX,
    Layout,
    Solve,
    Solver,
    cosine_cost,
    flash_sinkhorn,
    missing,
    pot_exp_with_tolerance,
)
from torch import Tensor
from torch.nn.functional import normalize

from protoad.ops import sinkhorn, sinkhorn_from_cost, transport_reconstruct
from protoad.ops.sinkhorn import Gradient
from protoad.ops.sinkhorn_reference import sinkhorn_reference

__all__ = ["OURS", "OURS_IMPLICIT", "SECTIONS", "Case", "Settings"]

EPSILON, N_ITERS, FEATURE = 0.05, 20, 768

Shape = tuple[int, int, int]
Case = dict[str, Any]

EVERY_SHAPE = [(b, n, k) for b in (1, 8, 32) for n in (256, 784, 4096) for k in (10, 50, 100)]
SOME_SHAPES = [
    (1, 256, 10),
    (8, 256, 10),
    (32, 256, 10),
    (1, 784, 10),
    (8, 784, 10),
    (8, 784, 100),
    (1, 4096, 10),
    (8, 4096, 10),
    (8, 4096, 100),
]
WHOLE_SHAPES = [(1, 256, 10), (8, 256, 10), (32, 256, 10), (1, 784, 10), (8, 784, 10), (8, 256, 100), (1, 4096, 100)]
CONVERGENCE_SHAPES = [(8, 256, 10), (8, 784, 10), (8, 784, 50)]
FEW_SHAPES = [(1, 256, 10), (8, 784, 10), (8, 784, 100), (8, 4096, 10)]
QUICK_SHAPES = [(1, 256, 10), (8, 784, 10)]


@dataclass(frozen=True)
class Settings:
    """What a run was asked for, and what follows from it.

    Attributes:
        device: "cpu" or "cuda".
        threads: of torch.
        quick: two shapes, short budgets, nothing compiled.
        tokens_first: rivals get their cost with the prototypes dense in memory, as tokens @ prototypes.T gives it,
            and not in the faster order; nothing is compiled.
    """

    device: str
    threads: int
    quick: bool
    tokens_first: bool = False

    @property
    def seconds(self) -> float:
        return 0.03 if self.quick else 0.2

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        """With two threads fewer shapes: what a second thread gains is the same question for all."""
        if self.quick:
            return QUICK_SHAPES
        return shapes if self.threads == 1 else [shape for shape in shapes if shape in FEW_SHAPES]

    def solvers(self) -> list[Solver]:
        """The rivals that can run here."""
        on_host = self.device == "cpu" and self.threads == 1
        can_run = [
            solver
            for solver in RIVALS
            if not missing(solver.needs)
            and (solver.on_device or on_host)
            and not (solver.compiled and (self.quick or self.tokens_first))
        ]
        return [replace(solver, layouts=("tokens first",)) for solver in can_run] if self.tokens_first else can_run


def features(b: int, n: int, k: int, device: str) -> tuple[Tensor, Tensor]:
    """Gives tokens (b n d) and prototypes (k d) like those of a vision transformer, with d = 768.

    Directions share a mean, fall into twelve clusters of uneven size, and scatter; prototypes are drawn like tokens.
    Balanced transport then has work to do: each prototype has to take the same share of unequal clusters.
    """
    generator = torch.Generator().manual_seed(0)

    def directions(*shape: int) -> Tensor:
        return normalize(torch.randn(*shape, FEATURE, generator=generator), dim=-1)

    mean, centres = directions(1), directions(12)
    odds = 1 / torch.arange(1.0, 13.0)
    cluster = torch.multinomial(odds, b * n + k, replacement=True, generator=generator)
    points = 0.45 * mean + 0.75 * centres[cluster] + 0.5 * directions(b * n + k)
    lengths = 1 + torch.rand(b * n + k, 1, generator=generator)
    points = (points * lengths).to(device)
    return points[: b * n].view(b, n, FEATURE), points[b * n :]


def laid_out(cost: Tensor, layout: Layout) -> Tensor:
    """Gives cost (b n k) in this order of axes in memory."""
    return cost.contiguous() if layout == "tokens first" else cost.mT.contiguous().mT


def ours(cost: Tensor, epsilon: float, n_iters: int) -> Tensor:
    """Gives our plan (b n k), as `rivals.Solve` has it."""
    return sinkhorn_from_cost(cost, epsilon=epsilon, n_iters=n_iters).plan


def ours_implicit(cost: Tensor, epsilon: float, n_iters: int) -> Tensor:
    """Gives our plan, with the gradient that the converged plan would have."""
    return sinkhorn_from_cost(cost, epsilon=epsilon, n_iters=n_iters, gradient="implicit").plan


# The operator itself makes its cost with prototypes first.
OURS = Solver("protoad", ours, ours, layouts=("prototypes first",))
OURS_IMPLICIT = Solver(
    "protoad, implicit", ours_implicit, ours_implicit, same_iterates=False, layouts=("prototypes first",)
)


def compiled(function: Callable[..., Any], solver: Solver) -> Callable[..., Any]:
    """Gives the function, compiled anew if the solver is meant to be: for one shape, which is fastest."""
    if not solver.compiled:
        return function
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def with_gradient(function: Callable[..., Tensor], inputs: list[Tensor], weight: Tensor) -> Call:
    """Gives a call of function(*inputs) and of its gradients to them.

    Args:
        function: of all inputs.
        inputs: which require gradients.
        weight: gradient to the result, here brought into the order in memory that the result has.
    """
    weight = torch.empty_like(function(*inputs).detach()).copy_(weight)
    return lambda: torch.autograd.grad(function(*inputs), inputs, weight)


def worst(result: Tensor, truth: Tensor) -> float:
    """Gives the largest difference, relative to the largest value of the truth; NaN stays NaN."""
    return float((result.double() - truth).abs().amax() / truth.abs().amax())


def ends(tensor: Tensor) -> Tensor:
    """The first and the last item, in float64: the reference takes its time."""
    return tensor.detach()[[0, -1]].double()


@lru_cache
def converged_error(solve: Solve, differentiate: bool, device: str) -> float:
    """Gives the error of a small converged plan (or its gradient), for ways that agree with ours only there."""
    tokens, prototypes = features(2, 96, 6, device)
    cost = cosine_cost(tokens, prototypes, "tokens first").requires_grad_(differentiate)
    exact = cost.detach().double().requires_grad_(differentiate)
    plan, truth = solve(cost, 0.1, 2000), sinkhorn_reference(exact, epsilon=0.1, n_iters=500).plan
    if not differentiate:
        return worst(plan, truth)
    weight = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)).to(truth)
    (gradient,) = torch.autograd.grad(plan, cost, weight.to(plan))
    return worst(gradient, torch.autograd.grad(truth, exact, weight)[0])


def forward(settings: Settings) -> Iterator[Case]:
    """Cost given, to the plan."""
    for shape in settings.shapes(EVERY_SHAPE):
        cost = cosine_cost(*features(*shape, settings.device), "tokens first")
        truth = sinkhorn_reference(ends(cost), epsilon=EPSILON, n_iters=N_ITERS).plan
        solvers = [OURS, *settings.solvers(), SOFTMAX]
        entries = [forward_entry(solver, cost, truth, settings) for solver in solvers]
        yield from cases("forward", shape, entries, settings)


def forward_entry(solver: Solver, cost: Tensor, truth: Tensor, settings: Settings) -> Entry:
    """From cost (b n k) to the plan; truth holds the plan of the first and the last item."""

    def make(layout: Layout) -> Call:
        return partial(compiled(solver.solve, solver), laid_out(cost, layout), EPSILON, N_ITERS)

    def error(plan: Tensor) -> float:
        if solver.same_iterates:
            return worst(ends(plan), truth)
        return converged_error(solver.solve, False, settings.device)

    return entry(solver, make, error, 1e-4 if solver.same_iterates else 5e-3)


def backward(settings: Settings) -> Iterator[Case]:
    """Cost given, to the plan, and from a gradient to the plan back to the gradient to the cost."""
    for shape in settings.shapes(SOME_SHAPES):
        cost = cosine_cost(*features(*shape, settings.device), "tokens first")
        weight = torch.randn(cost.shape, generator=torch.Generator().manual_seed(1)).to(cost)
        exact = ends(cost).requires_grad_()
        plan = sinkhorn_reference(exact, epsilon=EPSILON, n_iters=N_ITERS).plan
        (truth,) = torch.autograd.grad(plan, exact, ends(weight))
        solvers = [OURS, OURS_IMPLICIT, *settings.solvers(), SOFTMAX]
        entries = [
            backward_entry(solver, solve, cost, weight, truth, settings)
            for solver in solvers
            if (solve := solver.differentiable)
        ]
        yield from cases("backward", shape, entries, settings)


def backward_entry(
    solver: Solver, solve: Solve, cost: Tensor, weight: Tensor, truth: Tensor, settings: Settings
) -> Entry:
    """From cost (b n k) to the gradient to it; truth holds that of the first and the last item."""

    def make(layout: Layout) -> Call:
        run = compiled(solve, solver)
        leaf = laid_out(cost, layout).detach().requires_grad_()
        return with_gradient(lambda cost: run(cost, EPSILON, N_ITERS), [leaf], weight)

    def error(gradients: tuple[Tensor, ...]) -> float:
        if solver.same_iterates:
            return worst(ends(gradients[0]), truth)
        return converged_error(solve, True, settings.device)

    return entry(solver, make, error, 1e-3)


def whole(settings: Settings) -> Iterator[Case]:
    """Tokens and prototypes to the reconstruction sum_k T_nk p_k, alone and with the gradients to both."""
    for shape in settings.shapes(WHOLE_SHAPES):
        tokens, prototypes = features(*shape, settings.device)
        weight = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1)).to(tokens)
        exact = [tokens.double().requires_grad_(), prototypes.double().requires_grad_()]
        cost = cosine_cost(exact[0], exact[1], "tokens first")
        result = sinkhorn_reference(cost, epsilon=EPSILON, n_iters=N_ITERS).plan @ exact[1]
        truth = result.detach(), *torch.autograd.grad(result, exact, weight.double())
        for section in ("whole forward", "whole backward"):
            differentiate = section == "whole backward"
            solvers = [OURS, *([OURS_IMPLICIT] if differentiate else []), *settings.solvers(), SOFTMAX]
            entries = [
                whole_entry(solver, solve, tokens, prototypes, weight if differentiate else None, truth, settings)
                for solver in solvers
                if (solve := solver.differentiable if differentiate else solver.solve)
            ]
            if settings.device == "cuda" and not missing(FLASH_SINKHORN) and not differentiate:
                entries.append(flash_entry(tokens, prototypes, truth[0]))
            yield from cases(section, shape, entries, settings)


def whole_entry(
    solver: Solver,
    solve: Solve,
    tokens: Tensor,
    prototypes: Tensor,
    weight: Tensor | None,
    truth: tuple[Tensor, ...],
    settings: Settings,
) -> Entry:
    """From tokens (b n d) and prototypes (k d) to the reconstruction, or with a weight to the gradients to both.

    Args:
        solver: whose turn it is.
        solve: its way to a plan.
        tokens: (b n d).
        prototypes: (k d).
        weight: (b n d) gradient to the reconstruction, or None.
        truth: reconstruction and both gradients.
        settings: of the run.
    """

    def make(layout: Layout) -> Call:
        def reconstruct(tokens: Tensor, prototypes: Tensor) -> Tensor:
            return solve(cosine_cost(tokens, prototypes, layout), EPSILON, N_ITERS) @ prototypes

        run = partial(our_reconstruction, solver) if solver in (OURS, OURS_IMPLICIT) else compiled(reconstruct, solver)
        if weight is None:
            return partial(run, tokens, prototypes)
        return with_gradient(run, [tokens.clone().requires_grad_(), prototypes.clone().requires_grad_()], weight)

    def error(output: Any) -> float:
        if solver.same_iterates:
            pairs = [(output, truth[0])] if weight is None else zip(output, truth[1:], strict=True)
            return max(worst(one, other) for one, other in pairs)
        return converged_error(solve, weight is not None, settings.device)

    return entry(solver, make, error, 1e-3 if solver.same_iterates else 5e-3)


def our_reconstruction(solver: Solver, tokens: Tensor, prototypes: Tensor) -> Tensor:
    """Gives the reconstruction (b n d) as a user of protoad writes it."""
    gradient: Gradient = "implicit" if solver is OURS_IMPLICIT else "unrolled"
    plan = sinkhorn(tokens, prototypes, epsilon=EPSILON, n_iters=N_ITERS, gradient=gradient).plan
    return transport_reconstruct(plan, prototypes)


def flash_entry(tokens: Tensor, prototypes: Tensor, truth: Tensor) -> Entry:
    """flash-sinkhorn, which takes no cost."""
    call = partial(flash_sinkhorn, tokens, prototypes, EPSILON, N_ITERS)
    return Entry("flash-sinkhorn", lambda layout: call, lambda result: worst(result, truth), 1e-3, ("tokens first",))


def memory(settings: Settings) -> Iterator[Case]:
    """Bytes kept between the forward and the backward pass, from a cost to the plan."""
    for shape in settings.shapes(SOME_SHAPES) if settings.threads == 1 else []:
        cost = cosine_cost(*features(*shape, settings.device), "tokens first")
        kept = []
        for solver in (OURS, OURS_IMPLICIT, *settings.solvers(), SOFTMAX):
            if solver.differentiable and not solver.compiled:
                leaf = laid_out(cost, solver.layouts[-1]).detach().requires_grad_()
                kept.append((solver.name, saved_bytes(partial(solver.differentiable, leaf, EPSILON, N_ITERS))))
        least = dict(kept)[OURS.name]
        rows = [{"name": name, "bytes": size, "ratio": [size / least] * 3} for name, size in kept]
        yield describe("memory", shape, settings) | {"unit": "bytes", "baseline": OURS.name, "rows": rows}


def convergence(settings: Settings) -> Iterator[Case]:
    """Time until no marginal is off by more than a share of itself."""
    for shape in settings.shapes(CONVERGENCE_SHAPES) if settings.threads == 1 else []:
        cost = cosine_cost(*features(*shape, settings.device), "tokens first")
        for epsilon in (0.1,) if settings.quick else (0.1, 0.05, 0.02):
            for target in (1e-2, 1e-4):
                needed, norm = iterations_needed(cost, epsilon, target)
                entries = convergence_entries(cost, epsilon, target, needed, norm, settings)
                if not missing(GEOMLOSS.needs):
                    n_iters = iterations_tried(GEOMLOSS, cost, epsilon, target)
                    entries.append(exact_entry(GEOMLOSS, cost, epsilon, n_iters, target))
                extra = {"epsilon": epsilon, "target": target, "iterations": needed}
                yield from cases("convergence", shape, entries, settings, extra)


def convergence_entries(
    cost: Tensor, epsilon: float, target: float, needed: int, norm: float, settings: Settings
) -> list[Entry]:
    """Whatever walks through the same iterates runs as many as are needed; rules for stopping come on top."""
    solvers = [solver for solver in settings.solvers() if solver.same_iterates and not solver.compiled]
    entries = [exact_entry(solver, cost, epsilon, needed, target) for solver in (OURS, *solvers)]

    def stopping(name: str, stop: Callable[[Tensor], Tensor], layouts: tuple[Layout, ...]) -> Entry:
        def make(layout: Layout) -> Call:
            return partial(stop, laid_out(cost, layout))

        return Entry(name, make, marginal_error, 1.1 * target, layouts, capturable=False)

    def tol(cost: Tensor) -> Tensor:
        return sinkhorn_from_cost(cost, epsilon=epsilon, n_iters=100_000, tol=target).plan

    def newton(cost: Tensor) -> Tensor:
        return sinkhorn_from_cost(cost, epsilon=epsilon, n_iters=100, tol=target, method="newton").plan

    entries += [
        stopping("protoad, tol", tol, OURS.layouts),
        stopping("protoad, newton", newton, OURS.layouts),
    ]
    if not missing("ot"):
        pot = partial(pot_exp_with_tolerance, epsilon=epsilon, tolerance=norm)
        entries.append(stopping("POT batch, exp, own stopping", pot, ("tokens first", "prototypes first")))
    return entries


def exact_entry(solver: Solver, cost: Tensor, epsilon: float, n_iters: int, target: float) -> Entry:
    """So many iterations, after which the marginals have to be right."""

    def make(layout: Layout) -> Call:
        return partial(solver.solve, laid_out(cost, layout), epsilon, n_iters)

    return entry(solver, make, marginal_error, 1.1 * target)


def marginal_error(plan: Tensor) -> float:
    """Gives the largest relative error of a row or a column sum of a plan (b n k)."""
    _, n, k = plan.shape
    plan = plan.double()
    return float(torch.stack([(plan.sum(2) - 1).abs().amax(), (plan.sum(1) * k / n - 1).abs().amax()]).amax())


def iterations_needed(cost: Tensor, epsilon: float, target: float) -> tuple[int, float]:
    """Gives after how many iterations the columns are right, and the norm of POT's marginal error by then."""
    _, n, k = cost.shape
    kernel = torch.exp(cost.double() / -epsilon)
    u, v, done = torch.ones_like(kernel[:, :, :1]), torch.zeros_like(kernel[:, :1]), 0
    while True:
        sums = u.mT @ kernel
        off = v * sums * k / n - 1
        if off.abs().amax() <= target:
            return done, float(off.div(k).norm(dim=-1).amax())
        v = n / k / sums
        u = 1 / (kernel @ v.mT)
        done += 1


def iterations_tried(solver: Solver, cost: Tensor, epsilon: float, target: float, most: int = 1280) -> int:
    """Gives the fewest iterations that reach the target, found by bisection to a tenth, or the most."""
    if marginal_error(solver.solve(cost, epsilon, most)) > target:
        return most
    low, high = 1, most
    while high > 1.1 * low + 1:
        middle = max(low + 1, int((low * high) ** 0.5))
        if marginal_error(solver.solve(cost, epsilon, middle)) > target:
            low = middle
        else:
            high = middle
    return high


def entry(solver: Solver, make: Callable[[Layout], Call], error: Callable[[Any], float], tolerance: float) -> Entry:
    """What a solver makes of a case; one that solves another problem is not held against the truth."""
    if not solver.is_transport:
        error = no_error
    return Entry(solver.name, make, error, tolerance, solver.layouts, solver.capturable)


def no_error(output: Any) -> float:
    return 0.0


def describe(section: str, shape: Shape, settings: Settings) -> Case:
    """The start of a case."""
    return {"section": section, "shape": list(shape), "threads": settings.threads}


def cases(
    section: str, shape: Shape, entries: list[Entry], settings: Settings, extra: Case | None = None
) -> Iterator[Case]:
    """Times one case; on a GPU also as CUDA graphs, which take away what Python costs."""
    unit, clock = clock_for(settings.device, settings.threads)
    for graphs in (False, True) if settings.device == "cuda" else (False,):
        rows = contest(entries, OURS.name, clock, settings.seconds, graphs)
        case = describe(section, shape, settings) | (extra or {})
        yield case | {"unit": f"{unit}, CUDA graph" if graphs else unit, "baseline": OURS.name, "rows": rows}


SECTIONS: dict[str, Callable[[Settings], Iterator[Case]]] = {
    "forward": forward,
    "backward": backward,
    "whole": whole,
    "memory": memory,
    "convergence": convergence,
}
