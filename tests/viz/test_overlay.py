from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from protoad.errors import DataError, ShapeError
from protoad.viz import transport_overlay
from protoad.viz.style import REGIONS

LineCollection = pytest.importorskip("matplotlib.collections").LineCollection
to_rgb = pytest.importorskip("matplotlib.colors").to_rgb
RGB = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
OWNER = np.array([[0, 0, 1, 1], [0, 0, 1, 2], [3, 3, 3, 2]])


def _plan(owner: np.ndarray, *, k: int = 5, share: float = 0.6) -> np.ndarray:
    """(n k) with one owner each; -1: a masked token."""
    plan = np.full((owner.size, k), (1 - share) / (k - 1))
    plan[np.arange(owner.size), owner.flatten()] = share
    plan[owner.flatten() < 0] = 0
    return plan


def _layer(figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[1].get_array())


def test_every_patch_has_the_colour_of_the_largest_share() -> None:
    plan = np.random.default_rng(1).dirichlet(np.ones(5), size=12)
    colours = _layer(transport_overlay(RGB, plan, (3, 4))).reshape(12, 4)
    owner = [max(range(5), key=lambda p, row=row: row[p]) for row in plan]
    for prototype in set(owner):
        of_it = colours[[o == prototype for o in owner]]
        assert (of_it == of_it[0]).all()
        assert tuple(of_it[0, :3]) in [to_rgb(colour) for colour in REGIONS]


def test_neighbours_differ_in_colour() -> None:
    layer = _layer(transport_overlay(RGB, _plan(OWNER), (3, 4)))
    for one, other in ((OWNER[1:], OWNER[:-1]), (OWNER.T[1:], OWNER.T[:-1])):
        colours = layer if one.shape == OWNER[1:].shape else layer.transpose(1, 0, 2)
        differ = (colours[1:] != colours[:-1]).any(-1)
        np.testing.assert_array_equal(differ, one != other)


def test_lines_stand_where_the_owner_changes_and_around_the_part() -> None:
    framed = np.pad(OWNER, 1, constant_values=-1)
    expected = set()
    for y in range(framed.shape[0]):
        for x, (left, right) in enumerate(pairwise(framed[y])):
            if left != right:
                expected.add((20 * x, 20 * (y - 1), 20 * x, 20 * y))
    for x in range(framed.shape[1]):
        for y, (above, below) in enumerate(pairwise(framed[:, x])):
            if above != below:
                expected.add((20 * (x - 1), 20 * y, 20 * x, 20 * y))
    figure = transport_overlay(RGB, _plan(OWNER), (3, 4))
    lines = next(c for c in figure.axes[0].collections if isinstance(c, LineCollection))
    assert {tuple(np.asarray(segment).flatten()) for segment in lines.get_segments()} == expected


def test_numbers_stand_on_their_pieces() -> None:
    figure = transport_overlay(RGB, _plan(OWNER), (3, 4))
    found = []
    for text in figure.axes[0].texts:
        x, y = text.get_position()
        assert OWNER[int(y // 20), int(x // 20)] == int(text.get_text())
        found.append(int(text.get_text()))
    assert sorted(found) == [0, 1, 2, 3]


def test_small_pieces_on_a_fine_grid_have_no_number() -> None:
    owner = np.zeros((60, 60), dtype=int)
    owner[30, 30] = 1
    owner[10:12, 10:12] = 2
    texts = transport_overlay(RGB, _plan(owner), (60, 60)).axes[0].texts
    assert sorted(text.get_text() for text in texts) == ["0", "2"]


def test_entropy_says_among_how_many_a_token_is_shared() -> None:
    plan = np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4, [0, 0, 0, 0]])
    figure = transport_overlay(RGB, plan, (2, 2))
    shown = np.ma.asarray(figure.axes[1].images[1].get_array())
    np.testing.assert_allclose(shown.compressed(), [1, 2, 4])
    assert shown.mask.tolist() == [[False, False], [False, True]]
    assert figure.axes[1].get_title("left") == "Shared among 2.3 on average"
    assert _layer(figure)[1, 1, 3] == 0  # a masked token stays grey


def test_picture_is_grey_and_cut_to_the_part() -> None:
    owner = np.full((12, 16), -1)
    owner[4:6, 4:8] = 0
    owner[5, 7] = 1
    figure = transport_overlay(RGB, _plan(owner), (12, 16))
    for axes in figure.axes[:2]:
        assert np.asarray(axes.images[0].get_array()).ndim == 2
        assert axes.get_xlim() == (15, 45)  # four tokens of 5 pixels, and one on each side
        assert axes.get_ylim() == (40, 10)  # as high as wide, around the middle
    whole = transport_overlay(RGB, _plan(OWNER), (3, 4)).axes[0]
    assert (whole.get_xlim(), whole.get_ylim()) == ((0, 80), (60, 0))


def test_truth_is_outlined_on_both_panels() -> None:
    mask = np.zeros((60, 80), dtype=bool)
    mask[10:30, 20:50] = True
    with_it, without = (transport_overlay(RGB, _plan(OWNER), (3, 4), mask=m) for m in (mask, np.zeros_like(mask)))
    for axes, bare in zip(with_it.axes[:2], without.axes[:2], strict=True):
        outline = axes.collections[len(bare.collections)].get_paths()[0].vertices
        np.testing.assert_allclose([*outline.min(0), *outline.max(0)], [20, 10, 50, 30], atol=0.5)
    assert "ground truth" in with_it.axes[0].get_title("left")
    assert "ground truth" not in without.axes[0].get_title("left")


def test_bad_input_is_named() -> None:
    with pytest.raises(ShapeError, match=r"plan: expected \(n k\) with n = 3 x 5"):
        transport_overlay(RGB, _plan(OWNER), (3, 5))
    with pytest.raises(ShapeError, match=r"plan: expected \(n k\)"):
        transport_overlay(RGB, _plan(OWNER)[None], (3, 4))
    with pytest.raises(ShapeError, match=r"mask: expected \(y x\) = \(60, 80\)"):
        transport_overlay(RGB, _plan(OWNER), (3, 4), mask=np.zeros((5, 5), bool))
    with pytest.raises(ShapeError, match=r"rgb: expected \(y x 3\)"):
        transport_overlay(RGB[..., 0], _plan(OWNER), (3, 4))
    with pytest.raises(DataError, match="rgb: expected uint8"):
        transport_overlay(RGB / 255, _plan(OWNER), (3, 4))
    with pytest.raises(DataError, match="plan: expected shares"):
        transport_overlay(RGB, _plan(OWNER) * 0, (3, 4))
