"""Holes in the depth: filled, and made on purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from protoad import ConfigError
from protoad.data import fill_normals, foreground_mask, lose_depth, prepare, prepare_colour, render_part, without_depth
from protoad.data.holes import HoleKind

PART = render_part("cookie", seed=0, size=96)


def _sphere(size: int = 64) -> torch.Tensor:
    """Normals of a bowl as wide as the image: (1 3 y x) in [0, 1]."""
    at = (torch.arange(size) + 0.5) / size * 1.2 - 0.6
    x, y = at[None, :].expand(size, size), at[:, None].expand(size, size)
    return torch.stack([x, y, (1 - x**2 - y**2).sqrt()])[None] * 0.5 + 0.5


def _angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.rad2deg(torch.acos(((2 * a - 1) * (2 * b - 1)).sum(1).clamp(-1, 1)))


def test_known_normals_stay_and_single_pixels_are_guessed_well() -> None:
    truth = _sphere()
    valid = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.4
    filled = fill_normals(torch.where(valid[:, None], truth, 0.5), valid)
    assert torch.equal(filled.movedim(1, -1)[valid], truth.movedim(1, -1)[valid])
    assert _angle(filled, truth)[~valid].mean() < 1.5  # a pixel is 1.1 degrees wide
    assert (2 * filled - 1).norm(dim=1).sub(1).abs().max() < 1e-5


def test_a_large_hole_is_filled_from_around_without_an_edge() -> None:
    truth = _sphere()
    valid = torch.ones(1, 64, 64, dtype=torch.bool)
    valid[:, 24:40, 24:40] = False
    error = _angle(fill_normals(torch.where(valid[:, None], truth, 0.5), valid), truth)[0]
    assert error[24:40, 24:40].max() < 12  # 18 degrees from its centre to its corners
    assert error[24, 24:40].max() < 8


def test_each_map_is_filled_by_its_own() -> None:
    truth, valid = _sphere(), torch.ones(1, 64, 64, dtype=torch.bool)
    valid[:, :32] = False
    both = fill_normals(torch.cat([truth, truth.flip(3)]), torch.cat([valid, ~valid]))
    torch.testing.assert_close(both[:1], fill_normals(truth, valid))
    torch.testing.assert_close(both[1:], fill_normals(truth.flip(3), ~valid))


def test_a_map_of_which_nothing_is_known_stays_grey() -> None:
    nothing = torch.zeros(1, 7, 9, dtype=torch.bool)
    assert (fill_normals(torch.full((1, 3, 7, 9), 0.5), nothing) == 0.5).all()


@pytest.mark.parametrize("kind", ["specks", "blobs"])
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_the_share_asked_for_is_lost(kind: HoleKind, share: float) -> None:
    worse = lose_depth(PART, share, kind, seed=0)
    lost = np.isnan(worse.xyz).all(axis=-1)
    assert (lost[np.isnan(PART.xyz[..., 0])]).all()
    part = foreground_mask(PART.xyz)
    assert share - 0.03 < lost[part].mean() < share + 0.12  # the last disc may cover more than was missing
    np.testing.assert_array_equal(worse.xyz[~lost], PART.xyz[~lost])
    np.testing.assert_array_equal(worse.rgb, PART.rgb)
    again, other = (np.isnan(lose_depth(PART, share, kind, seed=seed).xyz[..., 0]) for seed in (0, 1))
    assert (again == lost).all()
    assert (other != lost).any()


def test_normals_of_the_data_set_are_lost_with_the_points() -> None:
    own = replace(PART, normals=np.full((96, 96, 3), (0, 0, -1), dtype=np.float32))
    worse = lose_depth(own, 0.3, "specks", seed=0)
    assert worse.normals is not None
    seen = ~np.isnan(PART.xyz[..., 0])
    np.testing.assert_array_equal((worse.normals == 0).all(axis=-1)[seen], np.isnan(worse.xyz[..., 0])[seen])


def test_what_cannot_be_lost_is_refused() -> None:
    with pytest.raises(ConfigError, match="share: expected one in"):
        lose_depth(PART, 1.0, "specks", seed=0)
    with pytest.raises(ConfigError, match="kind: expected one of specks, blobs, got 'rays'"):
        lose_depth(PART, 0.1, "rays", seed=0)  # type: ignore[arg-type]


def test_a_picture_alone_is_prepared_as_a_part_that_lost_its_depth() -> None:
    alone, stripped = prepare_colour(PART.rgb, 48), without_depth(prepare(PART, 48))
    for one, other in zip(alone[:5], stripped[:5], strict=True):
        assert torch.equal(one, other)
    assert not alone.valid.any()
    assert alone.foreground.all()
