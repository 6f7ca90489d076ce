"""Residual scores, heatmaps and image scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from protoad import ShapeError
from protoad.scoring import ResidualScore, TokenScore, anomaly_map, gaussian_blur, image_score


def _pair(b: int = 6, n: int = 49, d: int = 8, noise: float = 0.3) -> tuple[dict, dict]:
    targets = {m: torch.randn(b, n, d) for m in ("rgb", "normals")}
    return targets, {m: t + noise * torch.randn_like(t) for m, t in targets.items()}


def test_cosine_is_the_print() -> None:
    targets, rebuilt = _pair()
    scores = ResidualScore("cosine").fit(targets, rebuilt)(targets, rebuilt)
    expected = {m: 1 - (normalize(t, dim=-1) * normalize(rebuilt[m], dim=-1)).sum(-1) for m, t in targets.items()}
    for modality, value in expected.items():
        torch.testing.assert_close(scores[modality], value)
    torch.testing.assert_close(scores["fused"], expected["rgb"] + expected["normals"])


class _Distance(TokenScore):
    def forward(self, targets: dict, reconstructions: dict) -> dict:
        scores = {m: (t - reconstructions[m]).norm(dim=-1) for m, t in targets.items()}
        return {**scores, "fused": sum(scores.values())}


def test_a_score_of_ones_own_needs_a_forward_only() -> None:
    targets, rebuilt = _pair()
    mask = torch.rand(6, 49) > 0.5
    targets["rgb"][~mask] = torch.nan
    score = _Distance().fit(targets, rebuilt, mask)
    assert score.shot_scores.keys() == {"rgb", "normals", "fused"}
    assert (score.shot_scores["rgb"][~mask] == 0).all()
    torch.testing.assert_close(score.shot_scores["fused"][mask], score(targets, rebuilt)["fused"][mask])
    with pytest.raises(ShapeError, match="the same modalities"):
        _Distance().fit(targets, {"rgb": rebuilt["rgb"]})


def test_conditional_forgives_what_a_pattern_always_does() -> None:
    """Two patterns, one rebuilt badly on every good part: after the fit both score alike."""
    pattern = torch.eye(8)[torch.arange(40) % 2].expand(40, -1, -1)
    targets = {"rgb": pattern + 0.01 * torch.randn(40, 40, 8)}
    blur = torch.tensor([0.05, 0.5]).repeat(20).unsqueeze(-1)
    rebuilt = {"rgb": targets["rgb"] + blur * torch.randn(40, 40, 8)}
    plain = ResidualScore("cosine")(targets, rebuilt)["fused"]
    fitted = ResidualScore("conditional", num_patterns=2).fit(targets, rebuilt)(targets, rebuilt)["fused"]
    assert plain[:, 1::2].mean() > 20 * plain[:, ::2].mean()
    for half in (fitted[:, ::2], fitted[:, 1::2]):
        assert abs(half.mean()) < 0.1
        assert abs(half.std() - 1) < 0.15


def test_whitened_is_the_mahalanobis_distance_with_one_pattern() -> None:
    targets, rebuilt = _pair(b=40)
    score = ResidualScore("whitened", shrinkage=0.1, num_patterns=1).fit(targets, rebuilt)
    residual = torch.cat(
        [normalize(t, dim=-1) - normalize(rebuilt[m], dim=-1) for m, t in targets.items()], -1
    ).double()
    flat = residual.flatten(0, 1)
    moment = flat.T @ flat / len(flat)
    moment = 0.9 * moment + 0.1 * moment.diagonal().mean() * torch.eye(16)
    distance = torch.einsum("bni,ij,bnj->bn", residual, torch.linalg.inv(moment), residual).sqrt()
    found = score(targets, rebuilt)["fused"].double()
    # One pattern: the score is an affine, rising function of the distance.
    assert np.corrcoef(found.flatten(), distance.flatten())[0, 1] == pytest.approx(1, abs=1e-6)


def test_held_out_shots_set_the_level() -> None:
    """Few tokens, many channels: scores of new good parts are centred, where an in-sample fit would put them at several
    deviations."""
    good = {"rgb": torch.randn(8, 20, 64)}
    flat = {"rgb": torch.zeros(8, 20, 64)}
    score = ResidualScore("whitened", num_patterns=1).fit(good, flat)
    fresh = score({"rgb": torch.randn(50, 20, 64)}, {"rgb": torch.zeros(50, 20, 64)})["fused"]
    assert abs(fresh.mean()) < 0.35
    assert 0.7 < fresh.std() < 1.4
    assert abs(score.shot_scores["rgb"].mean() - fresh.mean()) < 0.35  # what the shots score themselves is honest
    assert score(good, flat)["fused"].mean() < fresh.mean() - 1  # where what they were fitted to flatters them


def test_shrinkage_follows_the_data() -> None:
    """With few residuals more of it is the likelier, with many less."""
    axes = torch.logspace(-1.5, 0, 32)

    def whitener(shots: int) -> torch.Tensor:
        residual = {"rgb": torch.randn(shots, 20, 32) * axes}
        score = ResidualScore("whitened", num_patterns=1).fit(residual, {"rgb": torch.zeros_like(residual["rgb"])})
        return score.statistics["rgb"].whitener

    few, many = (torch.linalg.svdvals(whitener(shots)) for shots in (2, 200))
    assert many[0] / many[-1] > 1.5 * few[0] / few[-1]


@pytest.mark.parametrize("kind", ["cosine", "conditional", "whitened"])
def test_masked_tokens_take_no_part_in_the_fit(kind: str) -> None:
    targets, rebuilt = _pair()
    mask = torch.arange(49).expand(6, -1) < 30
    spoiled = {m: torch.where(mask.unsqueeze(-1), r, 100.0) for m, r in rebuilt.items()}
    one = ResidualScore(kind, num_patterns=4).fit(targets, rebuilt, mask)
    other = ResidualScore(kind, num_patterns=4).fit(targets, spoiled, mask)
    torch.testing.assert_close(one(targets, rebuilt)["fused"], other(targets, rebuilt)["fused"])


@pytest.mark.parametrize("kind", ["conditional", "whitened"])
def test_state_dict_brings_the_statistics_back(kind: str) -> None:
    targets, rebuilt = _pair()
    fitted = ResidualScore(kind, num_patterns=4).fit(targets, rebuilt)
    fresh = ResidualScore(kind, num_patterns=4)
    fresh.load_state_dict(fitted.state_dict())
    torch.testing.assert_close(fresh(targets, rebuilt)["fused"], fitted(targets, rebuilt)["fused"], rtol=0, atol=0)


def test_one_modality_is_its_own_fusion() -> None:
    targets, rebuilt = _pair()
    scores = ResidualScore("cosine")({"rgb": targets["rgb"]}, {"rgb": rebuilt["rgb"]})
    assert scores.keys() == {"rgb", "fused"}
    torch.testing.assert_close(scores["fused"], scores["rgb"])


def test_one_shot_is_enough() -> None:
    good = {"rgb": torch.randn(1, 100, 64)}
    score = ResidualScore("whitened", num_patterns=4).fit(good, {"rgb": torch.zeros(1, 100, 64)})
    fresh = score({"rgb": torch.randn(20, 100, 64)}, {"rgb": torch.zeros(20, 100, 64)})["fused"]
    assert fresh.abs().mean() < 2  # fewer residuals than twice the channels: an in-sample spread would be far too small


def test_bad_use_is_named() -> None:
    targets, rebuilt = _pair()
    with pytest.raises(ValueError, match="kind: expected cosine, conditional or whitened, got 'l2'"):
        ResidualScore("l2")
    with pytest.raises(ValueError, match="shrinkage"):
        ResidualScore(shrinkage=0.0)
    with pytest.raises(RuntimeError, match="fitted to nothing, asked for rgb"):
        ResidualScore()(targets, rebuilt)
    with pytest.raises(ShapeError, match="the same modalities"):
        ResidualScore().fit(targets, {"rgb": rebuilt["rgb"]})
    with pytest.raises(ShapeError, match="32 kept tokens or more, got 3"):
        ResidualScore().fit(targets, rebuilt, torch.arange(6 * 49).view(6, 49) < 3)


def test_blur_equals_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    images = torch.rand(2, 3, 40, 50)
    expected = gaussian_filter(images.numpy(), (0, 0, 4, 4), mode="mirror", truncate=4)
    np.testing.assert_allclose(gaussian_blur(images, 4.0).numpy(), expected, atol=1e-6)
    torch.testing.assert_close(gaussian_blur(images, 0.0), images)


def test_map_keeps_place_and_mass() -> None:
    scores = torch.zeros(1, 49)
    scores[0, 2 * 7 + 5] = 1.0  # row 2, column 5 of 7 x 7 tokens of 8 pixels
    heat = anomaly_map(scores, (7, 7), size=56, sigma=2.0)[0]
    y, x = divmod(int(heat.argmax()), 56)
    assert abs(y - (2 * 8 + 3.5)) <= 0.5
    assert abs(x - (5 * 8 + 3.5)) <= 0.5
    assert heat.sum().item() == pytest.approx(64, rel=0.02)
    with pytest.raises(ShapeError, match=r"expected \(b 36\) for grid \(6, 6\)"):
        anomaly_map(scores, (6, 6), size=56)


def test_image_score_is_the_maximum_or_the_mean_of_the_largest() -> None:
    maps = torch.arange(200.0).view(2, 10, 10)
    assert image_score(maps).tolist() == [99, 199]
    assert image_score(maps, top_fraction=0.05).tolist() == [97, 197]  # 95..99
    with pytest.raises(ValueError, match="top_fraction"):
        image_score(maps, top_fraction=2)
