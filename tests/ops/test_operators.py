"""What torch demands of every operator, at every documented rank: opcheck, compile, export, ONNX, vmap."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from protoad.nn import SinkhornAssign
from protoad.ops import cosine_cost, sinkhorn, sinkhorn_from_cost, transport_context, transport_reconstruct
from protoad.ops._average import _context_backward, _reconstruct_backward, context, reconstruct
from protoad.ops._cosine import _cosine_cost, _cosine_cost_backward
from protoad.ops._sinkhorn_op import _implicit_backward, _transport, _unrolled_backward

RANKS = [(), (2,), (2, 3)]
ranks = pytest.mark.parametrize("leading", RANKS, ids=str)


def _vectors(leading: tuple[int, ...], *, shared: bool, grad: bool = True) -> tuple[Tensor, Tensor]:
    tokens = torch.randn(*leading, 6, 4, dtype=torch.float64, requires_grad=grad)
    return tokens, torch.randn(*(() if shared else leading), 3, 4, dtype=torch.float64, requires_grad=grad)


@ranks
@pytest.mark.parametrize("masses", [False, True])
@pytest.mark.parametrize(
    ("method", "gradient", "tol"),
    [
        ("sinkhorn", "unrolled", None),
        ("sinkhorn", "implicit", None),
        ("sinkhorn", "none", None),
        ("newton", "implicit", 1e-8),
    ],
)
def test_opcheck_of_transport(
    leading: tuple[int, ...], masses: bool, method: str, gradient: str, tol: float | None
) -> None:
    grad = gradient != "none"
    cost = torch.rand(*leading, 6, 3, dtype=torch.float64, requires_grad=grad)
    rows = torch.rand(*leading, 6, dtype=torch.float64, requires_grad=grad) if masses else None
    cols = torch.rand(*leading, 3, dtype=torch.float64, requires_grad=grad) if masses else None
    init = torch.randn(*leading, 3, dtype=torch.float64) if masses else None
    torch.library.opcheck(_transport, (cost, rows, cols, init, 0.1, 3, tol, method, gradient, "torch"))


@ranks
@pytest.mark.parametrize("masses", [False, True])
def test_opcheck_of_the_gradients_of_transport(leading: tuple[int, ...], masses: bool) -> None:
    cost = torch.rand(*leading, 6, 3, dtype=torch.float64)
    rows = torch.rand(*leading, 6, dtype=torch.float64) if masses else None
    cols = torch.rand(*leading, 3, dtype=torch.float64) if masses else None
    plan, f, g, _, iterations, history = _transport(
        cost, rows, cols, None, 0.1, 3, None, "sinkhorn", "unrolled", "torch"
    )
    grads = torch.rand_like(plan), torch.rand_like(f), None
    torch.library.opcheck(
        _unrolled_backward, (*grads, cost, rows, cols, None, iterations, history, 0.1, masses, "torch")
    )
    torch.library.opcheck(_implicit_backward, (*grads, cost, rows, cols, plan, g, 0.1, masses, "torch"))


@ranks
@pytest.mark.parametrize("shared", [False, True])
def test_opcheck_of_cosine_and_averages(leading: tuple[int, ...], shared: bool) -> None:
    tokens, prototypes = _vectors(leading, shared=shared)
    plan = torch.rand(*leading, 6, 3, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(_cosine_cost, (tokens, prototypes, "torch"))
    torch.library.opcheck(reconstruct, (plan, prototypes, "torch"))
    torch.library.opcheck(context, (plan, tokens, "torch"))
    plain = [one.detach() for one in (tokens, prototypes, plan)]
    cost, inverse = _cosine_cost(*plain[:2], "torch")
    torch.library.opcheck(_cosine_cost_backward, (torch.rand_like(cost), *plain[:2], cost, inverse, "torch"))
    torch.library.opcheck(_reconstruct_backward, (torch.rand_like(plain[0]), plain[2], plain[1], "torch"))
    means, mass = context(plain[2], plain[0], "torch")
    torch.library.opcheck(_context_backward, (torch.rand_like(means), plain[2], plain[0], means, mass, "torch"))


@ranks
@pytest.mark.parametrize("shared", [False, True])
def test_cosine_and_averages_have_both_derivatives(leading: tuple[int, ...], shared: bool) -> None:
    tokens, prototypes = _vectors(leading, shared=shared)
    plan = torch.rand(*leading, 6, 3, dtype=torch.float64, requires_grad=True)
    for function, inputs in (
        (cosine_cost, (tokens, prototypes)),
        (transport_reconstruct, (plan, prototypes)),
        (transport_context, (plan, tokens)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("large", [False, True], ids=["batched", "item by item"])
@pytest.mark.parametrize("shared", [False, True])
def test_both_ways_through_a_batch_agree(large: bool, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from protoad.ops import _items

    monkeypatch.setattr(_items, "LARGE", 0 if large else 1 << 30)
    tokens, prototypes = _vectors((2, 3), shared=shared)
    plan = torch.rand(2, 3, 6, 3, dtype=torch.float64, requires_grad=True)
    expected = (
        torch.nn.functional.cosine_similarity(tokens.unsqueeze(-2), prototypes.unsqueeze(-3), dim=-1),
        plan @ prototypes,
        plan.mT @ tokens / plan.sum(-2).unsqueeze(-1),
    )
    results = (
        1 - cosine_cost(tokens, prototypes),
        transport_reconstruct(plan, prototypes),
        transport_context(plan, tokens),
    )
    inputs = tokens, prototypes, plan
    for result, other in zip(results, expected, strict=True):
        torch.testing.assert_close(result, other)
        weights = torch.randn_like(result)
        for one, two in zip(
            torch.autograd.grad((result * weights).sum(), inputs, allow_unused=True, retain_graph=True),
            torch.autograd.grad((other * weights).sum(), inputs, allow_unused=True, retain_graph=True),
            strict=True,
        ):
            assert (one is None) == (two is None)
            if one is not None:
                torch.testing.assert_close(one, two)


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
@pytest.mark.parametrize("method", ["sinkhorn", "newton"])
def test_compiles_whole_with_any_number_of_tokens(method: str, gradient: str) -> None:
    def loss(z: Tensor, p: Tensor, mask: Tensor) -> Tensor:
        plan = sinkhorn(z, p, n_iters=5, method=method, gradient=gradient, token_mask=mask).plan
        return transport_reconstruct(plan, p).square().sum() + transport_context(plan, z).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for b, n in ((2, 9), (3, 17)):
        inputs = torch.randn(b, n, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
        mask = torch.rand(b, n) < 0.7
        values = [function(*inputs, mask) for function in (compiled, loss)]
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*(torch.autograd.grad(value, inputs) for value in values))


class _Assign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.assign = SinkhornAssign(epsilon=0.05, n_iters=20)

    def forward(self, tokens: Tensor, prototypes: Tensor, token_mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.assign(tokens, prototypes, token_mask))


def _export_case() -> tuple[tuple[Tensor, ...], dict[str, object], tuple[Tensor, ...]]:
    """Inputs to export with, which of their axes are free, and other inputs to run with."""
    axes = {0: torch.export.Dim("b", min=1, max=64), 1: torch.export.Dim("n", min=2, max=4096)}
    first, other = (
        (torch.randn(b, n, 4), torch.randn(3, 4), torch.arange(n).expand(b, -1) < n - 2) for b, n in ((2, 9), (5, 17))
    )
    return first, {"tokens": axes, "prototypes": None, "token_mask": axes}, other


def test_exports_as_plain_operators_with_any_number_of_items_and_tokens() -> None:
    module, (inputs, axes, other) = _Assign().eval(), _export_case()
    exported = torch.export.export(module, inputs, dynamic_shapes=axes)
    assert not [node for node in exported.graph.nodes if "protoad" in str(node.target)]
    torch.testing.assert_close(exported.module()(*other), module(*other), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:# The axis name:UserWarning")  # of torch itself
def test_onnx_gives_the_same() -> None:
    pytest.importorskip("onnxscript", reason="needs the onnx extra")
    runtime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    module, (inputs, axes, other) = _Assign().eval(), _export_case()
    program = torch.onnx.export(module, inputs, dynamo=True, dynamic_shapes=axes, verbose=False)
    file = io.BytesIO()
    program.save(file)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    outputs = session.run(None, {name: one.numpy() for name, one in zip(names, other, strict=True)})
    for one, expected in zip(outputs, module(*other), strict=True):
        torch.testing.assert_close(torch.from_numpy(one), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"tol": 1e-3}, {"method": "newton"}])
def test_what_cannot_be_exported_says_so(options: dict[str, object]) -> None:
    class Plan(nn.Module):
        def forward(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
            return sinkhorn(tokens, prototypes, **options).plan

    with pytest.raises(Exception, match="expected a fixed number of iterations for export"):
        torch.export.export(Plan(), (torch.randn(2, 9, 4), torch.randn(3, 4)))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_vmap_equals_the_batch() -> None:
    tokens, prototypes = torch.randn(4, 9, 5), torch.randn(3, 5)

    def rebuilt(z: Tensor) -> Tensor:
        return transport_reconstruct(sinkhorn(z, prototypes, method="newton").plan, prototypes)

    torch.testing.assert_close(torch.vmap(rebuilt)(tokens), rebuilt(tokens), rtol=1e-5, atol=1e-5)


def test_functional_transforms_of_the_gradient_are_refused() -> None:
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(lambda z: sinkhorn(z, torch.randn(3, 5)).plan.sum())(torch.randn(9, 5))


def test_autocast_reaches_neither_plan_nor_gradient() -> None:
    tokens, prototypes = torch.randn(2, 40, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    inputs = tokens, prototypes
    for method in ("sinkhorn", "newton"):
        expected = torch.autograd.grad(sinkhorn(*inputs, method=method).plan.square().sum(), inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            grads = torch.autograd.grad(sinkhorn(*inputs, method=method).plan.square().sum(), inputs)
        torch.testing.assert_close(grads, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_tokens_are_rounded_once(dtype: torch.dtype) -> None:
    tokens, prototypes = torch.randn(2, 40, 8).to(dtype), torch.randn(5, 8).to(dtype)
    inputs = tokens.requires_grad_(), prototypes.requires_grad_()
    exact = [one.detach().float().requires_grad_() for one in inputs]
    weights = torch.randn(2, 40, 5)
    plan, expected = sinkhorn(*inputs).plan, sinkhorn(*exact).plan
    assert plan.dtype == dtype
    torch.testing.assert_close(plan, expected.to(dtype), rtol=0, atol=0)
    grads = torch.autograd.grad((plan.float() * weights).sum(), inputs)
    references = torch.autograd.grad((expected * weights).sum(), exact)
    for one, other in zip(grads, references, strict=True):
        assert one.dtype == dtype
        # The gradient to the plan is rounded to the dtype on its way in.
        torch.testing.assert_close(one.float(), other, rtol=0, atol=4 * torch.finfo(dtype).eps * other.abs().max())


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_a_second_derivative_is_refused_in_words(gradient: str) -> None:
    cost = torch.rand(6, 3, requires_grad=True)
    plan = sinkhorn_from_cost(cost, gradient=gradient).plan
    (grad,) = torch.autograd.grad(plan.square().sum(), cost, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.square().sum().backward()
