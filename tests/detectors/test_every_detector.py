"""What every detector keeps to, whatever it computes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from pirn import PIRNConfig
from pirn.export import _WITH_BANKS
from protoad_detectors import DETECTORS, NEEDS_BOTH

from protoad.detection import Detector, Features, Reconstructor
from protoad.errors import DataError

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "protoad_detectors"
GRID, SIZE = (6, 6), 48
each = pytest.mark.parametrize("name", DETECTORS)


def _build(name: str, seed: int = 0, modalities: tuple[str, ...] = ("rgb", "normals")) -> Reconstructor:
    reconstructor = DETECTORS[name](dict.fromkeys(modalities, 16), grid=GRID, seed=seed)
    if hasattr(reconstructor, "epochs"):
        reconstructor.epochs = 2
    return reconstructor


def _detector(name: str, seed: int = 0) -> Detector:
    reconstructor = _build(name, seed)
    return Detector(reconstructor, reconstructor.own_score(seed), grid=GRID, image_size=SIZE, sigma=0.0)


def _shots(b: int = 4) -> Features:
    pattern = {m: 3 + torch.randn(1, 36, 16) for m in ("rgb", "normals")}
    mask = torch.rand(b, 36) > 0.3
    mask[:, 0], mask[:, 1:4] = False, True
    return Features({m: p + 0.1 * torch.randn(b, 36, 16) for m, p in pattern.items()}, mask)


@each
def test_what_does_not_count_has_no_influence(name: str) -> None:
    shots = _shots()
    spoilt = {m: t.clone() for m, t in shots.tokens.items()}
    for tokens in spoilt.values():
        tokens[~shots.mask] = torch.where(torch.rand(int((~shots.mask).sum()), 1) > 0.5, 1e3, torch.nan)
    clean, dirty = _detector(name).fit(shots), _detector(name).fit(Features(spoilt, shots.mask))
    query = _shots(2)
    soiled = {m: t.masked_fill(~query.mask.unsqueeze(-1), torch.nan) for m, t in query.tokens.items()}
    expected, found = clean(query), dirty(Features(soiled, query.mask))
    torch.testing.assert_close(found.maps, expected.maps, rtol=1e-4, atol=1e-4)
    assert found.score.isfinite().all()
    assert dirty.heatmap_range() == pytest.approx(clean.heatmap_range(), rel=1e-4)


@each
def test_the_seed_decides_and_nothing_else_is_drawn(name: str) -> None:
    shots, query = _shots(), _shots(2)
    state = torch.get_rng_state()
    first = _detector(name, 5).fit(shots)(query)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(_detector(name, 5).fit(shots)(query).maps["fused"], first.maps["fused"])
    if name not in ("nearest_neighbour", "gaussian", "padim"):  # these draw nothing, or nothing of 16 channels
        assert not torch.equal(_detector(name, 6).fit(shots)(query).maps["fused"], first.maps["fused"])


@each
def test_state_dicts_load_into_fresh_detectors(name: str) -> None:
    shots, query = _shots(), _shots(2)
    fitted, fresh = _detector(name).fit(shots), _detector(name, seed=9)
    state = {key: value.clone() for key, value in fitted.state_dict().items()}
    fresh.load_state_dict(state)
    partial = (
        [query] if name in NEEDS_BOTH else [query, *(Features({m: query.tokens[m]}, query.mask) for m in query.tokens)]
    )
    for features in partial:
        assert torch.equal(fresh(features).maps["fused"], fitted(features).maps["fused"])
    assert fresh.heatmap_range() == fitted.heatmap_range()
    assert len({value.data_ptr() for value in fitted.state_dict().values() if value.numel()}) == len(
        [value for value in fitted.state_dict().values() if value.numel()]
    )  # nothing is kept twice


@each
def test_an_odd_token_is_found_where_it_is(name: str) -> None:
    shots = _shots(6)
    reconstructor = _build(name)
    if hasattr(reconstructor, "epochs"):
        reconstructor.epochs = 30
    detector = Detector(reconstructor, reconstructor.own_score(), grid=GRID, image_size=SIZE, sigma=0.0).fit(shots)
    query = Features({m: t[:2].clone() for m, t in shots.tokens.items()}, shots.mask[:2])
    for tokens in query.tokens.values():
        tokens[1, 2] = 10 * torch.randn(16)
    prediction = detector(query)
    assert prediction.score[1] > prediction.score[0]
    y, x = divmod(int(prediction.maps["fused"][1].argmax()), SIZE)
    assert (y // 8, x // 8) == (0, 2)


@each
def test_one_modality_is_judged_or_refused(name: str) -> None:
    assert _build(name).needs_both == (name in NEEDS_BOTH)
    shots = _shots()
    detector = _detector(name).fit(shots)
    one = Features({"rgb": shots.tokens["rgb"]}, shots.mask)
    guessed = shots._replace(guessed=torch.rand(4, 36) > 0.5)
    assert detector(guessed).score.isfinite().all()
    if name in NEEDS_BOTH:
        with pytest.raises(DataError, match="needs rgb and normals together, got rgb"):
            detector(one)
        return
    assert detector(one).score.isfinite().all()
    reconstructor = _build(name, modalities=("rgb",))
    alone = Detector(reconstructor, reconstructor.own_score(), grid=GRID, image_size=SIZE).fit(one)
    assert alone(one).maps.keys() == {"rgb", "fused"}


class _Asked(torch.nn.Module):
    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, rgb: torch.Tensor, normals: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.detector(Features({"rgb": rgb, "normals": normals}, mask)).score


@pytest.mark.parametrize("name", sorted(DETECTORS.keys() - set(_WITH_BANKS)))
def test_a_detector_without_a_bank_is_exported_for_any_batch(name: str) -> None:
    detector, query = _detector(name).fit(_shots()), _shots(3)
    given = (*query.tokens.values(), query.mask)
    example = tuple(value[:2] for value in given)
    free = ({0: torch.export.Dim.DYNAMIC},) * 3
    with torch.no_grad():
        program = torch.export.export(_Asked(detector.requires_grad_(False).eval()), example, dynamic_shapes=free)
        torch.testing.assert_close(program.module()(*given), detector(query).score, rtol=1e-4, atol=1e-4)


def test_the_command_line_knows_them_all() -> None:
    assert set(get_args(get_type_hints(PIRNConfig)["detector"])) == {"pirn", *DETECTORS}
    assert DETECTORS.keys() >= NEEDS_BOTH


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_detector_fits_on_a_few_screens(file: Path) -> None:
    assert len(file.read_text().splitlines()) < 150
