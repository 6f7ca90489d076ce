"""Timings of operations and modules: `make bench`. Compare figures of one run only, as ratios."""

from __future__ import annotations

import pytest
import torch

from protoad.nn import CrossModalPrototypeGAT, GatedProtoCrossAttention, GRUPrototypeRefiner, SinkhornAssign
from protoad.ops import sinkhorn, sinkhorn_from_cost, transport_context, transport_reconstruct
from protoad.ops.sinkhorn_reference import sinkhorn_reference

torch.set_num_threads(1)
SHAPES = [(1, 256, 10), (8, 256, 10), (1, 784, 10), (8, 784, 10), (8, 784, 100)]
WAYS = {"unrolled": {}, "implicit": {"gradient": "implicit"}, "newton": {"method": "newton"}}
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


@sizes
@pytest.mark.parametrize(
    "options", [{}, {"gradient": "implicit"}, {"method": "newton"}], ids=["", "implicit", "newton"]
)
def test_tokens_to_reconstruction_and_back(benchmark, shape, options) -> None:
    b, n, k = shape
    tokens, prototypes = torch.randn(b, n, 384, requires_grad=True), torch.randn(k, 384, requires_grad=True)
    benchmark.group = f"tokens to reconstruction {shape}, forward+backward"

    def step() -> None:
        transport_reconstruct(sinkhorn(tokens, prototypes, **options).plan, prototypes).square().sum().backward()

    benchmark(step)


@sizes
def test_context(benchmark, shape) -> None:
    b, n, k = shape
    plan, tokens = torch.rand(b, k, n).mT.requires_grad_(), torch.randn(b, n, 384, requires_grad=True)
    benchmark.group = "context, forward+backward"
    benchmark(lambda: transport_context(plan, tokens).square().sum().backward())


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
