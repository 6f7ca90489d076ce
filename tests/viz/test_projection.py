from __future__ import annotations

import numpy as np
import pytest

from protoad.errors import MissingExtraError, ShapeError
from protoad.viz import projection as module
from protoad.viz import token_projection
from protoad.viz._pca import principal_plane

pytest.importorskip("matplotlib")
RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(50, 6)) * [5, 3, 1, 1, 1, 1] + 7
PROTOTYPES = {"transport": RNG.normal(size=(4, 6)) + 7, "softmax": RNG.normal(size=(3, 6)) + 9}


def test_plane_is_that_of_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    theirs = decomposition.PCA(2).fit(TOKENS)
    plane = principal_plane(TOKENS)
    signs = np.sign((plane.axes * theirs.components_).sum(1))
    np.testing.assert_allclose(plane.project(TOKENS) * signs, theirs.transform(TOKENS), atol=1e-9)
    np.testing.assert_allclose(plane.shares, theirs.explained_variance_ratio_)


def test_plane_has_a_sign_of_its_own() -> None:
    plane = principal_plane(TOKENS)
    assert (plane.axes[[0, 1], np.abs(plane.axes).argmax(1)] > 0).all()
    np.testing.assert_allclose(principal_plane(TOKENS[::-1]).axes, plane.axes, atol=1e-9)


@pytest.mark.parametrize("points", [np.ones((1, 3)), np.arange(4.0)[:, None], np.ones((5, 3))])
def test_plane_of_points_that_span_none(points: np.ndarray) -> None:
    plane = principal_plane(points)
    assert plane.project(points).shape == (len(points), 2)
    assert np.isfinite(plane.shares).all()
    np.testing.assert_allclose(plane.project(points)[:, 1], 0)


def test_tokens_and_prototypes_lie_in_the_plane_of_the_tokens() -> None:
    eigenvalues, vectors = np.linalg.eigh(np.cov(TOKENS.T))
    figure = token_projection(TOKENS, PROTOTYPES)
    for axes, (name, prototypes) in zip(figure.axes, PROTOTYPES.items(), strict=True):
        tokens, drawn = (np.asarray(collection.get_offsets()) for collection in axes.collections[:2])
        centred = [points - TOKENS.mean(0) for points in (TOKENS, prototypes)]
        for found, expected in zip((tokens, drawn), centred, strict=True):
            np.testing.assert_allclose(np.abs(found), np.abs(expected @ vectors[:, :-3:-1]), atol=1e-9)
        assert axes.get_title("left") == name
        assert axes.get_xlabel() == f"component 1 ({eigenvalues[-1] / eigenvalues.sum():.0%} of the variance)"
        for axis, (low, high) in enumerate((axes.get_xlim(), axes.get_ylim())):
            assert low < min(tokens[:, axis].min(), drawn[:, axis].min())
            assert high > max(tokens[:, axis].max(), drawn[:, axis].max())
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert np.ptp(figure.axes[0].get_xlim()) == pytest.approx(np.ptp(figure.axes[0].get_ylim()))


def test_area_is_mass_and_the_unused_are_marked() -> None:
    plan = np.array([[0.5, 0.4, 0.1], [0.3, 0.6, 0.1], [0.0, 0.0, 0.0]])
    centres = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    figure = token_projection([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]], {"a": centres}, plans={"a": plan})
    used, unused = figure.axes[0].collections[1:3]
    assert figure.axes[0].get_title("left") == "a: 2 of 3 prototypes have tokens"
    assert len(used.get_offsets()) == 2
    assert len(unused.get_offsets()) == 1
    first, second = used.get_sizes()
    assert second / first == pytest.approx(1.0 / 0.8)
    assert "prototype with no token" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_neighbourhoods_keep_clusters_apart() -> None:
    pytest.importorskip("sklearn")
    tokens = np.concatenate([RNG.normal(size=(20, 5)), RNG.normal(size=(20, 5)) + 30])
    figure = token_projection(tokens, {"a": tokens[[0, 20]]}, method="tsne")
    placed, centres = (np.asarray(collection.get_offsets()) for collection in figure.axes[0].collections[:2])
    assert placed.shape == (40, 2)
    distance = np.linalg.norm(placed[:, None] - centres, axis=2)
    assert (distance.argmin(1) == np.repeat([0, 1], 20)).all()


def test_bad_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ShapeError, match=r"prototypes of a: expected 6 along axis 1"):
        token_projection(TOKENS, {"a": np.ones((2, 5))})
    for shape, axis in (((49, 4), 0), ((50, 3), 1)):
        with pytest.raises(ShapeError, match=rf"plan of transport: .* along axis {axis}"):
            token_projection(TOKENS, PROTOTYPES, plans={"transport": np.ones(shape)})
    with pytest.raises(ShapeError, match=r"tokens: expected \(n d\)"):
        token_projection(TOKENS[0], PROTOTYPES)
    for arguments in ({"prototypes": {}}, {"plans": {"b": np.ones((50, 4))}}, {"method": "umap"}):
        with pytest.raises(ValueError, match="expected prototypes, plans of the same assignments, and method"):
            token_projection(**{"tokens": TOKENS, "prototypes": PROTOTYPES} | arguments)
    with pytest.raises(ValueError, match="5 points or more"):
        token_projection(TOKENS[:2], {"a": TOKENS[:1]}, method="tsne")

    def absent(name: str, *, extra: str) -> None:
        raise MissingExtraError(f"{name} is needed; run: pip install 'protoad[{extra}]'")

    monkeypatch.setattr(module, "require", absent)
    with pytest.raises(MissingExtraError, match=r"sklearn.* pip install 'protoad\[viz\]'"):
        token_projection(TOKENS, PROTOTYPES, method="tsne")
