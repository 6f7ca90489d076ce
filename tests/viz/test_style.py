"""What all figures share: one look, nothing of matplotlib's state touched, the same bytes again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protoad.errors import DataError, MissingExtraError
from protoad.viz import (
    displacement,
    graph_edges,
    prototype_usage,
    score_distributions,
    token_projection,
    transport_overlay,
    write_figure,
)
from protoad.viz.style import ANOMALOUS, INK, NORMAL

matplotlib = pytest.importorskip("matplotlib")
SOURCE = Path(__file__).resolve().parents[2] / "src"

_RNG = np.random.default_rng(0)
_TOKENS, _PROTOTYPES = _RNG.normal(size=(16, 6)), _RNG.normal(size=(4, 6))
_PLAN = _RNG.dirichlet(np.ones(4), size=16)
_PICTURE = _RNG.integers(0, 255, (32, 32, 3), dtype=np.uint8)
_FLAGS = np.arange(16) % 4 == 0
FIGURES: dict[str, Callable[[], Any]] = {
    "scores": lambda: score_distributions(_TOKENS[:, 0], _FLAGS, threshold=0.5),
    "usage": lambda: prototype_usage({"transport": _PLAN, "softmax": _PLAN[:, ::-1]}),
    "pca": lambda: token_projection(_TOKENS, {"a": _PROTOTYPES}, plans={"a": _PLAN}),
    "tsne": lambda: token_projection(_TOKENS, {"a": _PROTOTYPES}, method="tsne"),
    "displacement": lambda: displacement(_TOKENS, _PLAN @ _PROTOTYPES, _PROTOTYPES, _FLAGS),
    "overlay": lambda: transport_overlay(_PICTURE, _PLAN, (4, 4), mask=_PICTURE[..., 0] > 200),
    "graph": lambda: graph_edges(_PROTOTYPES, _PROTOTYPES + 1, np.full((8, 8), 1 / 8)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_input_gives_the_same_small_file(name: str, tmp_path: Path) -> None:
    if name == "tsne":
        pytest.importorskip("sklearn")
    for path in (tmp_path / "one.png", tmp_path / "two.png"):
        write_figure(path, FIGURES[name]())
    data = (tmp_path / "one.png").read_bytes()
    assert data == (tmp_path / "two.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < 100_000


@pytest.mark.parametrize("name", sorted(FIGURES.keys() - {"tsne"}))
def test_nothing_is_cut(name: str, tmp_path: Path) -> None:
    """White all around: no title, label or legend runs over the edge."""
    from PIL import Image

    write_figure(tmp_path / "one.png", FIGURES[name]())
    pixels = np.asarray(Image.open(tmp_path / "one.png").convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() > 250


def test_settings_of_matplotlib_neither_matter_nor_change(tmp_path: Path) -> None:
    write_figure(tmp_path / "default.png", FIGURES["usage"]())
    loud = {"font.size": 20, "axes.facecolor": "red", "text.color": "yellow", "lines.linewidth": 9}
    with matplotlib.rc_context(loud):
        before = dict(matplotlib.rcParams)
        figure = FIGURES["usage"]()
        assert dict(matplotlib.rcParams) == before
    write_figure(tmp_path / "loud.png", figure)
    assert (tmp_path / "default.png").read_bytes() == (tmp_path / "loud.png").read_bytes()


def test_settings_survive_an_error() -> None:
    before = dict(matplotlib.rcParams)
    with pytest.raises(ValueError, match="plans"):
        prototype_usage({})
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_imported(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from protoad.viz import prototype_usage, write_figure; "
        "assert 'matplotlib' not in sys.modules; "
        "write_figure(sys.argv[1], prototype_usage({'a': np.ones((4, 2))})); "
        "assert 'matplotlib.figure' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "one.png")], cwd=SOURCE, check=True)


@pytest.mark.parametrize("name", sorted(FIGURES.keys() - {"tsne"}))
def test_without_matplotlib_it_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [_Absent("matplotlib"), *sys.meta_path])
    with pytest.raises(MissingExtraError, match=r"matplotlib.* not installed; run: pip install 'protoad\[viz\]'$"):
        FIGURES[name]()


class _Absent:
    """An import system that does not find one package."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_colours_differ_in_lightness() -> None:
    """L* of CIELAB, which is what is left in black and white; white paper is 100."""
    normal, anomalous, ink = (_lightness(colour) for colour in (NORMAL, ANOMALOUS, INK))
    assert normal - anomalous >= 25
    assert anomalous - ink >= 25
    assert 100 - normal >= 25


def test_lightness_is_that_of_known_colours() -> None:
    assert _lightness("#777777") == pytest.approx(50.0, abs=0.1)
    assert _lightness("#FF0000") == pytest.approx(53.24, abs=0.01)


def _lightness(colour: str) -> float:
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    return float(116 * np.cbrt(luminance) - 16 if luminance > 0.008856 else 903.3 * luminance)


def test_tensors_of_any_kind_are_taken(tmp_path: Path) -> None:
    plan = torch.softmax(torch.randn(2, 8, 3), -1)
    for name, kind in {"a": plan, "b": plan.double().requires_grad_(), "c": plan.double().numpy()}.items():
        write_figure(tmp_path / f"{name}.png", prototype_usage({"plan": kind}))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    prototype_usage({"plan": plan.bfloat16()})


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file.*cannot be written"):
        write_figure(tmp_path / "file" / "one.png", FIGURES["usage"]())
