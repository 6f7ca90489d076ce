"""Sinkhorn's iteration and its gradient, on each way through the kernels, against the readable loop in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from protoad_kernels import tiers
from protoad_kernels.sinkhorn import SinkhornResult, sinkhorn_forward
from protoad_kernels.sinkhorn_adjoint import sinkhorn_backward
from protoad_kernels.tiers import Split, Tile
from torch import Tensor

from protoad.ops import cosine_cost
from protoad.ops.sinkhorn_reference import sinkhorn_reference

SIZES = [(1, 1, 1), (3, 1, 4), (2, 7, 1), (2, 33, 2), (3, 20, 3), (1, 100, 10), (1, 70, 16), (2, 97, 17), (1, 75, 100)]
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
routes = pytest.mark.parametrize("route", ["resident", "streaming", "split"])
kinds = pytest.mark.parametrize("kind", ["plain", "mask", "masses", "init", "everything"])


@dataclass
class Problem:
    """Arguments of `sinkhorn_forward` up to n_iters."""

    cost: Tensor
    row_mass: Tensor | None
    col_mass: Tensor
    init: Tensor | None = None
    epsilon: float = 0.05

    def __iter__(self):
        yield from (self.cost, self.row_mass, self.col_mass, self.init, self.epsilon)

    def items(self, chosen: slice) -> Problem:
        parts = (None if one is None else one[chosen] for one in (self.cost, self.row_mass, self.col_mass, self.init))
        return Problem(*parts, self.epsilon)


def _problem(size: tuple[int, int, int], kind: str, device: str, **options: float) -> Problem:
    b, n, k = size
    generator = torch.Generator().manual_seed(n * k)
    cost = 2 * torch.rand(b, k, n, generator=generator)
    rows, cols, init = None, torch.full((b, k), n / k), None
    if kind in ("mask", "masses", "everything"):
        rows = 0.5 + torch.rand(b, n, generator=generator) if kind != "mask" else torch.ones(b, n)
        rows[:, 1:] *= torch.rand(b, n - 1, generator=generator) < 0.7
        shares = torch.ones(b, k) if kind == "mask" else 0.5 + torch.rand(b, k, generator=generator)
        cols = shares * rows.sum(-1, keepdim=True) / shares.sum(-1, keepdim=True)
    if kind in ("init", "everything"):
        init = 5 * torch.randn(b, k, generator=generator)
    return Problem(*(None if one is None else one.to(device) for one in (cost, rows, cols, init)), **options)


def _clusters(n: int, k: int, device: str, seed: int = 0) -> Problem:
    """Costs from prototypes to unequal clusters of tokens: far from balanced, so that potentials grow."""
    generator = torch.Generator().manual_seed(seed)
    centres, weights = torch.randn(12, 64, generator=generator), torch.rand(12, generator=generator) ** 3
    nearest = centres[torch.multinomial(weights, n, replacement=True, generator=generator)]
    tokens = torch.randn(64, generator=generator) + nearest + 0.6 * torch.randn(n, 64, generator=generator)
    cost = cosine_cost(tokens, tokens[torch.randperm(n, generator=generator)[:k]]).mT.contiguous()
    return Problem(cost[None].to(device), None, torch.full((1, k), n / k, device=device))


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch):
    """Makes items take one of the three routes, over tiles that leave some work for each loop."""

    def choose(route: str) -> None:
        def tier(b: int, n: int, k: int, *, stops: bool = False) -> Tile | Split:
            block_k = 1 << (k - 1).bit_length()
            if route == "resident":
                lanes = max(32, 1 << (n - 1).bit_length())
                return Tile(block_k, 1, lanes, 4)
            tile = Tile(block_k, 1, 16, 4)
            return Split(tile, 1, n) if route == "streaming" or stops else Split(tile, math.ceil(n / 32), 32)

        monkeypatch.setattr(tiers, "forward_tier", tier)
        monkeypatch.setattr(tiers, "backward_tier", tier)

    return choose


def _exact(problem: Problem, n_iters: int):
    """Plan (b n k), f, g and error in float64."""
    cost, rows, cols, init, epsilon = (one.double() if isinstance(one, Tensor) else one for one in problem)
    return sinkhorn_reference(cost.mT, epsilon=epsilon, n_iters=n_iters, row_mass=rows, col_mass=cols, init=init)


def _assert_solves(result: SinkhornResult, problem: Problem, n_iters: int, *, plan: float = 5e-6) -> None:
    exact = _exact(problem, n_iters)
    # A potential has as many digits as costs / epsilon have.
    digits = 2e-6 + 2e-7 * problem.cost[problem.cost < torch.inf].max().item() / problem.epsilon
    torch.testing.assert_close(result.plan.mT.double(), exact.plan, rtol=0, atol=plan)
    torch.testing.assert_close(result.f.double(), exact.f, rtol=2e-7, atol=digits)
    torch.testing.assert_close(result.g.double(), exact.g, rtol=2e-7, atol=digits)
    torch.testing.assert_close(result.error.double(), exact.marginal_error, rtol=1e-5, atol=plan)


@sizes
@routes
@pytest.mark.parametrize("kind", ["plain", "mask", "everything"])
def test_plan_potentials_and_error(size, route, kind, force, device) -> None:
    problem = _problem(size, kind, device)
    force(route)
    result = sinkhorn_forward(*problem, 3, None, False)
    _assert_solves(result, problem, 3)
    assert result.iterations.tolist() == [3] * size[0]
    assert result.history.shape == (size[0], 0, size[2])


@sizes
def test_on_the_route_of_its_size(size, device) -> None:
    problem = _problem(size, "everything", device)
    result = sinkhorn_forward(*problem, 12, None, True)
    _assert_solves(result, problem, 12)


@pytest.mark.parametrize(
    ("epsilon", "n_iters"), [(0.5, 20), (0.05, 20), (0.01, 50), (0.005, 50), (0.002, 50), (0.001, 20), (0.001, 150)]
)
def test_small_epsilon(epsilon, n_iters, device) -> None:
    problems = [_problem((1, 200, 10), "plain", device), _clusters(256, 30, device), _clusters(256, 10, device, 1)]
    for problem in problems:
        problem.epsilon = epsilon
        _assert_solves(sinkhorn_forward(*problem, n_iters, None, False), problem, n_iters, plan=2e-5)


@routes
def test_a_prototype_that_the_first_g_gives_nothing(route, force, device) -> None:
    # Far from all tokens but one, which has no mass and would send it an infinite gradient.
    cost = 1 + 0.1 * torch.rand(1, 3, 40, device=device)
    cost[0, 0] += 0.5
    cost[0, 0, 7] = 0
    kept = (torch.arange(40, device=device) != 7).float()[None]
    columns, start = torch.full((1, 3), 13.0, device=device), torch.zeros(1, 3, device=device)
    problem = Problem(cost, kept, columns, start, 0.0025)
    force(route)
    result = sinkhorn_forward(*problem, 3, None, True)
    _assert_solves(result, problem, 3)
    grads = sinkhorn_backward(
        torch.randn_like(result.plan), None, None, *problem, result.history, result.iterations, True
    )
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert (grads[0][0, :, 7] == 0).all()


@routes
@pytest.mark.parametrize("kind", ["plain", "everything"])
def test_small_epsilon_on_each_route(route, kind, force, device) -> None:
    force(route)
    clusters = _clusters(90, 10, device)
    clusters.epsilon = 0.002
    if kind == "everything":
        clusters.row_mass = (torch.arange(90, device=device) % 5 > 0).float()[None]
        clusters.col_mass = clusters.col_mass * 0.8
        clusters.init = torch.zeros(1, 10, device=device)
    _assert_solves(sinkhorn_forward(*clusters, 30, None, False), clusters, 30, plan=2e-5)


@routes
@kinds
def test_history_is_g_of_each_iteration(route, kind, force, device) -> None:
    problem = _problem((2, 40, 5), kind, device)
    force(route)
    history = sinkhorn_forward(*problem, 5, None, True).history
    for t in range(1, 6):
        torch.testing.assert_close(history[:, t - 1].double(), _exact(problem, t).g, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("route", ["resident", "streaming"])
@pytest.mark.parametrize("keep", [False, True])
def test_each_item_stops_at_its_own_tolerance(route, keep, force, device) -> None:
    problem = _problem((4, 60, 5), "masses", device)
    problem.cost *= torch.tensor([0.0, 0.1, 0.5, 1.0], device=device)[:, None, None]
    force(route)
    result = sinkhorn_forward(*problem, 12, 0.003, keep)
    errors = torch.stack([_exact(problem, t).marginal_error for t in range(1, 13)])
    wanted = [next((t + 1 for t in range(12) if errors[t, i] <= 0.003), 12) for i in range(4)]
    assert len(set(wanted)) > 2
    assert result.iterations.tolist() == wanted
    for i, t in enumerate(wanted):
        _assert_solves(
            SinkhornResult(*(part[i : i + 1] for part in result)), problem.items(slice(i, i + 1)), t, plan=1e-5
        )
        if keep:
            torch.testing.assert_close(result.history[i, t - 1], result.g[i])
            assert (result.history[i, t:] == 0).all()


@routes
@pytest.mark.parametrize("epsilon", [0.05, 0.001])
def test_masses_of_unequal_totals_let_potentials_drift(epsilon, route, force, device) -> None:
    problem = _problem((1, 50, 5), "masses", device, epsilon=epsilon)
    problem.cost = 1.5 + 0.1 * epsilon * problem.cost
    problem.col_mass = problem.col_mass / 1e8
    force(route)
    result = sinkhorn_forward(*problem, 15, None, False)
    # Every second iteration is absorbed into the gauge, also the last, and nothing is lost.
    _assert_solves(result, problem, 15)


@routes
def test_a_token_without_mass_does_not_set_the_scale(route, force, device) -> None:
    # It alone is close to the first prototype: all that counts is exp(-400) beside it.
    cost = 1 + 0.1 * torch.rand(1, 3, 40, device=device)
    cost[0, 0, 7] = 0
    kept = (torch.arange(40, device=device) != 7).float()[None]
    problem = Problem(cost, kept, torch.full((1, 3), 13.0, device=device), epsilon=0.0025)
    force(route)
    _assert_solves(sinkhorn_forward(*problem, 20, None, False), problem, 20)


@routes
def test_forbidden_pairs(route, force, device) -> None:
    problem = _problem((2, 45, 6), "everything", device)
    forbidden = torch.rand(2, 6, 45, device=device) < 0.3
    forbidden[:, 0] = forbidden[:, :, 0] = False
    problem.cost[forbidden] = torch.inf
    force(route)
    result = sinkhorn_forward(*problem, 5, None, True)
    _assert_solves(result, problem, 5)
    assert (result.plan[forbidden] == 0).all()
    # An entropy's gradient is -inf where nothing is carried, and nothing comes of it.
    grads = [
        sinkhorn_backward(
            torch.where(forbidden, infinite, 1.0), None, None, *problem, result.history, result.iterations, True
        )
        for infinite in (-torch.inf, 0.0)
    ]
    for one, other in zip(*grads, strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert (grads[0][0][forbidden] == 0).all()


@routes
@pytest.mark.parametrize("reach", [1e2, 1e4])
def test_hostile_costs_stay_finite(reach, route, force, device) -> None:
    problem = Problem(
        reach * torch.rand(2, 5, 60, device=device) ** 8, None, torch.full((2, 5), 12.0, device=device), epsilon=0.001
    )
    force(route)
    result = sinkhorn_forward(*problem, 10, None, True)
    assert all(torch.isfinite(part).all() for part in result)
    torch.testing.assert_close(result.plan.sum(1), torch.ones(2, 60, device=device))
    grads = sinkhorn_backward(
        torch.randn_like(result.plan), None, None, *problem, result.history, result.iterations, True
    )
    assert all(torch.isfinite(grad).all() for grad in grads)


@routes
@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy's, of the interpreter
def test_nan_comes_out_where_it_went_in(route, force, device) -> None:
    problem = _problem((3, 50, 4), "plain", device)
    clean = sinkhorn_forward(*problem, 5, None, True)
    problem.cost[1, 2, 3] = torch.nan
    force(route)
    for tol in (None, 1e-9):
        result = sinkhorn_forward(*problem, 5, tol, True)
        assert result.plan[1].isnan().all()
        assert result.error[1].isnan()
        assert torch.isfinite(result.error[[0, 2]]).all()
        torch.testing.assert_close(result.plan[[0, 2]], clean.plan[[0, 2]])
    grads = sinkhorn_backward(result.plan, None, None, *problem, result.history, result.iterations, True)
    assert all(grad[1].isnan().all() and torch.isfinite(grad[[0, 2]]).all() for grad in grads)


@routes
def test_items_do_not_meet_and_runs_do_not_differ(route, force, device) -> None:
    problem = _problem((3, 70, 6), "everything", device)
    incoming = torch.randn(3, 6, 70, device=device), torch.randn(3, 70, device=device), torch.randn(3, 6, device=device)
    force(route)

    def run(chosen: slice) -> list[Tensor]:
        some = problem.items(chosen)
        result = sinkhorn_forward(*some, 3, None, True)
        some_in = (grad[chosen].contiguous() for grad in incoming)
        return [*result, *sinkhorn_backward(*some_in, *some, result.history, result.iterations, True)]

    together = run(slice(0, 3))
    for one, other in zip(together, run(slice(0, 3)), strict=True):
        assert torch.equal(one, other)
    for i in range(3):
        for one, other in zip(together, run(slice(i, i + 1)), strict=True):
            assert torch.equal(one[i : i + 1], other)


GRADIENTS = ("cost", "row_mass", "col_mass")


def _exact_gradients(problem: Problem, n_iters: int, incoming: tuple[Tensor | None, ...]) -> list[Tensor]:
    """In float64 by autograd; of a token without mass as of one with next to none that has not been there at first."""
    cost = problem.cost.double().requires_grad_()
    kept = torch.ones_like(cost[:, 0]) if problem.row_mass is None else problem.row_mass.double()
    rows = kept.detach().clamp_min(1e-14).requires_grad_()
    cols = problem.col_mass.double().requires_grad_()
    logits = cost / -problem.epsilon
    if problem.init is None:
        f = torch.where(kept > 0, 0.0, -torch.inf)
    else:
        f = rows.log() - (logits + problem.init.double().unsqueeze(-1)).logsumexp(1)
    for _ in range(n_iters):
        g = cols.log() - (logits + f.unsqueeze(1)).logsumexp(-1)
        f = rows.log() - (logits + g.unsqueeze(-1)).logsumexp(1)
    plan = (logits + f.unsqueeze(1) + g.unsqueeze(-1)).exp()
    f = f.masked_fill(kept == 0, 0)
    total = sum((grad * part).sum() for grad, part in zip(incoming, (plan, f, g), strict=True) if grad is not None)
    return list(torch.autograd.grad(total, (cost, rows, cols), allow_unused=True, materialize_grads=True))


def _assert_gradients(problem: Problem, n_iters: int, through: str, *, rtol: float = 2e-5, tol: float | None = None):
    generator = torch.Generator().manual_seed(n_iters)
    b, k, n = problem.cost.shape
    shapes = {"plan": (b, k, n), "f": (b, n), "g": (b, k)}
    incoming = tuple(
        torch.randn(shape, generator=generator).to(problem.cost.device) if name in through else None
        for name, shape in shapes.items()
    )
    result = sinkhorn_forward(*problem, n_iters, tol, True)
    grads = sinkhorn_backward(*incoming, *problem, result.history, result.iterations, True)
    for name, grad, exact in zip(
        GRADIENTS, grads, _exact_gradients(problem, int(result.iterations.max()), incoming), strict=True
    ):
        scale = max(1e-2, exact.abs().max().item())
        torch.testing.assert_close(
            grad.double(), exact, rtol=0, atol=rtol * scale, msg=lambda text, name=name: f"to {name}: {text}"
        )


@sizes
@routes
@pytest.mark.parametrize("kind", ["plain", "mask", "everything"])
def test_gradients(size, route, kind, force, device) -> None:
    force(route)
    _assert_gradients(_problem(size, kind, device), 2, "plan f g")


@routes
@kinds
@pytest.mark.parametrize("through", ["plan", "f", "g"])
@pytest.mark.parametrize("n_iters", [1, 4])
def test_gradients_through_each_output(n_iters, through, route, kind, force, device) -> None:
    force(route)
    _assert_gradients(_problem((2, 40, 5), kind, device), n_iters, through)


@sizes
def test_gradients_on_the_route_of_its_size(size, device) -> None:
    _assert_gradients(_problem(size, "everything", device), 12, "plan f g", rtol=5e-5)


@pytest.mark.parametrize("epsilon", [0.05, 0.005, 0.001])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_at_small_epsilon(epsilon, seed, device) -> None:
    problem = _clusters(256, 30, device, seed)
    problem.epsilon = epsilon
    _assert_gradients(problem, 50, "plan", rtol=1e-4)


@routes
def test_gradients_at_small_epsilon_on_each_route(route, force, device) -> None:
    problem = _clusters(120, 10, device)
    problem.epsilon, problem.init = 0.002, torch.zeros(1, 10, device=device)
    force(route)
    _assert_gradients(problem, 12, "plan", rtol=1e-4)


@routes
def test_gradients_of_the_iterations_that_were_run(route, force, device) -> None:
    problem = _problem((1, 60, 5), "masses", device)
    problem.cost *= 0.3
    force(route)
    _assert_gradients(problem, 30, "plan f g", tol=1e-2)


@routes
def test_gradients_to_the_cost_alone(route, force, device) -> None:
    problem = _problem((2, 40, 5), "everything", device)
    force(route)
    result = sinkhorn_forward(*problem, 3, None, True)
    incoming = torch.randn_like(result.plan), None, None
    grads = [
        sinkhorn_backward(*incoming, *problem, result.history, result.iterations, of_masses)
        for of_masses in (False, True)
    ]
    torch.testing.assert_close(grads[0][0], grads[1][0], rtol=0, atol=0)
    assert grads[0][1].shape == grads[0][2].shape == (0,)


@given(st.integers(1, 300), st.integers(1, 100_000), st.integers(1, tiers.MAX_PROTOTYPES), st.booleans())
def test_tiles_cover_every_item(b, n, k, stops) -> None:
    forward = tiers.forward_tier(b, n, k, stops=stops)
    for tier in (forward, tiers.backward_tier(b, n, k)):
        tile = tier if isinstance(tier, Tile) else tier.tile
        assert tile.block_k >= k
        # Registers of a thread: entries of a tile, and of vectors over it.
        assert tile.block_k * tile.block_n <= 64 * 32 * tile.num_warps
        assert tile.num_warps <= 8
        if isinstance(tier, Tile):
            assert tile.block_n >= n
        else:
            assert tier.chunk % tile.block_n == 0
            assert (tier.splits - 1) * tier.chunk < n <= tier.splits * tier.chunk
    assert not stops or isinstance(forward, Tile) or forward.splits == 1
