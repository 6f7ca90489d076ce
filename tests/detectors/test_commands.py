"""Rivals on the command line, trained, measured and asked as PIRN is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pirn import Inspector, PIRNConfig, PIRNDetector
from pirn.cli import main
from pirn.conditions import condition_of, conditions
from protoad_detectors import DETECTORS, NEEDS_BOTH

from protoad.data import write_dataset
from protoad.errors import ConfigError, DataError
from protoad.report import read_jsonl

each = pytest.mark.parametrize("name", DETECTORS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, parts=("cookie",), train=4, validation=4, test_good=2, test_per_defect=1, seed=0, size=96)
    return root


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory):
    folders: dict[str, Path] = {}

    def train(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            assert main([*_train(root, name), "--score", "own", "--out", str(folders[name])]) == 0
        return folders[name]

    return train


def _train(root: Path, name: str) -> list[str]:
    data = ["--root", str(root), "--category", "cookie", "--shots", "3"]
    return ["train", "--detector", name, *data, "--image-size", "96"]


@each
def test_train_evaluate_detect(name: str, trained, root: Path, tmp_path: Path) -> None:
    argv = ["evaluate", "--checkpoint", str(trained(name)), "--root", str(root), "--out", str(tmp_path)]
    assert main([*argv, "--json", str(tmp_path / "r.json")]) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert results.keys() == {name, "nearest_neighbour", "gaussian"}
    assert results[name]["pixel_auroc"] > 0.9
    assert (tmp_path / "cookie.html").stat().st_size > 0
    argv = ["detect", "--checkpoint", str(trained(name)), "--root", str(root), "--out", str(tmp_path / "found")]
    assert main(argv) == 0
    scores = read_jsonl(tmp_path / "found" / "scores.jsonl")
    assert len(scores) == len(list((root / "cookie" / "test").glob("*/rgb/*.png")))
    loaded = PIRNDetector.load(trained(name) / "cookie")
    assert loaded.config.detector == name
    assert not loaded.detector.training


@each
def test_the_same_training_is_kept(name: str, trained, root: Path, capsys: pytest.CaptureFixture) -> None:
    folder = trained(name)
    capsys.readouterr()
    assert main([*_train(root, name), "--score", "own", "--out", str(folder)]) == 0
    assert "kept" in capsys.readouterr().out
    other = next(one for one in DETECTORS if one != name)
    assert main([*_train(root, other), "--score", "own", "--out", str(folder)]) == 2
    assert f"detector {name}, not {other}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cfm", "padim"])
def test_calibration_knows_what_a_detector_needs(name: str, trained, root: Path) -> None:
    argv = ["calibrate", "--checkpoint", str(trained(name)), "--root", str(root), "--false-reject-rate", "0.2"]
    assert main(argv) == 0
    calibrated = set(PIRNDetector.load(trained(name) / "cookie").calibrations)
    assert ("rgb, no depth" in calibrated) == (name not in NEEDS_BOTH)
    assert "rgb+normals" in calibrated
    argv[argv.index("--false-reject-rate") :] = ["--method", "cross", "--force"]
    assert main(argv) == 0
    assert len(Inspector.load(trained(name)).members) == 3


def test_a_part_without_depth_is_refused_where_both_are_needed(trained, root: Path, capsys, tmp_path: Path) -> None:
    good = root / "cookie" / "test" / "good"
    argv = ["detect", "--checkpoint", str(trained("cfm")), "--out", str(tmp_path)]
    for given in (["--rgb", str(good / "rgb" / "000.png")], ["--xyz", str(good / "xyz" / "000.tiff")]):
        capsys.readouterr()
        main([*argv, *given])
        said = capsys.readouterr()
        assert "is missing" in said.out + said.err
    config = PIRNConfig(detector="m3dm")
    assert [condition.name for condition in conditions(config)] == ["rgb+normals"]
    with pytest.raises(DataError, match="its image is missing, and detector m3dm needs it"):
        condition_of(config, "part", colour=False, lost=0.0)
    with pytest.raises(DataError, match="30% of its depth is missing"):
        condition_of(config, "part", colour=True, lost=0.3)


def test_what_rivals_cannot_do_is_said(trained, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = ["--checkpoint", str(trained("patchcore"))]
    assert main(["update", *folder, "--root", str(root), "--add", "all"]) == 2
    assert "patchcore does not learn on" in capsys.readouterr().err
    assert main(["export", *folder, "--out", str(tmp_path / "m.pt2")]) == 2
    assert "patchcore keeps a memory bank, which is not exported" in capsys.readouterr().err
    assert main([*_train(root, "cfm"), "--modality", "rgb", "--out", str(tmp_path)]) == 2
    assert "expected both with detector cfm, got 'rgb'" in capsys.readouterr().err
    pirn = PIRNDetector(PIRNConfig(detector="cfm"), category="cookie")
    with pytest.raises(ConfigError, match="cfm trains in one process only"):
        pirn.fit([], [], process_group=object())  # type: ignore[arg-type]


def test_others_are_exported(trained, root: Path) -> None:
    from pirn.experiment import open_test
    from pirn.export import DeployedDetector

    pirn = PIRNDetector.load(trained("cfm") / "cookie")
    parts = list(open_test(pirn.config, root, "cookie").parts)[:3]
    module = DeployedDetector(pirn, "prepared")
    free = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in module.free_axes()[0])
    with torch.no_grad():
        program = torch.export.export(module, module.example(), dynamic_shapes=(free,))
        given = [torch.stack([getattr(part, field) for part in parts]) for field in module.names]
        score = program.module()(*given)[0]
    torch.testing.assert_close(score, pirn.detector(pirn.extractor(parts)).score, rtol=1e-4, atol=1e-4)


def test_own_is_the_cosine_of_pirn() -> None:
    own, cosine = (
        PIRNDetector(PIRNConfig(score=score), category="cookie").detector.score for score in ("own", "cosine")
    )
    assert repr(own) == repr(cosine)
