"""The filter bank against scipy, closed forms and its own promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from protoad.encoders import FilterBankEncoder, build_encoder
from protoad.errors import EncoderError, ShapeError


def textured(batch: int, size: int = 64, seed: int = 0) -> Tensor:
    """Smooth random images in [0, 1]."""
    noise = np.random.default_rng(seed).random((batch, 3, size, size))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 1.5, 1.5))
    return torch.from_numpy((smooth - smooth.min()) / np.ptp(smooth)).float()


@pytest.fixture(scope="module")
def fitted() -> FilterBankEncoder:
    return FilterBankEncoder().fit(textured(4))


def test_grid_and_shape(fitted: FilterBankEncoder) -> None:
    assert fitted.grid(224) == (28, 28)
    assert fitted(textured(2)).shape == (2, 64, fitted.dim) == (2, 64, 256)
    assert fitted(textured(1, 64)[..., :40]).shape == (1, 8 * 5, 256)


@pytest.mark.parametrize(("channel", "order"), [(9, (0, 1)), (12, (0, 2)), (15, (1, 0)), (18, (2, 0))])
def test_energies_equal_scipy_derivatives(channel: int, order: tuple[int, int]) -> None:
    """Lightness energies, token by token, from scipy's Gaussian derivatives."""
    encoder = FilterBankEncoder(sigmas=(1.5,), orientations=2, components=None)
    images = textured(1, 64)
    lightness = images[0].double().mean(0).numpy()
    options = {"mode": "mirror", "truncate": 8.0}
    derivative = 1.5 ** sum(order) * ndimage.gaussian_filter(lightness, 1.5, order=order, **options)
    padded = np.pad(np.abs(derivative), 40, mode="reflect")
    offsets = np.arange(-40, 40) + 0.5
    window = np.exp(-0.5 * (offsets / (0.7 * 8)) ** 2)
    window /= window.sum()
    expected = np.empty((8, 8))
    for row in range(8):
        for column in range(8):
            patch = padded[8 * row + 4 : 8 * row + 84, 8 * column + 4 : 8 * column + 84]
            expected[row, column] = np.sqrt(window @ patch @ window + 1e-3)
    # 3 means, 3 wide means, 3 deviations; then per direction (x, y) 3 gradients and 3 curvatures, lightness first
    response = encoder.responses(images)[0, :, channel].view(8, 8).double().numpy()
    np.testing.assert_allclose(response, expected, rtol=2e-3, atol=1e-4)


def test_flat_image_has_no_energy() -> None:
    responses = FilterBankEncoder().responses(torch.full((1, 3, 32, 32), 0.7))
    floor = torch.full_like(responses[..., 6:], 1e-3**0.5)
    torch.testing.assert_close(responses[..., 6:], floor, atol=1e-4, rtol=0)
    torch.testing.assert_close(responses[..., 0], torch.full((1, 16), 0.7), atol=1e-5, rtol=0)


def test_translation_by_one_stride_shifts_interior_tokens(fitted: FilterBankEncoder) -> None:
    images = textured(1, 208)
    shifted = torch.roll(images, (8, 16), dims=(2, 3))
    before = fitted(images).view(26, 26, -1)
    after = fitted(shifted).view(26, 26, -1)
    torch.testing.assert_close(after[13:17, 13:17], before[12:16, 11:15], atol=1e-4, rtol=0)
    assert (after[13:17, 13:17] - before[13:17, 13:17]).abs().max() > 0.05


@pytest.mark.parametrize("components", [None, 12])
def test_shots_are_standardised_before_the_lift(components: int | None) -> None:
    images = textured(4)
    keep = torch.rand(4, 64, generator=torch.Generator().manual_seed(1)) < 0.7
    encoder = FilterBankEncoder(components=components, lift=None).fit(images, keep)
    tokens = encoder(images)[keep]
    torch.testing.assert_close(tokens.mean(0), torch.zeros(encoder.dim), atol=1e-3, rtol=0)
    torch.testing.assert_close(tokens.std(0), torch.ones(encoder.dim), atol=1e-2, rtol=0)
    assert encoder(images).reshape(-1, encoder.dim).mean(0).abs().max() > 1e-2, "masked tokens took part"
    if components:
        torch.testing.assert_close(torch.cov(tokens.T), torch.eye(components), atol=1e-2, rtol=0)


