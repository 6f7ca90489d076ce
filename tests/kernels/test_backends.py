"""The public functions on Triton kernels against the same on plain PyTorch: the mathematics stay what they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protoad.nn import SinkhornAssign
from protoad.ops import cosine_cost, sinkhorn, sinkhorn_from_cost, transport_context, transport_reconstruct

SHAPES = [((), 33, 3), ((2,), 65, 10), ((2, 2), 20, 17)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
OPTIONS = {
    "unrolled": {},
    "implicit": {"gradient": "implicit", "n_iters": 300},
    "tolerance": {"tol": 1e-3, "n_iters": 200},
    "newton": {"method": "newton"},
    "small epsilon": {"epsilon": 0.003},
}
options = pytest.mark.parametrize("name", OPTIONS)


def _problem(shape: tuple, device: str, *, masses: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    leading, n, k = shape
    generator = torch.Generator().manual_seed(n)
    tokens = torch.randn(*leading, n, 12, generator=generator) + torch.randn(12, generator=generator)
    prototypes = torch.randn(k, 12, generator=generator) + tokens.reshape(-1, 12)[:k]
    inputs = [one.to(device).requires_grad_() for one in (tokens, prototypes)]
    if not masses:
        return inputs, {}
    rows = 0.2 + torch.rand(*leading, n, generator=generator)
    cols = 0.2 + torch.rand(*leading, k, generator=generator)
    mask = torch.rand(*leading, n, generator=generator) < 0.8
    kept = (rows * mask).sum(-1, keepdim=True)
    cols = cols * kept / cols.sum(-1, keepdim=True)
    return inputs, {
        "row_mass": rows.to(device).requires_grad_(),
        "col_mass": cols.to(device).requires_grad_(),
        "token_mask": mask.to(device),
    }


@shapes
@options
@pytest.mark.parametrize("masses", [False, True], ids=["uniform", "masses"])
def test_transport_with_all_gradients(shape: tuple, name: str, masses: bool, device: str) -> None:
    inputs, given = _problem(shape, device, masses=masses)
    wanted = [*inputs, *(one for one in given.values() if one.requires_grad)]
    values, grads = [], []
    for backend in ("triton", "torch"):
        transport = sinkhorn(*inputs, backend=backend, **given, **OPTIONS[name])
        rebuilt = transport_reconstruct(transport.plan, inputs[1], backend=backend)
        means = transport_context(transport.plan, inputs[0], backend=backend)
        generator = torch.Generator().manual_seed(0)
        total = sum((torch.randn(part.shape, generator=generator).to(device) * part).sum() for part in (rebuilt, means))
        values.append([transport.plan, rebuilt, means, transport.marginal_error])
        grads.append(torch.autograd.grad(total, wanted))
    for one, other in zip(*values, strict=True):
        # Newton stops anywhere within its tolerance; the others run the same iterations.
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4 if name == "newton" else 3e-5)
    for one, other in zip(*grads, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=(5e-3 if name == "small epsilon" else 1e-3) * scale)


@shapes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_tokens(shape: tuple, dtype: torch.dtype, device: str) -> None:
    inputs, _ = _problem(shape, device, masses=False)
    plans, grads = [], []
    for backend in ("triton", "torch"):
        low = [one.detach().to(dtype).requires_grad_() for one in inputs]
        plan = sinkhorn(*low, backend=backend).plan
        rebuilt = transport_reconstruct(plan, low[1], backend=backend)
        grads.append(torch.autograd.grad(rebuilt.float().square().sum(), low))
        plans.append(plan)
    assert plans[0].dtype == dtype
    torch.testing.assert_close(*plans, rtol=0, atol=2 * torch.finfo(dtype).eps)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=8 * torch.finfo(dtype).eps * other.abs().max().item())


def test_a_warm_start_and_an_empty_item(device: str) -> None:
    tokens, prototypes = torch.randn(3, 30, 8, device=device), torch.randn(5, 8, device=device)
    mask = torch.ones(3, 30, dtype=torch.bool, device=device)
    mask[1] = False
    start = sinkhorn(tokens, prototypes, n_iters=7, token_mask=mask, backend="torch")
    plans = [
        sinkhorn(tokens, prototypes, n_iters=5, token_mask=mask, init=start, backend=backend)
        for backend in ("triton", "torch")
    ]
    for part in ("plan", "marginal_error"):
        torch.testing.assert_close(*(getattr(one, part) for one in plans), rtol=0, atol=1e-5)
    assert (plans[0].plan[1] == 0).all()


def test_the_module_passes_its_backend_on(device: str) -> None:
    tokens, prototypes = torch.randn(2, 30, 8, device=device), torch.randn(5, 8, device=device)
    outputs = [SinkhornAssign(backend=backend)(tokens, prototypes) for backend in ("triton", "torch")]
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_compiles_whole(device: str) -> None:
    tokens, prototypes = torch.randn(2, 30, 8, device=device), torch.randn(5, 8, device=device, requires_grad=True)

    def loss(z: Tensor, p: Tensor) -> Tensor:
        plan = sinkhorn(z, p, n_iters=5, backend="triton").plan
        return transport_reconstruct(plan, p, backend="triton").square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    values = [function(tokens, prototypes) for function in (compiled, loss)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, prototypes) for value in values))


def test_more_prototypes_than_the_kernels_hold(device: str) -> None:
    cost = torch.rand(300, 129, device=device)
    with pytest.raises(ValueError, match="129 prototypes, more than 128"):
        sinkhorn_from_cost(cost, backend="triton")
    assert torch.isfinite(sinkhorn_from_cost(cost).plan).all()


def test_cosine_of_zero_tokens(device: str) -> None:
    tokens = torch.randn(2, 30, 8, device=device)
    tokens[0, 3] = 0
    assert (cosine_cost(tokens, torch.randn(5, 8, device=device), backend="triton")[0, 3] == 1).all()
