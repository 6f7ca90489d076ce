"""`pirn prepare`, and training from what it wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pirn.cli import main
from pirn.preparation import parse_distances

from protoad.checkpoint import load_checkpoint
from protoad.data import PreparedSet, read_rgb, write_dataset
from protoad.errors import ConfigError
from protoad.report import read_jsonl
from protoad.viz import foreground_overlay

FAST = ["--image-size", "96", "--epochs", "2", "--num-prototypes", "4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(
        root, parts=("cookie", "tile"), train=4, validation=0, test_good=2, test_per_defect=1, seed=0, size=96
    )
    return root


@pytest.fixture(scope="module")
def cache(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cache")
    assert main(["prepare", "--root", str(root), "--out", str(out), "--size", "96", "--jobs", "1"]) == 0
    return out


def _train(root: Path, out: Path, *extra: str) -> list[str]:
    argv = ["train", "--root", str(root), "--category", "all", "--shots", "3", "--out", str(out), *FAST]
    return [*argv, *extra]


def test_training_from_a_cache_changes_no_bit(root: Path, cache: Path, tmp_path: Path) -> None:
    for name, folder in (("plain", root), ("cached", cache)):
        assert main(_train(folder, tmp_path / name)) == 0
        argv = ["evaluate", "--checkpoint", str(tmp_path / name), "--root", str(folder)]
        assert main([*argv, "--json", str(tmp_path / f"{name}.json")]) == 0
    for part in ("cookie", "tile"):
        found = [load_checkpoint(tmp_path / name / part / "checkpoint.safetensors") for name in ("plain", "cached")]
        assert found[0].header == found[1].header
        assert found[0].tensors.keys() == found[1].tensors.keys()
        assert all(torch.equal(tensor, found[1].tensors[name]) for name, tensor in found[0].tensors.items())
    assert (tmp_path / "plain.json").read_bytes() == (tmp_path / "cached.json").read_bytes()


def test_it_says_what_it_did_and_shows_what_it_removed(root, cache, tmp_path, capsys) -> None:
    copy = Path(shutil.copytree(cache, tmp_path / "cache"))
    (copy / "cookie/train/good/001.npz").unlink()
    assert main(["prepare", "--root", str(root), "--out", str(copy), "--size", "96", "--jobs", "1"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    total = sum(len(PreparedSet(cache, "cookie", split)) for split in ("train", "test"))
    assert lines[0] == (
        f"cookie: 1 parts prepared, {total - 1} there from before, 0 failed; nothing was removed from 0 -> "
        f"{copy / 'cookie'}"
    )
    assert f"{2 * total} of {2 * total} parts, " in captured.err
    assert " per second, 0 min 0 s left" in captured.err
    for part in ("cookie", "tile"):
        assert read_rgb(copy / part / "foreground.png").shape[0] > 8 * 96
        assert (copy / part / "foreground.png").read_bytes() == (cache / part / "foreground.png").read_bytes()


def test_broken_parts_are_named_and_the_rest_is_done(root, tmp_path, capsys) -> None:
    data = Path(shutil.copytree(root, tmp_path / "data"))
    for name in ("000", "002"):
        (data / f"tile/train/good/rgb/{name}.png").write_bytes(b"no image")
    argv = ["prepare", "--root", str(data), "--out", str(tmp_path / "out"), "--size", "96", "--jobs", "1"]
    assert main(argv) == 2
    captured = capsys.readouterr()
    *progress, last = captured.err.splitlines()
    assert any(line.startswith("tile/train/good/000: ") and "000.png" in line for line in progress)
    assert last.startswith("pirn: 2 of ")
    assert "the first of them tile/train/good/000; mend or remove them" in last
    assert "2 failed" in captured.out
    assert (tmp_path / "out/cookie/foreground.png").is_file()
    assert (tmp_path / "out/tile/foreground.png").is_file()
    # whoever learns from the good ones only never meets the broken ones
    argv = ["train", "--root", str(tmp_path / "out"), "--category", "tile", "--out", str(tmp_path / "run"), *FAST]
    assert main(argv) == 2
    assert "could not be prepared" in capsys.readouterr().err
    assert main([*argv, "--shots", "1", "--seed", "2"]) == 0


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--image-size", "64"], "size 96 and plane distance 0.005 m, asked for size 64"),
        (["--plane-distance", "0.003"], "asked for size 96 and plane distance 0.003 m"),
        (["--no-foreground"], "asked for size 96 and no search for the foreground"),
        (["--plane-distance", "0"], "plane_distance: expected a finite value above 0"),
        (["--augment", "-1"], "augment: expected 0 or more, got -1"),
    ],
)
def test_a_cache_of_other_settings_is_refused(cache, tmp_path, capsys, extra, message) -> None:
    assert main(_train(cache, tmp_path / "out", *extra)) == 2
    captured = capsys.readouterr()
    first, *reasons = captured.err.splitlines()
    assert message in first or first == "pirn: 2 of 2 categories failed:"  # of a setting alone, or of each cache
    assert len(reasons) == (0 if message in first else 2)
    assert all(message in reason for reason in reasons)
    assert not (tmp_path / "out").exists()


def test_the_plane_distance_goes_from_flag_to_checkpoint_to_inspection(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    argv = ["prepare", "--root", str(root), "--out", str(out), "--size", "96", "--category", "tile", "--jobs", "1"]
    assert main([*argv, "--plane-distance", "0.02", "tile=0.012"]) == 0
    manifest = json.loads((out / "tile/manifest.json").read_text())
    assert manifest["settings"]["plane_distance"] == 0.012
    train = ["train", "--category", "tile", "--out", str(tmp_path / "run"), *FAST, "--plane-distance", "0.012"]
    assert main([*train, "--root", str(out)]) == 0
    good = root / "tile/test/good"
    detect = ["detect", "--checkpoint", str(tmp_path / "run"), "--folder", str(good), "--out", str(tmp_path / "found")]
    assert main(detect) == 0
    from pirn import PIRNDetector

    pirn = PIRNDetector.load(tmp_path / "run" / "tile")
    scores = read_jsonl(tmp_path / "found/scores.jsonl")
    test = PreparedSet(out, "tile", "test")
    for row in scores:
        part = test[test.names.index(f"test/good/{row['name']}")]
        assert row["score"] == float(pirn.detector(pirn.extractor([part])).score[0])


def test_distances_by_category() -> None:
    categories = ["dowel", "foam", "rope"]
    assert parse_distances(None, categories) == {"dowel": 0.002, "foam": 0.005, "rope": 0.005}
    assert parse_distances(["foam=0.001"], categories) == {"dowel": 0.002, "foam": 0.001, "rope": 0.005}
    assert parse_distances(["rope=0.01", "0.004"], categories) == {"dowel": 0.004, "foam": 0.004, "rope": 0.01}
    for wrong in ("x", "rope=", "rope=-1", "nan", "0", "tyre=0.1", "=1"):
        with pytest.raises(ConfigError, match=f"--plane-distance {wrong}"):
            parse_distances([wrong], categories)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--jobs", "0"], "jobs: expected 1 or more"),
        (["--category", "bagel"], "has no category 'bagel'"),
        (["--size", "0"], "size: expected 1 pixel or more"),
        (["--root", "nowhere"], "nowhere"),
        (["--out", "/proc/nowhere"], "cannot be written"),
        (["--plane-distance", "thin"], "expected metres above 0"),
    ],
)
def test_bad_arguments_end_in_one_sentence(root, tmp_path, capsys, extra, message) -> None:
    assert main(["prepare", "--root", str(root), "--out", str(tmp_path / "out"), "--jobs", "1", *extra]) == 2
    captured = capsys.readouterr()
    first, *reasons = captured.err.splitlines()
    assert message in first or first == "pirn: 2 of 2 categories failed:"  # of a setting alone, or of each cache
    assert len(reasons) == (0 if message in first else 2)
    assert all(message in reason for reason in reasons)
    assert not (tmp_path / "out").exists()


def test_copies_to_learn_from_are_off_unless_asked_for(root: Path, tmp_path: Path) -> None:
    found = {}
    for name, extra in (("plain", []), ("none", ["--augment", "0"]), ("two", ["--augment", "2"])):
        assert main(_train(root, tmp_path / name, *extra)) == 0
        found[name] = load_checkpoint(tmp_path / name / "tile/checkpoint.safetensors")
    assert found["plain"].header == found["none"].header
    assert found["two"].header["shots"] == found["plain"].header["shots"]
    assert found["two"].header["history"] != found["plain"].header["history"]
    results = []
    for name in ("two", "plain"):
        argv = ["evaluate", "--checkpoint", str(tmp_path / name), "--root", str(root)]
        assert main([*argv, "--json", str(tmp_path / f"{name}.json")]) == 0
        results.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert results[0]["pirn"] != results[1]["pirn"]


def test_the_overlay_dims_and_outlines() -> None:
    rgb = np.full((40, 50, 3), 200, np.uint8)
    kept = np.zeros((40, 50), bool)
    kept[10:20, 15:30] = True
    shown = foreground_overlay(rgb, kept)
    assert (shown[kept] == 200).all()
    outline = np.zeros_like(kept)
    outline[9:21, 14:31] = True
    outline &= ~kept
    assert (shown[outline] == (0, 255, 255)).all()
    rest = shown[~(outline | kept)]
    assert (rest == rest[0]).all()
    assert rest[0].mean() < 130