def test_flat_shots_give_finite_moderate_tokens() -> None:
    encoder = FilterBankEncoder(lift=None).fit(torch.full((2, 3, 32, 32), 0.5))
    tokens = encoder(torch.full((1, 3, 32, 32), 0.5) + 1e-5)
    assert tokens.isfinite().all()
    assert tokens.abs().max() < 0.1


def test_lift_approximates_the_gaussian_kernel() -> None:
    images = textured(2, 64)
    plain = FilterBankEncoder(lift=None).fit(images)(images).flatten(0, 1).double()
    lifted = FilterBankEncoder(lift=8192, length_scale=7.0).fit(images)(images).flatten(0, 1).double()
    expected = torch.exp(-torch.cdist(plain, plain).square() / (2 * 7.0**2))
    assert 0.05 < expected.mean() < 0.95
    assert (lifted @ lifted.T - expected).abs().max() < 0.07
    torch.testing.assert_close(lifted.norm(dim=1), torch.ones(len(lifted), dtype=torch.float64), atol=1e-5, rtol=0)


def test_deterministic_and_state_dict_restores_everything(fitted: FilterBankEncoder) -> None:
    images = textured(3, seed=5)
    again = FilterBankEncoder().fit(textured(4))
    assert torch.equal(again(images), fitted(images))
    assert again.fingerprint() == fitted.fingerprint()
    restored = FilterBankEncoder(seed=9)
    restored.load_state_dict(fitted.state_dict())
    assert torch.equal(restored(images), fitted(images))
    assert restored.fingerprint() == fitted.fingerprint()


def test_fingerprint_follows_statistics_seed_and_arguments(fitted: FilterBankEncoder) -> None:
    shots = textured(4)
    others = [
        FilterBankEncoder().fit(textured(4, seed=1)),
        FilterBankEncoder(seed=1).fit(shots),
        FilterBankEncoder(sigmas=(1.0, 2.0, 5.0)).fit(shots),
        FilterBankEncoder(length_scale=1.25).fit(shots),
        FilterBankEncoder(lift=None).fit(shots),
        FilterBankEncoder(),
        FilterBankEncoder(orientations=4, sigmas=(2.0, 4.0, 1.0)),
    ]
    prints = {encoder.fingerprint() for encoder in [fitted, *others]}
    assert len(prints) == 1 + len(others)


def test_frozen(fitted: FilterBankEncoder) -> None:
    assert not list(fitted.parameters())
    assert not fitted.train().training
    assert not fitted(textured(1)).requires_grad


def test_serves_autograd_after_inference_mode() -> None:
    size = 72  # a size of its own: the filters of this size are made inside inference mode
    encoder = FilterBankEncoder()
    with torch.inference_mode():
        encoder.responses(textured(1, size))
    images = textured(1, size).requires_grad_()
    encoder.responses(images).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_autocast_changes_nothing(fitted: FilterBankEncoder) -> None:
    images = textured(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = fitted(images)
    assert torch.equal(mixed, fitted(images))


def test_errors(fitted: FilterBankEncoder) -> None:
    with pytest.raises(EncoderError, match="call fit"):
        FilterBankEncoder()(textured(1))
    with pytest.raises(EncoderError, match="216 or 224"):
        fitted.grid(220)
    with pytest.raises(EncoderError, match="use 8"):
        fitted(torch.rand(1, 3, 5, 8))
    with pytest.raises(ShapeError, match=r"\(1, 4, 32, 32\)"):
        fitted(torch.rand(1, 4, 32, 32))
    with pytest.raises(ShapeError, match="uint8"):
        fitted(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="keep"):
        FilterBankEncoder().fit(textured(2), torch.ones(2, 63, dtype=torch.bool))
    with pytest.raises(EncoderError, match="0 are kept"):
        FilterBankEncoder().fit(textured(2), torch.zeros(2, 64, dtype=torch.bool))
    for arguments in ({"lift": 7}, {"components": 1000}, {"length_scale": 0.0}, {"sigmas": ()}, {"orientations": 0}):
        with pytest.raises(EncoderError):
            FilterBankEncoder(**arguments)


def test_build_encoder_names_what_exists() -> None:
    assert isinstance(build_encoder("filter_bank", seed=3), FilterBankEncoder)
    with pytest.raises(EncoderError, match=r"'filter_bank', 'timm:MODEL.* and 'fpfh"):
        build_encoder("dinov2")
    with pytest.raises(EncoderError, match="no weights to load"):
        build_encoder("filter_bank", weights="file.pth")
    with pytest.raises(EncoderError, match="216 or 224"):
        build_encoder("filter_bank", image_size=220)
