"""Features are computed once, and never returned for the wrong encoder, image or a damaged file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from protoad.encoders import Encoder, FeatureCache
from protoad.errors import ShapeError


class Counting(Encoder):
    """Tokens are scaled pixels; counts the images it sees."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.name, self.dim, self.stride, self.seen = "counting", 3, 4, 0
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.get_buffer("scale") * images[:, :, ::4, ::4].flatten(2).transpose(1, 2)


@pytest.fixture(params=["memory", "folder"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "features" if request.param == "folder" else None)


def test_each_image_is_encoded_once(cache: FeatureCache) -> None:
    encoder, images = Counting(), torch.rand(19, 3, 8, 8)
    first = cache.encode(encoder, images)
    torch.testing.assert_close(first, encoder(images), atol=0, rtol=0)
    encoder.seen = 0
    assert torch.equal(cache.encode(encoder, images.flip(0)), first.flip(0))
    assert encoder.seen == 0
    cache.encode(encoder, torch.cat([images[:2], torch.rand(1, 3, 8, 8)]))
    assert encoder.seen == 1


def test_repeated_images_in_one_batch_are_encoded_once(cache: FeatureCache) -> None:
    encoder, images = Counting(), torch.rand(2, 3, 8, 8)
    result = cache.encode(encoder, images[[0, 1, 0, 0]])
    assert encoder.seen == 2
    assert torch.equal(result[2], result[0])


def test_another_encoder_gets_its_own_tokens(cache: FeatureCache) -> None:
    images = torch.rand(2, 3, 8, 8)
    one, two = cache.encode(Counting(1.0), images), cache.encode(Counting(2.0), images)
    assert torch.equal(two, 2 * one)


def test_keys_stand_for_the_bytes(cache: FeatureCache) -> None:
    encoder, images = Counting(), torch.rand(2, 3, 8, 8)
    first = cache.encode(encoder, images, keys=["a", "b"])
    assert torch.equal(cache.encode(encoder, torch.zeros_like(images), keys=["b", "a"]), first.flip(0))
    with pytest.raises(ShapeError, match="one per image, 2, got 1"):
        cache.encode(encoder, images, keys=["a"])


def test_results_are_constants_for_autograd(cache: FeatureCache) -> None:
    weight = torch.ones(3, requires_grad=True)
    images = torch.rand(1, 3, 8, 8)
    for _ in range(2):
        tokens = cache.encode(Counting(), images)
        (tokens * weight).sum().backward()
        assert not tokens.is_inference()
        assert not tokens.requires_grad
    assert weight.grad is not None


def test_changing_a_result_does_not_change_the_cache(cache: FeatureCache) -> None:
    encoder, images = Counting(), torch.rand(1, 3, 8, 8)
    first = cache.encode(encoder, images)
    kept = first.clone()
    first.zero_()
    assert torch.equal(cache.encode(encoder, images), kept)


def test_files_serve_another_object_and_damage_is_repaired(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 8, 8)
    expected = FeatureCache(tmp_path).encode(Counting(), images)
    fresh = Counting()
    assert torch.equal(FeatureCache(tmp_path).encode(fresh, images), expected)
    assert fresh.seen == 0
    (file,) = tmp_path.iterdir()
    healthy = file.read_bytes()
    flipped = healthy[:-20] + bytes([healthy[-20] ^ 1]) + healthy[-19:]
    for count, damaged in enumerate([healthy[:50], b"", b"text", flipped], start=1):
        file.write_bytes(damaged)
        assert torch.equal(FeatureCache(tmp_path).encode(fresh, images), expected)
        assert fresh.seen == count
        assert file.read_bytes() == healthy


def test_a_failing_encoder_leaves_no_file(tmp_path: Path) -> None:
    class Failing(Counting):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        FeatureCache(tmp_path).encode(Failing(), torch.rand(1, 3, 8, 8))
    assert not list(tmp_path.iterdir())
