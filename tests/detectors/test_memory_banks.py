"""PatchCore and M3DM against loops, and against scikit-learn's one-class SVM."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from protoad_detectors import BTFReconstructor, M3DMReconstructor, NearestNeighbourReconstructor, PatchCoreReconstructor
from protoad_detectors.m3dm import contrastive_loss, one_class_weights

from protoad.detection import Features


def _shots(b: int = 4, n: int = 40, d: int = 6) -> Features:
    return Features({m: torch.randn(b, n, d) for m in ("rgb", "normals")}, torch.rand(b, n) > 0.3)


def test_the_bank_is_a_tenth_of_the_tokens_that_count() -> None:
    shots = _shots()
    bank = PatchCoreReconstructor().fit(shots).get_buffer("bank_rgb")
    kept = shots.tokens["rgb"][shots.mask]
    assert len(bank) == round(0.1 * len(kept))
    assert {tuple(t) for t in bank.tolist()} <= {tuple(t) for t in kept.tolist()}
    radius = torch.cdist(kept, bank).amin(1).max()
    random = torch.stack(
        [torch.cdist(kept, kept[torch.randperm(len(kept))[: len(bank)]]).amin(1).max() for _ in "1234"]
    )
    assert radius < random.min()


def test_a_whole_bank_is_the_nearest_neighbour() -> None:
    shots, query = _shots(), {"rgb": torch.randn(2, 9, 6)}
    mask = torch.ones(2, 9, dtype=torch.bool)
    whole = PatchCoreReconstructor(fraction=1.0).fit(shots)
    plain = NearestNeighbourReconstructor("l2").fit(shots)
    assert torch.equal(whole(query, mask)["rgb"], plain(query, mask)["rgb"])


def test_shots_are_rebuilt_from_other_shots() -> None:
    shots = _shots(b=7)
    rebuilt = PatchCoreReconstructor().reconstruct_shots(shots)["rgb"]
    for fold in range(5):
        others = [i for i in range(7) if i % 5 != fold]
        allowed = {tuple(t) for i in others for t in shots.tokens["rgb"][i][shots.mask[i]].tolist()}
        for shot in set(range(7)) - set(others):
            assert {tuple(t) for t in rebuilt[shot].tolist()} <= allowed


@pytest.mark.parametrize("kind", [NearestNeighbourReconstructor, PatchCoreReconstructor, M3DMReconstructor])
def test_a_shot_is_not_rebuilt_from_its_own_copies(kind: type[NearestNeighbourReconstructor]) -> None:
    alone, of = _shots(b=7), torch.cat([torch.arange(7), torch.arange(7).repeat_interleave(2)])
    reconstructor = kind({"rgb": 6, "normals": 6}) if kind is M3DMReconstructor else kind()  # type: ignore[arg-type]
    rebuilt = reconstructor.reconstruct_shots(alone.pick(of)._replace(shot=of))
    for modality, tokens in alone.tokens.items():
        own = [{tuple(t) for t in part.tolist()} for part in tokens]
        for part, shot in zip(rebuilt[modality], of.tolist(), strict=True):
            assert own[shot].isdisjoint(tuple(t) for t in part.tolist())


def test_wide_tokens_are_projected_to_the_width_of_johnson_and_lindenstrauss() -> None:
    bank = PatchCoreReconstructor(eps=0.9)
    tokens = torch.randn(50, 400)
    projected = bank._project(tokens)
    assert projected.shape == (50, math.ceil(4 * math.log(50) / (0.9**2 / 2 - 0.9**3 / 3)))
    ratio = torch.pdist(projected) / torch.pdist(tokens)
    assert ratio.mean() == pytest.approx(1, abs=0.1)
    assert torch.equal(bank._project(tokens[:, :20]), tokens[:, :20])


def test_patchcore_scores_the_distance_from_the_bank() -> None:
    shots = _shots()
    reconstructor = PatchCoreReconstructor().fit(shots)
    query = {"rgb": torch.randn(1, 9, 6), "normals": torch.randn(1, 9, 6)}
    rebuilt = reconstructor(query, torch.ones(1, 9, dtype=torch.bool))
    scores = reconstructor.own_score()(query, rebuilt)
    for m, tokens in query.items():
        torch.testing.assert_close(scores[m], torch.cdist(tokens, reconstructor.get_buffer(f"bank_{m}")).amin(-1))
    torch.testing.assert_close(scores["fused"], scores["rgb"] + scores["normals"])


def test_btf_matches_colour_and_shape_together() -> None:
    shots, mask = _shots(), torch.ones(1, 9, dtype=torch.bool)
    btf = BTFReconstructor({"rgb": 6, "normals": 6}, fraction=1).fit(shots)
    query = {"rgb": torch.randn(1, 9, 6), "normals": torch.randn(1, 9, 6)}
    bank = torch.cat([t[shots.mask] for t in shots.tokens.values()], dim=-1)
    joined = torch.cat([query["rgb"], query["normals"]], dim=-1)[0]
    distance, nearest = torch.cdist(joined, bank).min(1)
    rebuilt = btf(query, mask)
    torch.testing.assert_close(torch.cat([rebuilt["rgb"], rebuilt["normals"]], dim=-1)[0], bank[nearest])
    scores = btf.own_score()(query, rebuilt)
    torch.testing.assert_close(scores["fused"][0], distance)
    torch.testing.assert_close(scores["rgb"], (query["rgb"] - rebuilt["rgb"]).norm(dim=-1))
    mixed = {"rgb": shots.tokens["rgb"][:1], "normals": shots.tokens["normals"][:1].roll(1, dims=1)}  # each known
    assert (btf.own_score()(mixed, btf(mixed, mask))["fused"] > 0.1).all()


@pytest.mark.parametrize(("n", "nu"), [(80, 0.5), (81, 0.5), (60, 0.1)])
def test_one_class_weights_equal_libsvm(n: int, nu: float) -> None:
    from sklearn.svm import OneClassSVM

    points = (torch.rand(n, 3) + torch.tensor([0.2, 1.0, 0.5])).double()
    exact = OneClassSVM(kernel="linear", nu=nu, tol=1e-9).fit(points.numpy()).coef_[0] / (
        nu * n
    )  # its masses sum to nu n
    np.testing.assert_allclose(one_class_weights(points, nu).numpy(), exact, rtol=2e-3)


def test_one_class_weights_point_where_stochastic_descent_does() -> None:
    from sklearn.linear_model import SGDOneClassSVM

    points = torch.rand(300, 3) + torch.tensor([0.2, 1.0, 0.5])
    sgd = SGDOneClassSVM(nu=0.5, max_iter=1000, tol=None, random_state=42).fit(points.numpy()).coef_
    ours = one_class_weights(points).numpy()
    assert ours @ sgd / np.linalg.norm(ours) / np.linalg.norm(sgd) > 0.99


def test_the_contrastive_loss_equals_a_loop() -> None:
    first, second, mask = torch.randn(7, 4), torch.randn(7, 4), torch.tensor([1, 1, 0, 1, 1, 0, 1]).bool()
    losses, kept = [], mask.nonzero().flatten().tolist()
    for i in kept:
        logits = [float(torch.cosine_similarity(first[i], second[j], dim=0)) / 0.1 for j in kept]
        losses.append(math.log(sum(map(math.exp, logits))) - logits[kept.index(i)])
    assert float(contrastive_loss(first, second, mask)) == pytest.approx(np.mean(losses), rel=1e-5)


def test_fused_tokens_of_one_place_come_to_agree() -> None:
    common = torch.randn(3, 30, 8)
    tokens = {m: common @ torch.randn(8, 8) for m in ("rgb", "normals")}
    shots = Features(tokens, torch.ones(3, 30, dtype=torch.bool))
    m3dm = M3DMReconstructor({"rgb": 8, "normals": 8}, epochs=100).fit(shots)
    first, second = m3dm.fuse(tokens)[0].chunk(2, dim=-1)
    match = torch.cosine_similarity(first[:, None], second[None], dim=-1).argmax(1)
    assert (match == torch.arange(30)).float().mean() > 0.8
    assert m3dm.history[-1]["loss"] < 0.5 * m3dm.history[0]["loss"]


def test_m3dm_weighs_the_distances_of_three_banks() -> None:
    shots = _shots()
    m3dm = M3DMReconstructor({"rgb": 6, "normals": 6}, epochs=1).fit(shots)
    score = m3dm.own_score().fit(shots.tokens, m3dm.reconstruct_shots(shots), shots.mask)
    query = {m: torch.randn(2, 5, 6) for m in shots.tokens}
    found = score(query, m3dm(query, torch.ones(2, 5, dtype=torch.bool)))
    distances = []
    for m, factor, tokens in zip(
        ("rgb", "normals", "fused"), (0.1, 1, 1), (*query.values(), m3dm.fuse(query)), strict=True
    ):
        bank = m3dm.banks.get_buffer(f"bank_{m}")
        distances.append(factor * torch.cdist(tokens, bank).amin(-1) / bank.std())
    torch.testing.assert_close(found["rgb"], distances[0])
    torch.testing.assert_close(found["fused"], sum(d * w for d, w in zip(distances, score.weights, strict=True)))
    assert score.weights.min() > 0
    assert not torch.equal(score.weights, torch.ones(3))
