"""Timings of operations and modules: `make bench`. Compare figures of one run only, as ratios."""

from __future__ import annotations

import pytest
import torch

from protoad.nn import CrossModalPrototypeGAT, GatedProtoCrossAttention, GRUPrototypeRefiner, SinkhornAssign
from protoad.ops import sinkhorn_from_cost
from protoad.ops.sinkhorn_reference import sinkhorn_reference

torch.set_num_threads(1)
SHAPES = [(1, 256, 10), (8, 256, 10), (1, 784, 10), (8, 784, 10), (8, 784, 100)]
sizes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


@sizes
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_sinkhorn(benchmark, shape, backward) -> None:
    cost = torch.rand(shape, requires_grad=backward)
    benchmark.group = f"sinkhorn {shape} {'forward+backward' if backward else 'forward'}"
    benchmark(_run, sinkhorn_from_cost, cost, backward)


@sizes
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_sinkhorn_reference(benchmark, shape, backward) -> None:
    cost = torch.rand(shape, requires_grad=backward)
    benchmark.group = f"sinkhorn {shape} {'forward+backward' if backward else 'forward'}"
    benchmark(_run, sinkhorn_reference, cost, backward)


def _run(solve, cost, backward) -> None:
    plan = solve(cost, epsilon=0.05, n_iters=20).plan
    if backward:
        plan.square().sum().backward()


@pytest.mark.parametrize("name", ["assign", "refine", "align", "inject"])
def test_module_forward_and_backward(benchmark, name) -> None:
    b, n, k, d = 1, 784, 10, 256
    tokens, prototypes = torch.randn(b, n, d, requires_grad=True), torch.randn(b, k, d, requires_grad=True)
    module, arguments = {
        "assign": (SinkhornAssign(), (tokens, prototypes)),
        "refine": (GRUPrototypeRefiner(d), (prototypes, prototypes)),
        "align": (CrossModalPrototypeGAT(d), (prototypes, prototypes)),
        "inject": (GatedProtoCrossAttention(d), (tokens, tokens, prototypes)),
    }[name]
    benchmark.group = "modules, forward+backward"

    def step() -> None:
        output = module(*arguments)
        output = output if isinstance(output, torch.Tensor) else output[1]
        output.square().sum().backward()

    benchmark(step)
