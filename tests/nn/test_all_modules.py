"""What every module must do: any batch, any precision, compile whole, save and load, say what it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from protoad.nn import (
    AttentionAssign,
    CrossModalPrototypeGAT,
    GatedProtoCrossAttention,
    GlobalMeanAggregate,
    GRUPrototypeRefiner,
    LinearAssign,
    PrototypeGuard,
    SigmoidAssign,
    SinkhornAssign,
    SoftmaxAssign,
    TopKAggregate,
    TransportAggregate,
)

D = 8


def _tokens(batch: int) -> tuple[Tensor, ...]:
    return torch.randn(batch, 16, D), torch.randn(batch, 4, D)


def _prototypes(batch: int) -> tuple[Tensor, ...]:
    return torch.randn(batch, 4, D), torch.randn(batch, 4, D)


def _attention(batch: int) -> tuple[Tensor, ...]:
    return torch.randn(batch, 16, D), torch.randn(batch, 16, D), torch.randn(batch, 4, D)


def _guard(quantile: float = 0.9) -> PrototypeGuard:
    guard = PrototypeGuard(quantile=quantile)
    guard.limit.fill_(0.6)  # some random tokens stay, some are replaced, some lie between
    return guard


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "sinkhorn": (SinkhornAssign, _tokens),
    "softmax": (SoftmaxAssign, _tokens),
    "linear": (LinearAssign, _tokens),
    "sigmoid": (SigmoidAssign, _tokens),
    "learned": (lambda: AttentionAssign(D), _tokens),
    "transport": (TransportAggregate, _tokens),
    "topk": (TopKAggregate, _tokens),
    "mean": (GlobalMeanAggregate, _tokens),
    "guard": (_guard, _tokens),
    "gru": (lambda: GRUPrototypeRefiner(D), _prototypes),
    "gat": (lambda: CrossModalPrototypeGAT(D), _prototypes),
    "attention": (lambda: GatedProtoCrossAttention(D), _attention),
}
everything = pytest.mark.parametrize(("build", "inputs"), CASES.values(), ids=CASES)


def _flat(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else torch.cat([part.flatten() for part in output])


@everything
def test_a_batch_equals_its_items(build, inputs, device) -> None:
    module, arguments = build().to(device), [x.to(device) for x in inputs(3)]
    whole = module(*arguments)
    for index in range(3):
        alone = module(*(x[index : index + 1] for x in arguments))
        pairs = [(whole, alone)] if isinstance(whole, Tensor) else list(zip(whole, alone, strict=True))
        for together, one in pairs:
            torch.testing.assert_close(together[index : index + 1], one, rtol=1e-5, atol=1e-5)


@everything
def test_float64_and_bf16_autocast(build, inputs, device) -> None:
    module, arguments = build().to(device), [x.to(device) for x in inputs(2)]
    single = _flat(module(*arguments))
    double = _flat(module.double()(*(x.double() for x in arguments)))
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
    with torch.autocast(device, dtype=torch.bfloat16):
        half = _flat(module.float()(*arguments))
    # bf16 keeps 8 bits: three products in a row of numbers around 1 are off by a few of their last places.
    torch.testing.assert_close(half.float(), single, rtol=0.05, atol=0.05)


@everything
def test_compiles_whole(build, inputs) -> None:
    module, arguments = build(), inputs(2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(_flat(compiled(*arguments)), _flat(module(*arguments)))


@everything
def test_gradcheck(build, inputs) -> None:
    module = build().double()
    arguments = [x[:, :6].double().requires_grad_() for x in inputs(1)]
    assert torch.autograd.gradcheck(lambda *x: _flat(module(*x)), arguments)


@everything
def test_state_dict_round_trip_and_seed(build, inputs) -> None:
    torch.manual_seed(1)
    one = build()
    torch.manual_seed(1)
    again = build()
    torch.manual_seed(2)
    other = build()
    arguments = inputs(1)
    torch.testing.assert_close(_flat(one(*arguments)), _flat(again(*arguments)), rtol=0, atol=0)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(_flat(other(*arguments)), _flat(one(*arguments)), rtol=0, atol=0)


def test_names_of_stored_parameters_stay() -> None:
    """A checkpoint of today must load tomorrow."""
    assert list(GRUPrototypeRefiner(D).state_dict()) == [
        f"{gate}.{kind}" for gate in ("update", "reset", "candidate") for kind in ("weight", "bias")
    ]
    assert list(CrossModalPrototypeGAT(D).state_dict()) == ["attend_from", "attend_to", "project.weight"]
    assert list(GatedProtoCrossAttention(D).state_dict()) == ["gamma", "query.weight", "key.weight", "value.weight"]
    assert list(PrototypeGuard().state_dict()) == ["limit"]
    assert list(SinkhornAssign().state_dict()) == []


def test_repr_says_the_settings() -> None:
    assert "epsilon=0.1, n_iters=7" in repr(SinkhornAssign(epsilon=0.1, n_iters=7))
    assert "num_neighbors=3" in repr(CrossModalPrototypeGAT(D))
    assert "residual='none'" in repr(GatedProtoCrossAttention(D, residual="none"))
    assert "quantile=0.8, limit=0.6" in repr(_guard(0.8))
    assert "dim=8, update_bias=1.0" in repr(GRUPrototypeRefiner(D, update_bias=1.0))
