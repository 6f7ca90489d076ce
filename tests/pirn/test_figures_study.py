"""The study that draws the paper's pictures: what it writes, that it goes on, and that its figures are true."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from pirn.cli import main
from pirn.studies import charts, figures

from protoad.viz import effective_prototypes

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, figures._Scene]:
    """The folder, and what was drawn."""
    out, scenes = tmp_path_factory.mktemp("figures"), []
    look = figures._scene
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_scene", lambda *args, **kwargs: scenes.append(look(*args, **kwargs)) or scenes[-1])
        assert main(["study", "figures", "--quick", "--seeds", "3", "--out", str(out)]) == 0
    return out, scenes[0]


def _row(out: Path) -> dict[str, float]:
    (row,) = csv.DictReader((out / "figures-quick.csv").read_text().splitlines())
    return {name: float(value) for name, value in row.items() if name != "part"}


def test_every_picture_is_written_and_shown(drawn) -> None:
    out, _ = drawn
    page = (out / "figures-quick.md").read_text()
    assert "## cookie, seed 3" in page
    for name in figures._PICTURES:
        path = f"figures-quick/cookie-3-{name}.png"
        assert f"]({path})" in page
        assert (out / path).stat().st_size < 300_000
        assert np.asarray(image.open(out / path).convert("L")).std() > 10
    assert "{" not in page


def test_figures_are_those_of_the_tensors(drawn) -> None:
    out, scene = drawn
    row, good = _row(out), scene.labels == 0
    for name, plan in scene.plans.items():
        assert row[f"{name}, in effect by mass"] == pytest.approx(effective_prototypes(plan[good]), abs=1e-4)
        kept = plan[good][scene.features.mask[good]]
        assert plan[good].sum() == pytest.approx(len(kept), rel=1e-4)
    assert row["transport, least share"] == pytest.approx(1, abs=0.05)
    assert row["softmax, least share"] < 0.95
    last = scene.states["transport"][-1].tokens["rgb"]
    cosine = np.array(
        [
            (z @ r / (z.norm() * r.norm())).item()
            for b in np.flatnonzero(~good)
            for z, r, normal in zip(scene.features.tokens["rgb"][b], last[b], scene.normal[b], strict=True)
            if normal
        ]
    )
    assert row["displacement, normal"] == pytest.approx(np.sqrt(2 - 2 * cosine).mean(), abs=1e-4)
    assert 0 < row["attention, RGB to normals"] < 1
    assert row["attention, alike"] == 0.25


def test_what_is_there_is_not_drawn_again_and_what_is_gone_is(drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    out, scene = drawn
    calls = []
    monkeypatch.setattr(figures, "_scene", lambda *args, **kwargs: calls.append(args) or scene)
    argv = ["study", "figures", "--quick", "--seeds", "3", "--out", str(out)]
    assert main(argv) == 0
    assert not calls
    gone = out / "figures-quick" / "cookie-3-usage.png"
    before = gone.read_bytes()
    gone.unlink()
    row = _row(out)
    assert main(argv) == 0
    assert len(calls) == 1
    assert gone.read_bytes() == before
    assert _row(out) == row


def test_good_parts_come_first_in_a_grid(drawn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, scene = drawn
    rows: list = []
    grid = figures.sample_grid
    monkeypatch.setattr(figures, "sample_grid", lambda shown, **kwargs: rows.extend(shown) or grid(shown, **kwargs))
    figures._methods(tmp_path / "grid.png", scene)
    assert rows[0].label == "good"
    assert not rows[0].mask.any()
    assert [row.mask.any() for row in rows[1:]] == [True] * 3
    assert list(rows[0].others) == ["PIRN", "PIRN, softmax", "nearest neighbour", "Gaussian"]


def test_without_scikit_learn_it_fails_before_the_work(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(charts, "find_spec", lambda name: None if name == "sklearn" else object())
    assert main(["study", "figures", "--quick", "--out", str(tmp_path)]) == 2
    assert "sklearn is needed here but not installed; run: pip install 'protoad[viz]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
