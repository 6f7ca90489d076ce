"""Part or table, by the looks of a token; beside scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from protoad import ShapeError
from protoad.background import TokenBackground


def _tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    part = torch.rand(4, 200, generator=generator) < 0.3
    spread = torch.randn(5, 5, generator=generator)
    tokens = torch.randn(4, 200, 5, generator=generator) @ spread
    return tokens + part[..., None] * torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0]), part


class _Ridge(BaseEstimator):
    """The shrinkage of ours, for scikit-learn."""

    def fit(self, tokens: np.ndarray) -> _Ridge:
        covariance = np.cov(tokens.T, bias=True)
        self.covariance_ = covariance + 0.05 * covariance.diagonal().mean() * np.eye(len(covariance))
        return self


def test_it_is_fishers_discriminant_halfway_between_the_means() -> None:
    tokens, part = _tokens()
    flat, truth = tokens.flatten(0, 1).double().numpy(), part.flatten().numpy()
    oracle = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=_Ridge()).fit(flat, truth)
    looks = TokenBackground(5).fit(tokens, part)
    np.testing.assert_allclose(looks.direction.numpy(), oracle.coef_[0], rtol=1e-4)
    middle = oracle.coef_[0] @ oracle.means_.mean(0)  # how large the part is says nothing of a token
    assert looks.offset.item() == pytest.approx(-middle, rel=1e-4)
    found = looks(tokens).flatten().numpy()
    np.testing.assert_array_equal(found, flat @ oracle.coef_[0] > middle)
    assert (found == truth).mean() > 0.7


def test_without_a_table_everything_is_part() -> None:
    tokens, part = _tokens()
    looks = TokenBackground(5).fit(tokens, part)
    looks.fit(tokens, torch.ones_like(part))
    assert looks(tokens).all()
    assert TokenBackground(5)(tokens).all()


def test_shapes_are_checked() -> None:
    tokens, part = _tokens()
    with pytest.raises(ShapeError, match=r"expected \(b n 4\) and \(b n\)"):
        TokenBackground(4).fit(tokens, part)
    with pytest.raises(ShapeError):
        TokenBackground(5).fit(tokens, part[:, 1:])
