"""A threshold from good parts, by the command, kept with the detector and used by detect."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from pirn import Inspector, PIRNDetector
from pirn.cli import main
from pirn.conditions import conditions

from protoad.data import list_files, lose_depth, prepare, read_part, write_dataset
from protoad.errors import CheckpointError

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
    assert pirn.calibrations.keys() == {c.name for c in conditions(pirn.config)}
    assert len({calibration.scores for calibration in pirn.calibrations.values()}) == 6
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
    assert len(PIRNDetector.load(out / "cookie").calibrations["rgb+normals"].scores) == 2


def test_a_broken_validation_split_is_not_passed_over(
    root: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(root, tmp_path / "data")
    (data / "cookie" / "validation" / "good" / "xyz" / "000.tiff").unlink()
    assert _calibrate(trained, data, "--false-reject-rate", "0.3") == 2
    assert "000.png: no point cloud of the same name" in capsys.readouterr().err


def test_scores_are_those_of_the_parts_as_they_would_come(root: Path, trained: Path) -> None:
    assert _calibrate(trained, root, "--false-reject-rate", "0.2") == 0
    inspector = Inspector.load(trained)
    shots = inspector.pirn.shots
    by_condition: dict[str, list[float]] = {"rgb+normals": [], "normals": [], "rgb, no depth": []}
    for split in ("train", "validation"):
        for files in list_files(root / "cookie" / split / "good").values():
            if f"{split}/good/{files.rgb.stem}" not in shots:
                rgb, xyz = read_part(files)
                for one in ((rgb, xyz), (None, xyz), (rgb, None)):
                    found = inspector(*one)
                    by_condition[found.condition.name].append(found.score)
    for name, scores in by_condition.items():
        assert inspector.pirn.calibrations[name].scores == pytest.approx(sorted(scores), abs=1e-6)


def test_of_two_kinds_of_holes_the_higher_score_counts(root: Path, trained: Path) -> None:
    assert _calibrate(trained, root, "--false-reject-rate", "0.2") == 0
    pirn = PIRNDetector.load(trained / "cookie")
    validation = pirn.source.open(root, "cookie", "validation")
    calibration = pirn.calibrations["normals, up to 40% of the depth lost"]
    for index in range(len(validation)):
        parts = [prepare(lose_depth(validation[index], 0.4, kind, seed=index), 96) for kind in ("specks", "blobs")]
        scores = pirn.detector(pirn.extractor(parts, ["normals"])).score.tolist()
        assert min(abs(max(scores) - score) for score in calibration.scores) < 1e-5
        assert abs(scores[0] - scores[1]) > 1e-3


def test_a_cache_has_no_holes_to_calibrate_with(root: Path, trained: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    assert main(["prepare", "--root", str(root), "--out", cache, "--size", "96", "--jobs", "1"]) == 0
    assert _calibrate(trained, Path(cache), "--false-reject-rate", "0.2") == 0
    from_cache = PIRNDetector.load(trained / "cookie").calibrations
    assert from_cache.keys() == {"rgb+normals", "normals", "rgb, no depth"}
    assert _calibrate(trained, root, "--false-reject-rate", "0.2") == 0
    from_files = PIRNDetector.load(trained / "cookie").calibrations
    assert {name: from_files[name] for name in from_cache} == from_cache


def test_cross_calibration_asks_detectors_that_have_not_seen_the_shot(
    root: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _calibrate(trained, root, "--false-reject-rate", "0.25", "--method", "cross") == 0
    assert "3 shots, each judged by a detector that has not seen it; at most 0.5 of" in capsys.readouterr().out
    inspector = Inspector.load(trained)
    calibration = inspector.pirn.calibrations["rgb+normals"]
    assert calibration.method == "cross"
    assert len(inspector.members) == 3
    for left_out, (member, score) in enumerate(zip(inspector.members, calibration.scores, strict=True)):
        assert member.shots == [name for name in inspector.pirn.shots if name != inspector.pirn.shots[left_out]]
        files = list_files(root / "cookie" / "train" / "good")[Path(inspector.pirn.shots[left_out]).name]
        assert Inspector(member)(*read_part(files)).score == pytest.approx(score, abs=1e-6)
    test = list_files(root / "cookie" / "test" / "good")["000"]
    verdict = inspector(*read_part(test)).verdict
    others = [Inspector(member)(*read_part(test)).score for member in inspector.members]
    assert verdict == calibration(others)
    shutil.rmtree(trained / "cookie" / "cross" / "001")
    with pytest.raises(CheckpointError, match=r"cross: not the detectors .* was calibrated with; calibrate it again"):
        Inspector.load(trained)
    assert _calibrate(trained, root, "--false-reject-rate", "0.25") == 0
    assert not (trained / "cookie" / "cross").exists()
    assert Inspector.load(trained).members == []
