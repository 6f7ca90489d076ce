"""Gated cross-attention against Eqs. 3-4 written out."""

from __future__ import annotations

import math

import pytest
import torch

from protoad import ShapeError
from protoad.nn import GatedProtoCrossAttention


@pytest.mark.parametrize("residual", ["purified", "none"])
def test_equations_3_and_4(residual: str) -> None:
    d = 6
    attend = GatedProtoCrossAttention(d, residual=residual, gamma=0.7).double()
    tokens, intra = torch.randn(2, 9, d, dtype=torch.float64), torch.randn(2, 9, d, dtype=torch.float64)
    prototypes = torch.randn(2, 4, d, dtype=torch.float64)
    purified = tokens * intra.sigmoid()
    query, key, value = (
        purified @ attend.query.weight.T,
        prototypes @ attend.key.weight.T,
        prototypes @ attend.value.weight.T,
    )
    attention = (query @ key.mT / math.sqrt(d)).softmax(-1)
    expected = math.tanh(0.7) * (attention @ value)
    if residual == "purified":
        expected = purified + expected
    torch.testing.assert_close(attend(tokens, intra, prototypes), expected)


def test_a_closed_gate_leaves_the_purified_tokens() -> None:
    attend = GatedProtoCrossAttention(8, gamma=0.0)
    tokens, intra = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    torch.testing.assert_close(attend(tokens, intra, torch.randn(1, 3, 8)), tokens * intra.sigmoid())


def test_heads_split_channels() -> None:
    attend = GatedProtoCrossAttention(8, num_heads=4, residual="none")
    tokens, intra, prototypes = torch.randn(1, 5, 8), torch.randn(1, 5, 8), torch.randn(1, 3, 8)
    purified = tokens * intra.sigmoid()
    query, key, value = attend.query(purified), attend.key(prototypes), attend.value(prototypes)
    expected = torch.cat(
        [
            (query[..., s] @ key[..., s].mT / math.sqrt(2)).softmax(-1) @ value[..., s]
            for s in (slice(i, i + 2) for i in range(0, 8, 2))
        ],
        dim=-1,
    )
    torch.testing.assert_close(attend(tokens, intra, prototypes), attend.gate * expected)


def test_shared_prototypes_serve_every_item() -> None:
    attend = GatedProtoCrossAttention(8, out_proj=True)
    tokens, intra, prototypes = torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.randn(3, 8)
    torch.testing.assert_close(attend(tokens, intra, prototypes), attend(tokens, intra, prototypes.expand(2, -1, -1)))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="residual: expected purified or none, got 'both'"):
        GatedProtoCrossAttention(8, residual="both")
    with pytest.raises(ValueError, match="num_heads: expected a divisor of dim=8, got 3"):
        GatedProtoCrossAttention(8, num_heads=3)
    attend = GatedProtoCrossAttention(8)
    with pytest.raises(ShapeError, match="prototypes: expected d=8"):
        attend(torch.randn(1, 5, 8), torch.randn(1, 5, 8), torch.randn(1, 3, 7))
    with pytest.raises(ShapeError, match="tokens, reconstruction"):
        attend(torch.randn(1, 5, 8), torch.randn(1, 4, 8), torch.randn(1, 3, 8))
