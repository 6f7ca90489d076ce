"""PaDiM against numpy, position by position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from protoad_detectors import PaDiMReconstructor

from protoad.detection import Features

DIMS = {"rgb": 6, "normals": 5}


def _shots(b: int) -> Features:
    tokens = {
        m: (torch.randn(b, 9, d) * (1 + torch.arange(9)[:, None]) + torch.randn(9, d)).double() for m, d in DIMS.items()
    }
    mask = torch.rand(b, 9) > 0.2
    mask[:, 7] = False  # background in every shot
    mask[:, 8] = torch.arange(b) == 0  # part in one
    return Features(tokens, mask)


def _padim(**options: float) -> PaDiMReconstructor:
    return PaDiMReconstructor(DIMS, grid=(3, 3), **options).double()


def _mahalanobis(shots: Features, query: dict[str, torch.Tensor], names: list[str], ridge: float) -> np.ndarray:
    """(b n) by the inverse of every covariance."""
    scale = {m: np.sqrt((shots.tokens[m][shots.mask].numpy() ** 2).mean()) for m in names}
    learnt = np.concatenate([shots.tokens[m].numpy() / scale[m] for m in names], axis=-1)
    asked = np.concatenate([query[m].numpy() / scale[m] for m in names], axis=-1)
    found = np.zeros(asked.shape[:2])
    for n in range(asked.shape[1]):
        seen = learnt[shots.mask[:, n].numpy(), n]
        if len(seen) < 2:
            seen = learnt[shots.mask.numpy()]
        inverse = np.linalg.inv(np.cov(seen, rowvar=False) + ridge * np.eye(seen.shape[1]))
        for b in range(len(asked)):
            residual = asked[b, n] - seen.mean(0)
            found[b, n] = np.sqrt(residual @ inverse @ residual)
    return found


@pytest.mark.parametrize("number", [2, 4, 30])  # fewer shots than channels, and more
@pytest.mark.parametrize("ridge", [0.01, 0.5])
def test_scores_are_mahalanobis_lengths(number: int, ridge: float) -> None:
    shots, query = _shots(number), {m: torch.randn(3, 9, d).double() * 4 for m, d in DIMS.items()}
    padim = _padim(ridge=ridge).fit(shots)
    score = padim.own_score().double().fit(shots.tokens, padim.reconstruct_shots(shots), shots.mask)
    found = score(query, padim(query, torch.ones(3, 9, dtype=torch.bool)))
    for name, names in {"rgb": ["rgb"], "normals": ["normals"], "fused": ["rgb", "normals"]}.items():
        np.testing.assert_allclose(found[name].numpy(), _mahalanobis(shots, query, names, ridge), rtol=1e-6)


def test_shots_are_scored_under_the_others() -> None:
    shots = _shots(5)
    padim = _padim().fit(shots)
    score = padim.own_score().double().fit(shots.tokens, padim.reconstruct_shots(shots), shots.mask)
    scale = shots.tokens["rgb"][shots.mask].square().mean().sqrt()
    for shot in range(5):
        others = torch.arange(5) != shot
        rest = Features({m: t[others] for m, t in shots.tokens.items()}, shots.mask[others])
        expected, kept = _leave_out(rest, shots.tokens["rgb"][shot], float(scale)), shots.mask[shot]
        np.testing.assert_allclose(score.shot_scores["rgb"][shot][kept].numpy(), expected[kept.numpy()], rtol=1e-6)
    assert (score.shot_scores["rgb"][~shots.mask] == 0).all()


def test_a_shot_is_rebuilt_without_its_own_copies() -> None:
    shots, of = _shots(5), torch.arange(5).repeat(3)
    copied = shots.pick(of)._replace(shot=of)
    rebuilt = _padim().reconstruct_shots(copied)["rgb"]
    for part, shot in zip(rebuilt, of, strict=True):
        others = copied.pick((of != shot).nonzero().flatten())
        torch.testing.assert_close(part, _padim().fit(others).get_buffer("mean_rgb"))


def _leave_out(rest: Features, one: torch.Tensor, scale: float) -> np.ndarray:
    """(n) of one shot (n d), at the scale of all shots."""
    found = []
    for n in range(9):
        seen = rest.tokens["rgb"][rest.mask[:, n], n].numpy() / scale
        if len(seen) < 2:
            seen = rest.tokens["rgb"][rest.mask].numpy() / scale
        residual = one[n].numpy() / scale - seen.mean(0)
        covariance = np.cov(seen, rowvar=False) + 0.01 * np.eye(seen.shape[1])
        found.append(np.sqrt(residual @ np.linalg.inv(covariance) @ residual))
    return np.array(found)


def test_means_are_by_position_and_of_everything_where_there_are_too_few() -> None:
    shots = _shots(6)
    means = _padim().fit(shots).get_buffer("mean_rgb")
    tokens, mask = shots.tokens["rgb"], shots.mask
    torch.testing.assert_close(means[2], tokens[mask[:, 2], 2].mean(0))
    for rare in (7, 8):
        torch.testing.assert_close(means[rare], tokens[mask].mean(0))


def test_channels_are_drawn_by_seed() -> None:
    shots = _shots(4)
    padim = _padim(channels=2).fit(shots)
    scores = []
    for seed in (0, 0, 1):
        score = padim.own_score(seed).double()
        scores.append(score.fit(shots.tokens, padim.reconstruct_shots(shots), shots.mask).shot_scores["rgb"])
        assert score.get_buffer("drawn_rgb").shape == (2,)
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_one_shot_is_enough() -> None:
    shots = _shots(1)
    padim = _padim().fit(shots)
    score = padim.own_score().double().fit(shots.tokens, padim.reconstruct_shots(shots), shots.mask)
    assert score.shot_scores["fused"].isfinite().all()
