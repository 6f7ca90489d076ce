"""From prepared parts to predictions, around any reconstructor."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from protoad_detectors import GaussianReconstructor, NearestNeighbourReconstructor

from protoad import DataError
from protoad.data import Prepared, lose_depth, prepare, random_copies, render_part, without_depth
from protoad.detection import Detector, FeatureExtractor, Features, Reconstructor
from protoad.encoders import FilterBankEncoder
from protoad.scoring import ResidualScore, TokenScore

SIZE = 64


def _part(foreground: torch.Tensor | None = None) -> Prepared:
    everything = torch.ones(SIZE, SIZE, dtype=torch.bool)
    return Prepared(
        rgb=torch.rand(3, SIZE, SIZE),
        normals=torch.rand(3, SIZE, SIZE),
        valid=everything,
        foreground=everything if foreground is None else foreground,
        mask=~everything,
    )


def _extractor(**options: bool) -> FeatureExtractor:
    return FeatureExtractor({m: FilterBankEncoder() for m in ("rgb", "normals")}, image_size=SIZE, **options)


def _shots(b: int = 6, n: int = 64, d: int = 8) -> Features:
    tokens = {m: 1 + 0.1 * torch.randn(b, n, d) for m in ("rgb", "normals")}
    return Features(tokens, torch.ones(b, n, dtype=torch.bool))


def _detector(score: str = "whitened", **options: float) -> Detector:
    reconstructor = GaussianReconstructor({"rgb": 8, "normals": 8})
    return Detector(reconstructor, ResidualScore(score, num_patterns=4), grid=(8, 8), image_size=SIZE, **options)


def test_a_token_counts_if_any_of_its_pixels_is_foreground() -> None:
    foreground = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    foreground[15, 16] = True  # last row of token row 1, first column of token column 2
    extractor = _extractor()
    assert extractor.token_mask([_part(foreground)])[0].nonzero().flatten().tolist() == [1 * 8 + 2]
    assert extractor.token_mask([_part(torch.zeros_like(foreground))]).all()  # nothing found: judge everything
    assert _extractor(foreground=False).token_mask([_part(foreground)]).all()


def test_features_have_one_token_per_grid_cell() -> None:
    parts = [_part(), _part(), _part()]
    features = _extractor().fit(parts)(parts)
    assert features.mask.shape == (3, 64)
    assert {m: t.shape for m, t in features.tokens.items()} == {m: (3, 64, 256) for m in ("rgb", "normals")}
    assert torch.equal(features.pick(torch.tensor([2])).tokens["rgb"][0], features.tokens["rgb"][2])


def test_encoders_of_different_grids_are_refused() -> None:
    with pytest.raises(DataError, match="one token grid"):
        FeatureExtractor({"rgb": FilterBankEncoder(stride=8), "normals": FilterBankEncoder(stride=16)}, image_size=SIZE)


@pytest.mark.parametrize("score", ["cosine", "conditional", "whitened"])
def test_an_odd_token_is_found_where_it_is(score: str) -> None:
    shots = _shots()
    detector = _detector(score).fit(shots)
    test = _shots(2)
    test.tokens["rgb"][1, 3 * 8 + 5] *= torch.tensor([1, -1] * 4)
    prediction = detector(test)
    assert prediction.score[1] > prediction.score[0] + 1e-3
    y, x = divmod(int(prediction.maps["fused"][1].argmax()), SIZE)
    assert abs(y - 27.5) <= 3
    assert abs(x - 43.5) <= 3
    assert prediction.maps["rgb"][1].max() > prediction.maps["normals"][1].max()


def test_tokens_that_do_not_count_score_lowest() -> None:
    shots = _shots()
    detector = _detector(sigma=0.0).fit(shots)
    odd = _shots(1)
    odd.tokens["rgb"][0, 0] = -1
    mask = torch.ones(1, 64, dtype=torch.bool)
    mask[0, 0] = False
    masked = detector(Features(odd.tokens, mask))
    assert detector(odd).score > masked.score
    assert masked.maps["fused"][0, 0, 0] == pytest.approx(float(detector.floor[2]))


def test_good_parts_stay_in_the_lower_half_of_the_heatmap() -> None:
    detector = _detector().fit(_shots())
    low, high = detector.heatmap_range()
    fresh = detector(_shots(20)).maps["fused"]
    assert low < (low + high) / 2 < high
    assert (fresh < (low + high) / 2).float().mean() > 0.95


def test_state_dict_carries_everything() -> None:
    shots = _shots()
    fitted, fresh = _detector().fit(shots), _detector()
    fresh.load_state_dict(fitted.state_dict())
    torch.testing.assert_close(fresh(shots).maps["fused"], fitted(shots).maps["fused"], rtol=0, atol=0)
    assert fresh.heatmap_range() == fitted.heatmap_range()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_bank_gives_the_nearest_token_and_leaves_each_shot_out(metric: str) -> None:
    shots = Features({"rgb": torch.randn(3, 10, 4)}, torch.rand(3, 10) > 0.3)
    bank = NearestNeighbourReconstructor(metric).fit(shots)
    query = torch.randn(2, 5, 4)
    found = bank({"rgb": query}, torch.ones(2, 5, dtype=torch.bool))["rgb"]
    kept = shots.tokens["rgb"][shots.mask]
    for b in range(2):
        for n in range(5):
            if metric == "l2":
                distance = (kept - query[b, n]).norm(dim=-1)
            else:
                distance = 1 - torch.cosine_similarity(kept, query[b, n].expand_as(kept), dim=-1)
            torch.testing.assert_close(found[b, n], kept[distance.argmin()])
    own = bank.reconstruct_shots(shots)["rgb"]
    for b in range(3):
        others = {tuple(t.tolist()) for o in range(3) if o != b for t in shots.tokens["rgb"][o][shots.mask[o]]}
        assert {tuple(t.tolist()) for t in own[b]} <= others


def test_copies_of_a_shot_are_left_out_with_it_by_every_score_of_a_detector() -> None:
    """Also by those for parts that lack a modality: an exact copy would leave nothing over."""
    shots, of = _shots(), torch.arange(len(_shots().mask)).repeat(2)
    detector = Detector(NearestNeighbourReconstructor(), ResidualScore("cosine"), grid=(8, 8), image_size=64)
    detector.fit(shots.pick(of)._replace(shot=of))
    for score in (detector.score, *detector.alone.values()):
        assert score.shot_scores["fused"].min() > 1e-5  # of exact copies 1e-7


def test_the_gaussian_rebuilds_the_mean_of_what_counts() -> None:
    shots = Features({"rgb": torch.randn(3, 10, 4)}, torch.rand(3, 10) > 0.3)
    rebuilt = GaussianReconstructor({"rgb": 4}).fit(shots)(shots.tokens, shots.mask)["rgb"]
    torch.testing.assert_close(rebuilt, shots.tokens["rgb"][shots.mask].mean(0).expand(3, 10, 4))


@pytest.mark.parametrize("modality", ["rgb", "normals"])
def test_a_part_without_one_modality_is_judged_by_the_other(modality: str) -> None:
    shots, query = _shots(), _shots(4)
    query.tokens[modality][1, 20:24, 0] += 2
    both = _detector().fit(shots)
    alone = _detector().fit(Features({modality: shots.tokens[modality]}, shots.mask))
    part = Features({modality: query.tokens[modality]}, query.mask)
    found, expected = both(part), alone(part)
    assert found.score.argmax() == 1
    assert found.maps.keys() == {modality, "fused"}
    # the detector of one modality, its typical and its worst good spot moved to where they lie with both
    (low, high), (own_low, own_high) = both.heatmap_range(), alone.heatmap_range()
    moved = low + (expected.maps["fused"] - own_low) * ((high - low) / (own_high - own_low))
    torch.testing.assert_close(found.maps["fused"], moved, rtol=1e-4, atol=1e-4)


def test_the_score_without_a_modality_is_in_the_state_dict() -> None:
    shots = _shots()
    fitted = _detector().fit(shots)
    loaded = _detector()
    loaded.load_state_dict(fitted.state_dict())
    part = Features({"normals": shots.tokens["normals"]}, shots.mask)
    torch.testing.assert_close(loaded(part).maps["fused"], fitted(part).maps["fused"], rtol=0, atol=0)


def test_features_of_some_modalities() -> None:
    parts = [_part(), _part()]
    extractor = _extractor().fit(parts)
    assert extractor(parts, ["normals"]).tokens.keys() == {"normals"}
    for wrong in ([], ["depth"]):
        with pytest.raises(DataError, match="expected some of rgb, normals, got"):
            extractor(parts, wrong)


def _scene(*, table: float, part: float, noise: float = 0.02) -> Prepared:
    """A bright part in the middle of a dark table, both seen by the depth."""
    middle = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    middle[16:48, 16:48] = True
    rgb = torch.where(middle, part, table) + noise * torch.randn(3, SIZE, SIZE)
    normals = 0.5 + 0.5 * torch.nn.functional.normalize(
        torch.tensor([0.0, 0.0, 1.0])[:, None, None] + noise * torch.randn(3, SIZE, SIZE), dim=0
    )
    everywhere = torch.ones(SIZE, SIZE, dtype=torch.bool)
    return Prepared(rgb.clamp(0, 1), normals, everywhere, middle, ~everywhere)


def _blind(part: Prepared, rows: slice) -> Prepared:
    """Without depth in some rows; there the foreground is not known either."""
    valid, foreground, normals = part.valid.clone(), part.foreground.clone(), part.normals.clone()
    valid[rows], foreground[rows], normals[:, rows] = False, False, 0.5
    return part._replace(valid=valid, foreground=foreground, normals=normals)


def test_tokens_without_depth_are_judged_by_their_looks() -> None:
    torch.manual_seed(0)
    shots = [_scene(table=0.2, part=0.7) for _ in range(4)]
    extractor = _extractor(fill_holes=True).fit(shots)
    assert extractor.usual_loss == 0
    inside = extractor.token_mask(shots)[0]
    features = extractor([shots[0], _blind(shots[1], slice(0, 32))])
    assert features.lost is not None
    assert features.guessed is not None
    assert features.lost.tolist() == pytest.approx([0.0, 0.5], abs=0.1)
    assert (features.mask[0] == inside).all()
    assert (features.mask[1] ^ inside).sum() <= 4  # the upper half of the part was found by its brightness
    assert not features.guessed[0].any()
    assert features.guessed[1].reshape(8, 8)[:4].all()
    assert not features.guessed[1].reshape(8, 8)[4:].any()
    picked = features.pick(torch.tensor([1]))
    assert picked.guessed is not None
    assert picked.guessed.sum() == 32
    whole = extractor([shots[0]])
    assert whole.guessed is None
    for modality, tokens in whole.tokens.items():
        torch.testing.assert_close(features.tokens[modality][:1], tokens)


def test_a_hole_that_is_not_filled_leaves_the_colours_alone() -> None:
    torch.manual_seed(0)
    shots = [_scene(table=0.2, part=0.7) for _ in range(4)]
    broken = _blind(shots[1], slice(0, 32))
    filled, plain = (_extractor(fill_holes=fills).fit(shots)([shots[0], broken]) for fills in (True, False))
    assert plain.guessed is not None
    assert plain.guessed.tolist() == [[False] * 64, [True] * 64]
    assert torch.equal(plain.mask, filled.mask)
    torch.testing.assert_close(plain.tokens["rgb"], filled.tokens["rgb"])
    torch.testing.assert_close(plain.tokens["normals"][0], filled.tokens["normals"][0])
    assert not torch.allclose(plain.tokens["normals"][1], filled.tokens["normals"][1])


def test_as_many_holes_as_the_shots_had_are_nothing_to_mind() -> None:
    torch.manual_seed(0)
    shots = [_blind(_scene(table=0.2, part=0.7), slice(20, 28)) for _ in range(4)]
    extractor = _extractor().fit(shots)
    features = extractor([_blind(_scene(table=0.2, part=0.7), slice(20, 28))])
    assert features.guessed is None
    assert features.lost is not None
    assert features.lost.tolist() == [0.0]


def test_shots_with_holes_are_not_short_of_depth_themselves() -> None:
    samples = [lose_depth(render_part("gland", seed=seed, size=128), 0.3, "blobs", seed=seed) for seed in range(4)]
    shots = [prepare(sample, 128) for sample in samples]
    encoders = {m: FilterBankEncoder() for m in ("rgb", "normals")}
    extractor = FeatureExtractor(encoders, image_size=128).fit(shots)
    assert extractor.usual_loss > 0.05
    features = extractor(shots)
    assert features.lost is not None
    assert features.lost.tolist() == [0.0] * 4
    assert features.guessed is None


def test_copies_do_not_say_what_is_usual() -> None:
    torch.manual_seed(0)
    shots = [_scene(table=0.2, part=0.7) for _ in range(3)]
    turned = [_blind(shot, slice(0, 24)) for shot in shots]
    extractor = _extractor().fit(shots, copies=turned)
    assert extractor.usual_loss == 0
    features = extractor.learnt_from(shots, turned)
    assert features.guessed is None
    assert torch.equal(features.mask, extractor.token_mask([*shots, *turned]))


def test_features_know_whose_copy_a_part_is() -> None:
    torch.manual_seed(0)
    shots = [_scene(table=0.2, part=0.7) for _ in range(3)]
    extractor = _extractor().fit(shots)
    copies = random_copies(shots, 2, seed=0)
    features = extractor.learnt_from(shots, copies)
    assert features.shot is not None
    assert features.shot.tolist() == [0, 1, 2, 0, 0, 1, 1, 2, 2]
    assert features.pick(torch.tensor([1, 8])).shot.tolist() == [1, 2]  # type: ignore[union-attr]
    assert extractor.learnt_from(shots).shot is None
    with pytest.raises(DataError, match="copies: expected as many of each of 3 parts, got 5"):
        extractor.learnt_from(shots, copies[:5])


def test_a_part_without_any_depth_is_found_by_its_looks() -> None:
    torch.manual_seed(0)
    shots = [_scene(table=0.2, part=0.7) for _ in range(4)]
    extractor = _extractor().fit(shots)
    features = extractor([without_depth(shots[0])], ["rgb"])
    assert (features.mask[0] ^ extractor.token_mask(shots)[0]).sum() <= 4
    assert features.lost is not None
    assert features.lost.tolist() == [1.0]
    assert _extractor(foreground=False).fit(shots)([without_depth(shots[0])], ["rgb"]).mask.all()


def test_guessed_normals_are_neither_held_against_a_part_nor_for_it() -> None:
    torch.manual_seed(0)
    shots, test = _shots(), _shots(1)
    detector = _detector().fit(shots)
    test.tokens["normals"][0, 20] *= torch.tensor([1, -1] * 4)  # a hole badly filled
    guessed = torch.zeros(1, 64, dtype=torch.bool)
    assert detector(test._replace(guessed=guessed)).score == detector(test).score > 5
    guessed[0, 20] = True
    healed = detector(test._replace(guessed=guessed))
    assert healed.score < 4
    assert healed.maps["normals"].max() < 4
    torch.testing.assert_close(healed.maps["rgb"], detector(test).maps["rgb"])
    test.tokens["rgb"][0, 20] *= torch.tensor([1, -1] * 4)  # a stain there is seen by its colour
    assert detector(test._replace(guessed=guessed)).score > 5


class _Sum(Reconstructor):
    """Says nothing of one modality without the other."""

    needs_both = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def fit(self, shots: Features) -> Reconstructor:
        self.mean.copy_(sum(t[shots.mask].mean(0) for t in shots.tokens.values()))
        return self

    def forward(self, tokens: dict, token_mask: torch.Tensor) -> dict:
        total = tokens["rgb"] + tokens["normals"]
        return {m: t + self.mean - total for m, t in tokens.items()}

    def own_score(self, seed: int = 0) -> TokenScore:
        return _Knowing(self)


class _Knowing(TokenScore):
    def __init__(self, reconstructor: Reconstructor) -> None:
        super().__init__()
        self.reconstructor = (reconstructor,)

    def forward(self, targets: dict, reconstructions: dict) -> dict:
        scores = {m: (t - self.reconstructor[0].mean).norm(dim=-1) for m, t in targets.items()}
        return {**scores, "fused": sum(scores.values())}


def test_a_reconstructor_that_needs_both_is_never_asked_for_one() -> None:
    shots = _shots()
    reconstructor = _Sum()
    detector = Detector(reconstructor, ResidualScore("whitened", num_patterns=4), grid=(8, 8), image_size=SIZE).fit(
        shots
    )
    guessed = torch.rand(6, 64) > 0.5
    assert torch.equal(detector(shots._replace(guessed=guessed)).score, detector(shots).score)
    with pytest.raises(DataError, match="needs rgb and normals together, got normals"):
        detector(Features({"normals": shots.tokens["normals"]}, shots.mask))


def test_copies_of_a_score_that_knows_its_reconstructor_know_the_same() -> None:
    shots, reconstructor = _shots(), _Sum()
    detector = Detector(reconstructor, reconstructor.own_score(), grid=(8, 8), image_size=SIZE).fit(shots)
    assert [key for key in detector.state_dict() if "mean" in key] == ["reconstructor.mean"]
    assert all(score.reconstructor[0] is reconstructor for score in (detector.score, *detector.alone.values()))
    twin = deepcopy(detector)
    assert twin.score.reconstructor[0] is twin.alone["rgb"].reconstructor[0] is twin.reconstructor is not reconstructor
