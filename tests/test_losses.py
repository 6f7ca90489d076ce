from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from protoad.errors import ShapeError
from protoad.losses import cosine_loss, soft_mining_loss


def tokens(b: int = 3, n: int = 7, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """(b n 5), normally distributed."""
    return torch.randn(b, n, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def value_and_grad(loss, reconstruction: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
    leaf = reconstruction.clone().requires_grad_()
    value = loss(leaf, *args, **kwargs)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def hooked_soft_mining(reconstruction: Tensor, target: Tensor, y: float) -> Tensor:
    """The same loss in the published manner: image layout, one image at a time, weights applied by a hook."""
    decoded = reconstruction.permute(0, 2, 1)
    encoded = target.detach().permute(0, 2, 1)
    distance = 1 - F.cosine_similarity(encoded, decoded.detach(), dim=1)
    weight = (distance / distance.mean()).pow(y)
    total = torch.stack(
        [1 - F.cosine_similarity(e.reshape(1, -1), g.reshape(1, -1))[0] for e, g in zip(encoded, decoded, strict=True)]
    ).mean()
    decoded.register_hook(lambda grad: grad * weight.unsqueeze(1))
    return total


@pytest.mark.parametrize("y", [0.0, 1.0, 2.5, 3.0])
def test_soft_mining_equals_the_hook(y: float) -> None:
    reconstruction, target = tokens(), tokens(seed=1)
    value, grad = value_and_grad(soft_mining_loss, reconstruction, target, y=y)
    expected, expected_grad = value_and_grad(hooked_soft_mining, reconstruction, target, y)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_weights_change_only_the_gradient_and_get_none() -> None:
    reconstruction, target = tokens(), tokens(seed=1)
    flat, flat_grad = value_and_grad(soft_mining_loss, reconstruction, target, y=0.0)
    mined, mined_grad = value_and_grad(soft_mining_loss, reconstruction, target)
    assert mined == flat
    distance = 1 - F.cosine_similarity(reconstruction, target, dim=-1)
    torch.testing.assert_close(mined_grad, flat_grad * (distance / distance.mean()).unsqueeze(-1) ** 3)


def test_soft_mining_takes_one_cosine_per_image() -> None:
    target = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    reconstruction = torch.tensor([[[3.0, 0.0], [1.0, 0.0]]])
    # vec: (3 0 1 0) . (1 0 0 1) = 3 over sqrt(10) sqrt(2); the mean of token cosines would be 0.5.
    assert soft_mining_loss(reconstruction, target).item() == pytest.approx(1 - 3 / 20**0.5)
    assert cosine_loss(reconstruction, target).item() == pytest.approx(0.5)


def test_mean_distance_is_over_the_whole_batch() -> None:
    reconstruction, target = tokens(2), tokens(2, seed=1)
    _, together = value_and_grad(soft_mining_loss, reconstruction, target)
    _, first = value_and_grad(soft_mining_loss, reconstruction[:1], target[:1])
    distance = 1 - F.cosine_similarity(reconstruction, target, dim=-1)
    ratio = distance[0].mean() / distance.mean()
    torch.testing.assert_close(together[:1], first / 2 * ratio**3)


def test_cosine_loss_value_and_gradient() -> None:
    target = tokens(seed=1)
    value = cosine_loss(tokens(), target)
    torch.testing.assert_close(value, (1 - F.cosine_similarity(tokens(), target, dim=-1)).mean())
    mask = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)) > 0.4
    leaf = tokens().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: cosine_loss(r, target), leaf)
    assert torch.autograd.gradcheck(lambda r: cosine_loss(r, target, token_mask=mask), leaf)


@pytest.mark.parametrize("loss", [soft_mining_loss, cosine_loss])
def test_masked_is_removed(loss) -> None:
    reconstruction, target = tokens(), tokens(seed=1)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[:, [1, 4]] = False
    mask[2] = False  # an image with nothing to rebuild
    reconstruction[~mask] = float("nan")
    target[0, 1] = float("inf")
    value, grad = value_and_grad(loss, reconstruction, target, token_mask=mask)
    keep = [0, 2, 3, 5, 6]
    expected, expected_grad = value_and_grad(loss, reconstruction[:2, keep], target[:2, keep])
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad[:2, keep], expected_grad)
    assert (grad[~mask] == 0).all()


