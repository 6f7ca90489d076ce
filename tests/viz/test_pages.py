"""The page on pictures and the example run as they stand."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "pictures.md").read_text(encoding="utf-8")

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


def test_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for block in blocks:
        exec(compile(block, "pictures.md", "exec"), names)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == set(re.findall(r'"([a-z]+\.png)"', PAGE))
    assert len(written) == len(blocks) - 1  # the first block only makes the tensors


def test_pictures_of_the_page_are_there_and_small() -> None:
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE)
    assert len(shown) == 7
    for target in shown:
        assert (ROOT / "docs" / target).stat().st_size < 150_000, target


def test_example_draws_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "pictures.py"), run_name="__main__")
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    kinds = ("scores", "usage", "projection-pca", "projection-tsne", "displacement", "overlay", "graph", "grid")
    assert names == {f"{kind}.png" for kind in kinds}
