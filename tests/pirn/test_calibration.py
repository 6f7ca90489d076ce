"""A threshold from good parts, by the command, kept with the detector and used by detect."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from pirn import PIRNDetector
from pirn.cli import main

from protoad.data import write_dataset

FAST = ["--image-size", "96", "--epochs", "2", "--num-prototypes", "4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, parts=("cookie",), train=5, validation=2, test_good=1, test_per_defect=1, seed=0, size=96)
    return root


@pytest.fixture
def trained(root: Path, tmp_path: Path) -> Path:
    out = tmp_path / "trained"
    assert main(["train", "--root", str(root), "--category", "cookie", "--shots", "3", *FAST, "--out", str(out)]) == 0
    return out


def _calibrate(trained: Path, root: Path, *more: str) -> int:
    return main(["calibrate", "--checkpoint", str(trained), "--root", str(root), *more])


def test_calibrated_on_the_good_parts_that_were_no_shots(root: Path, trained: Path, tmp_path: Path) -> None:
    assert _calibrate(trained, root, "--false-reject-rate", "0.2") == 0
    pirn = PIRNDetector.load(trained / "cookie")
    assert pirn.calibrations.keys() == {"rgb+normals", "rgb", "normals"}
    assert len({calibration.scores for calibration in pirn.calibrations.values()}) == 3
    for calibration in pirn.calibrations.values():
        assert len(calibration.scores) == 5 - 3 + 2
        assert calibration.threshold == max(calibration.scores)
    out = tmp_path / "out"
    assert main(["detect", "--checkpoint", str(trained), "--root", str(root), "--out", str(out)]) == 0
    rows = list(csv.DictReader((out / "scores.csv").read_text().splitlines()))
    threshold = pirn.calibrations["rgb+normals"].threshold
    assert {row["reject"] for row in rows} == {"True", "False"}
    for row in rows:
        assert (row["reject"] == "True") == (float(row["score"]) > threshold) == (float(row["p_value"]) <= 0.2)


def test_too_few_parts_change_nothing(root: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "cookie" / "checkpoint.safetensors").read_bytes()
    assert _calibrate(trained, root) == 2
    assert (
        "4 held-out good parts can promise no false reject rate below 20.0%; 5.0% needs 19" in capsys.readouterr().err
    )
    assert (trained / "cookie" / "checkpoint.safetensors").read_bytes() == before
    assert _calibrate(trained, root, "--force") == 0
    assert "rejected above inf" in capsys.readouterr().out


def test_no_part_is_left(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every, out = tmp_path / "data", tmp_path / "out"
    write_dataset(every, parts=("cookie",), train=3, validation=0, test_good=1, test_per_defect=1, seed=0, size=96)
    assert main(["train", "--root", str(every), "--category", "cookie", *FAST, "--out", str(out)]) == 0
    assert _calibrate(out, every) == 2
    assert "holds no good part of cookie beyond the shots" in capsys.readouterr().err


def test_a_data_set_without_a_validation_split(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write_dataset(data, parts=("cookie",), train=5, validation=0, test_good=1, test_per_defect=1, seed=0, size=96)
    adam = ["--dataset", "3d-adam", "--root", str(data)]
    assert main(["train", *adam, "--category", "cookie", "--shots", "3", *FAST, "--out", str(out)]) == 0
    assert _calibrate(out, data, "--false-reject-rate", "0.4") == 0
    assert len(PIRNDetector.load(out / "cookie").calibrations["rgb"].scores) == 2


def test_a_broken_validation_split_is_not_passed_over(
    root: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(root, tmp_path / "data")
    (data / "cookie" / "validation" / "good" / "xyz" / "000.tiff").unlink()
    assert _calibrate(trained, data, "--false-reject-rate", "0.3") == 2
    assert "000.png: no point cloud of the same name" in capsys.readouterr().err
