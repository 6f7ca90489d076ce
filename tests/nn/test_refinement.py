"""GRU refinement against Eqs. 5-8, by hand and beside torch's own cell."""

from __future__ import annotations

import math

import pytest
import torch

from protoad import ShapeError
from protoad.nn import GRUPrototypeRefiner


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_equations_by_hand_for_one_channel() -> None:
    refine = GRUPrototypeRefiner(1).double()
    with torch.no_grad():
        refine.update.weight.copy_(torch.tensor([[0.5, -1.0]]))
        refine.update.bias.fill_(0.1)
        refine.reset.weight.copy_(torch.tensor([[2.0, 0.25]]))
        refine.reset.bias.fill_(-0.2)
        refine.candidate.weight.copy_(torch.tensor([[1.5, -0.5]]))
        refine.candidate.bias.fill_(0.3)
    p, c = 0.8, -0.6
    u = _sigmoid(0.5 * p - 1.0 * c + 0.1)
    r = _sigmoid(2.0 * p + 0.25 * c - 0.2)
    q = math.tanh(1.5 * (r * p) - 0.5 * c + 0.3)
    found = refine(torch.tensor([[[p]]], dtype=torch.float64), torch.tensor([[[c]]], dtype=torch.float64))
    assert found.item() == pytest.approx(u * p + (1 - u) * q, abs=1e-12)


def test_equals_torchs_cell_where_the_reset_gate_is_open() -> None:
    """With r = 1 the place of the reset gate does not matter, and u keeps the old state in both."""
    d = 6
    refine, cell = GRUPrototypeRefiner(d).double(), torch.nn.GRUCell(d, d).double()
    with torch.no_grad():
        refine.reset.weight.zero_()
        refine.reset.bias.fill_(50)
        cell.weight_ih.copy_(
            torch.cat([refine.reset.weight[:, d:], refine.update.weight[:, d:], refine.candidate.weight[:, d:]])
        )
        cell.weight_hh.copy_(
            torch.cat([refine.reset.weight[:, :d], refine.update.weight[:, :d], refine.candidate.weight[:, :d]])
        )
        cell.bias_ih.copy_(torch.cat([refine.reset.bias, refine.update.bias, refine.candidate.bias]))
        cell.bias_hh.zero_()
    prototypes, context = torch.randn(2, 5, d, dtype=torch.float64), torch.randn(2, 5, d, dtype=torch.float64)
    expected = cell(context.flatten(0, 1), prototypes.flatten(0, 1)).unflatten(0, (2, 5))
    torch.testing.assert_close(refine(prototypes, context), expected)


def test_update_bias_holds_prototypes_in_place() -> None:
    prototypes, context = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    held = GRUPrototypeRefiner(8, update_bias=50.0)(prototypes, context)
    torch.testing.assert_close(held, prototypes)


def test_prototypes_do_not_meet_each_other_or_other_items() -> None:
    refine = GRUPrototypeRefiner(8)
    prototypes, context = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    torch.testing.assert_close(refine(prototypes, context)[1, 2], refine(prototypes[1:2, 2:3], context[1:2, 2:3])[0, 0])


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 4, 8)])
def test_wrong_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected the same \(b k d\) with d=8"):
        GRUPrototypeRefiner(8)(torch.randn(2, 5, 8), torch.randn(shape))