@pytest.mark.parametrize("loss", [soft_mining_loss, cosine_loss])
def test_all_true_mask_is_no_mask(loss) -> None:
    reconstruction, target = tokens(), tokens(seed=1)
    value, grad = value_and_grad(loss, reconstruction, target)
    masked, masked_grad = value_and_grad(loss, reconstruction, target, token_mask=torch.ones(3, 7, dtype=torch.bool))
    assert masked == value
    assert torch.equal(masked_grad, grad)


@pytest.mark.parametrize("loss", [soft_mining_loss, cosine_loss])
@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 0, 3), (0, 4, 3)])
def test_nothing_kept_is_zero_loss_and_gradient(loss, shape: tuple[int, int, int]) -> None:
    mask = torch.zeros(shape[:2], dtype=torch.bool)
    for token_mask in (mask, None) if mask.numel() == 0 else (mask,):
        value, grad = value_and_grad(loss, torch.ones(shape), torch.ones(shape), token_mask=token_mask)
        assert value == 0
        assert (grad == 0).all()


@pytest.mark.parametrize("loss", [soft_mining_loss, cosine_loss])
def test_zero_vectors_count_as_unlike_without_a_gradient(loss) -> None:
    zero, other = torch.zeros(2, 4, 5), tokens(2, 4, dtype=torch.float32)
    for reconstruction, target in ((zero, other), (other, zero), (zero, zero)):
        value, grad = value_and_grad(loss, reconstruction, target)
        assert value == 1
        assert (grad == 0).all()


@pytest.mark.parametrize("loss", [soft_mining_loss, cosine_loss])
def test_perfect_reconstruction(loss) -> None:
    target = tokens(dtype=torch.float32)
    value, grad = value_and_grad(loss, 2 * target, target)
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert grad.abs().max() < 1e-5


@pytest.mark.parametrize("loss", [soft_mining_loss, cosine_loss])
def test_target_gets_no_gradient(loss) -> None:
    target = tokens(seed=1).requires_grad_()
    reconstruction = tokens().requires_grad_()
    loss(reconstruction, target).backward()
    assert target.grad is None
    assert reconstruction.grad is not None


@pytest.mark.parametrize("loss", [soft_mining_loss, cosine_loss])
def test_half_precision_is_computed_in_float32(loss) -> None:
    reconstruction, target = tokens().bfloat16(), tokens(seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, grad = value_and_grad(loss, reconstruction, target)
    expected, expected_grad = value_and_grad(loss, reconstruction.float(), target.float())
    assert value.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    assert value == expected
    torch.testing.assert_close(grad, expected_grad.bfloat16())


@pytest.mark.parametrize("loss", [soft_mining_loss, cosine_loss])
def test_traces_as_one_graph(loss) -> None:
    reconstruction, target = tokens(), tokens(seed=1)
    mask = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)) > 0.3
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    value, grad = value_and_grad(compiled, reconstruction, target, token_mask=mask)
    expected, expected_grad = value_and_grad(loss, reconstruction, target, token_mask=mask)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("loss", [soft_mining_loss, cosine_loss])
def test_bad_shapes(loss) -> None:
    with pytest.raises(ShapeError, match=r"reconstruction.*\(b n d\).*\(7, 5\)"):
        loss(tokens()[0], tokens()[0])
    with pytest.raises(ShapeError, match=r"target.*\(3, 7, 5\).*\(3, 6, 5\)"):
        loss(tokens(), tokens(n=6))
    with pytest.raises(ShapeError, match=r"token_mask.*\(3, 7\).*\(3, 6\)"):
        loss(tokens(), tokens(), token_mask=torch.ones(3, 6, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"token_mask.*bool.*float32"):
        loss(tokens(), tokens(), token_mask=torch.ones(3, 7))


@pytest.mark.parametrize("y", [-1.0, float("nan"), float("inf")])
def test_bad_exponent(y: float) -> None:
    with pytest.raises(ValueError, match="y: expected"):
        soft_mining_loss(tokens(), tokens(), y=y)


@pytest.mark.parametrize("loss", [soft_mining_loss, cosine_loss])
def test_a_diverged_reconstruction_has_no_finite_loss(loss) -> None:
    target = torch.randn(1, 5, 3)
    rebuilt = target.clone()
    rebuilt[0, 2] = torch.nan
    assert not torch.isfinite(loss(rebuilt, target))
