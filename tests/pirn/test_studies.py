"""The study of large anomalies: the anomalies themselves, the command, going on after a stop, and its tables."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pirn.cli import main
from pirn.studies import STUDIES, charts, large_anomaly
from pirn.studies.large_anomaly import report
from pirn.studies.large_anomaly.spoiling import KINDS, find_texture, spoil
from scipy.ndimage import label

from protoad.data import Sample, prepare, render_part

TINY = large_anomaly.Scope("tiny", ("cookie",), (0.2, 0.6), shots=2, tested=3, size=64)
TRAININGS: dict[str, dict[str, Any]] = {
    "none": {"aggregation": "none", "epochs": 1, "num_prototypes": 4},
    "bias 3": {"epochs": 1, "num_prototypes": 4},
}


@pytest.fixture(scope="module")
def good() -> tuple[Sample, np.ndarray]:
    sample = render_part("cookie", seed=1, size=96)
    return sample, prepare(sample, 96).foreground.numpy()


def _spoiled(good: tuple[Sample, np.ndarray], kind: Any, fraction: float, seed: int = 0) -> Sample:
    sample, part = good
    other = render_part("tile", seed=2, size=96)
    texture = find_texture(other, prepare(other, 96).foreground.numpy())
    assert texture.shape == sample.rgb.shape
    return spoil(sample, part, kind, fraction=fraction, texture=texture, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [0.1, 0.8])
def test_an_anomaly_has_the_size_asked_for_and_nothing_else_changes(good, kind: str, fraction: float) -> None:
    (sample, part), spoiled = good, _spoiled(good, kind, fraction)
    assert spoiled.label == 1
    assert spoiled.defect == kind
    assert not (spoiled.mask & ~part).any()
    assert spoiled.mask.sum() / part.sum() == pytest.approx(fraction, abs=0.005)
    pieces, _ = label(spoiled.mask, structure=np.ones((3, 3)))
    assert np.bincount(pieces[spoiled.mask]).max() > 0.9 * spoiled.mask.sum()
    assert np.array_equal(spoiled.rgb[~spoiled.mask], sample.rgb[~spoiled.mask])
    assert np.array_equal(spoiled.xyz[~spoiled.mask], sample.xyz[~spoiled.mask], equal_nan=True)
    assert (spoiled.rgb[spoiled.mask] != sample.rgb[spoiled.mask]).any(-1).mean() > 0.8
    raised = np.abs(spoiled.xyz - sample.xyz)[..., 2]
    assert (np.nanmax(raised) == 0) == (kind == "colour")
    assert np.nanmax(raised) < 2e-3
    rays = [xyz[..., :2] / xyz[..., 2:] for xyz in (sample.xyz, spoiled.xyz)]
    np.testing.assert_allclose(*rays, atol=1e-6)


def test_a_larger_anomaly_grows_out_of_the_smaller_one(good) -> None:
    small, large, elsewhere = (_spoiled(good, "colour", f, seed) for f, seed in ((0.2, 0), (0.6, 0), (0.2, 1)))
    assert not (small.mask & ~large.mask).any()
    assert not np.array_equal(small.mask, elsewhere.mask)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_anomaly, "QUICK", TINY)
    monkeypatch.setattr(large_anomaly, "_trainings", lambda scope: TRAININGS)


def _rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "tiny.csv").read_text().splitlines()))


def test_the_command_measures_writes_and_goes_on(tiny, tmp_path: Path, capsys, monkeypatch) -> None:
    argv = ["study", "large-anomaly", "--quick", "--seeds", "3", "--out", str(tmp_path)]
    measure, calls = large_anomaly._measure, []

    def stopped(scenes: Any, name: str, scope: Any) -> Any:
        calls.append(name)
        if name == "bias 3" and calls.count(name) == 1:
            raise KeyboardInterrupt
        return measure(scenes, name, scope)

    monkeypatch.setattr(large_anomaly, "_measure", stopped)
    assert main(argv) == 130
    assert {row["setting"] for row in _rows(tmp_path)} == {"none"}
    assert main(argv) == 0
    assert calls == ["none", "bias 3", "bias 3"]  # what was there was not measured again
    rows = _rows(tmp_path)
    assert [row["setting"] for row in rows[::2]] == ["none", "bias 3", "bias 3, twin", "bias 3, guard"]
    assert [row["fraction"] for row in rows] == ["0.2", "0.6"] * 4
    assert {(row["part"], float(row["seed"])) for row in rows} == {("cookie", 3)}
    for row in rows:
        for score in large_anomaly.SCORES:
            assert 0 <= float(row[f"{score} pixel AUROC"]) <= 1
            assert 0 <= float(row[f"{score} recall"]) <= 1
    by_setting = {row["setting"]: row for row in rows if row["fraction"] == "0.6"}
    assert float(by_setting["none"]["displacement"]) == 0
    assert by_setting["none"]["u near"] == ""
    assert float(by_setting["bias 3"]["displacement by anomaly"]) > 1e-4
    assert float(by_setting["bias 3, twin"]["displacement by anomaly"]) < 1e-6
    guarded = by_setting["bias 3, guard"]
    assert float(guarded["displacement by anomaly"]) < float(by_setting["bias 3"]["displacement by anomaly"])
    assert float(guarded["u near"]) == pytest.approx(0.95, abs=0.04)  # the sigmoid of 3
    with Image.open(tmp_path / "tiny.png") as figure:
        figure.load()
    text = (tmp_path / "tiny.md").read_text()
    assert "| bias 3, guard |" in text
    assert "| | 20% | 60% |" in text
    assert "2 of 2" not in capsys.readouterr().out  # one was left to do


def test_tables_hold_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    values = {("a", 0): 0.1, ("b", 0): 0.3, ("a", 1): 0.5, ("b", 1): 0.7}  # seeds: 0.2 and 0.6
    rows = [
        {"part": part, "seed": seed, "setting": "bias 3", "fraction": 0.4, "displacement": value}
        for (part, seed), value in values.items()
    ]
    report.write_report(tmp_path / "t", rows)
    assert f"| bias 3 | 0.400 ± {math.sqrt(0.08):.3f} |" in (tmp_path / "t.md").read_text()


def test_input_at_fault_ends_in_one_sentence(tmp_path: Path, capsys, monkeypatch) -> None:
    with pytest.raises(SystemExit):
        main(["study", "small-anomaly", "--out", str(tmp_path)])
    said = capsys.readouterr().err
    assert all(name in said for name in STUDIES)
    argv = ["study", "large-anomaly", "--quick", "--out", str(tmp_path)]
    (tmp_path / "large-anomaly-quick.csv").write_text("a,b\n1,2\n")
    assert main(argv) == 2
    assert "holds no rows of this study" in capsys.readouterr().err
    monkeypatch.setattr(charts, "find_spec", lambda name: None)
    assert main(argv) == 2
    assert "pip install 'protoad[viz]'" in capsys.readouterr().err


def test_differences_are_paired_by_part_and_seed(tmp_path: Path) -> None:
    changes = {("a", 0): 0.1, ("b", 0): 0.2, ("a", 1): 0.6}  # mean 0.3, standard error sqrt(0.07 / 3)
    rows = []
    for base, ((part, seed), change) in enumerate(changes.items()):
        for setting, value in (("bias 3", float(base)), ("bias 3, guard", base + change)):
            common = {"part": part, "seed": seed, "setting": setting, "fraction": 0.4}
            rows.append({**common, **dict.fromkeys(report._DIFFERENCES, value)})
    report.write_report(tmp_path / "t", rows)
    expected = f"| bias 3, guard | cosine recall | +0.300 ± {math.sqrt(0.07 / 3):.3f} |"
    assert expected in (tmp_path / "t.md").read_text()
