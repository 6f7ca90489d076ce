"""The commands, run as a user would, on small synthetic parts."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pirn.cli import main

from protoad.data import load_sample, prepare, read_rgb, read_xyz, write_dataset, write_rgb, write_xyz
from protoad.report import read_jsonl
from protoad.training import Snapshot

FAST = ["--image-size", "96", "--epochs", "2", "--num-prototypes", "4"]
METRICS = {"image_auroc", "pixel_auroc", "aupro", "f1_max"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(
        root, parts=("cookie", "tile"), train=4, validation=0, test_good=2, test_per_defect=1, seed=0, size=96
    )
    return root


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    argv = [
        "train",
        "--root",
        str(root),
        "--category",
        "cookie",
        "--shots",
        "3",
        "--seed",
        "1",
        "--out",
        str(out),
        *FAST,
    ]
    assert main(argv) == 0
    return out


def test_train_says_what_to_watch(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = [
        "train",
        "--dataset",
        "mvtec3d",
        "--root",
        str(root),
        "--category",
        "all",
        "--shots",
        "3",
        "--out",
        str(tmp_path),
    ]
    assert main([*argv, *FAST, "--residual", "purified"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["cookie", "tile"]
    for word in (
        "3 shots",
        "2 epochs",
        "loss",
        "leak",
        "gate_rgb_0",
        "displacement_normals_1",
        "checkpoint.safetensors",
    ):
        assert word in lines[0]
    assert (tmp_path / "tile" / "checkpoint.safetensors").is_file()


def test_evaluate_writes_the_same_table_twice(trained: Path, root: Path, tmp_path: Path, capsys) -> None:
    argv = ["evaluate", "--checkpoint", str(trained), "--root", str(root), "--json"]
    for name in ("one.json", "two.json"):
        assert main([*argv, str(tmp_path / name), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "cookie" in out
    assert "mean" in out
    results = json.loads((tmp_path / "one.json").read_text())
    assert results.keys() == {"pirn", "nearest_neighbour", "gaussian"}
    for method in results.values():
        assert method.keys() == METRICS | {"categories"}
        assert method["categories"].keys() == {"cookie"}
        assert method["categories"]["cookie"].keys() == METRICS
        assert all(0 <= method[name] <= 1 for name in METRICS)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert read_rgb(tmp_path / "cookie.png").ndim == 3


def test_a_cache_on_disk_changes_nothing(trained: Path, root: Path, tmp_path: Path) -> None:
    argv = ["evaluate", "--checkpoint", str(trained), "--root", str(root), "--json"]
    assert main([*argv, str(tmp_path / "plain.json")]) == 0
    for _ in range(2):
        assert main([*argv, str(tmp_path / "cached.json"), "--cache", str(tmp_path / "cache")]) == 0
        assert (tmp_path / "cached.json").read_bytes() == (tmp_path / "plain.json").read_bytes()
    assert list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("modality", ["rgb", "normals"])
def test_one_modality_alone(root: Path, tmp_path: Path, modality: str) -> None:
    argv = ["train", "--root", str(root), "--category", "tile", "--shots", "3", "--out", str(tmp_path), *FAST]
    assert main([*argv, "--modality", modality]) == 0
    argv = ["evaluate", "--checkpoint", str(tmp_path / "tile"), "--root", str(root), "--no-yardsticks"]
    assert main([*argv, "--json", str(tmp_path / "r.json"), "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "r.json").read_text()).keys() == {"pirn"}
    from protoad.checkpoint import load_checkpoint

    other = {"rgb": "normals", "normals": "rgb"}[modality]
    tensors = load_checkpoint(tmp_path / "tile" / "checkpoint.safetensors").tensors
    assert any(f".{modality}" in name for name in tensors)
    assert not any(f".{other}" in name for name in tensors)


def test_detect_one_part_and_a_folder_agree(trained: Path, root: Path, tmp_path: Path) -> None:
    good = root / "cookie" / "test" / "good"
    single = ["--rgb", str(good / "rgb" / "000.png"), "--xyz", str(good / "xyz" / "000.tiff")]
    argv = ["detect", "--checkpoint", str(trained), "--out"]
    assert main([*argv, str(tmp_path / "one"), *single]) == 0
    assert main([*argv, str(tmp_path / "all"), "--folder", str(good)]) == 0
    (one,), everything = (read_jsonl(tmp_path / name / "scores.jsonl") for name in ("one", "all"))
    assert one == everything[0]
    assert len(everything) == 2
    rows = list(csv.DictReader((tmp_path / "all" / "scores.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["000", "001"]
    assert float(rows[0]["score"]) == pytest.approx(one["score"])
    assert read_rgb(tmp_path / "one" / "overlays" / "000.png").shape[2] == 3
    from pirn import PIRNDetector

    pirn = PIRNDetector.load(trained / "cookie")
    part = prepare(load_sample(good / "rgb" / "000.png", good / "xyz" / "000.tiff"), 96)
    heat = pirn.detector(pirn.extractor([part])).maps["fused"][0]
    assert heat[one["peak_y"], one["peak_x"]] == heat.max()


def _copy(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "copy"))


def _train(root: Path, tmp_path: Path, *extra: str) -> list[str]:
    return [
        "train",
        "--root",
        str(root),
        "--category",
        "cookie",
        "--shots",
        "3",
        "--out",
        str(tmp_path / "out"),
        *FAST,
        *extra,
    ]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _shrink_rgb(path: Path) -> None:
    write_rgb(path, read_rgb(path)[:80, :80])


def _blind(path: Path) -> None:
    write_xyz(path, np.full_like(read_xyz(path), np.nan))


@pytest.mark.parametrize(
    ("harm", "file", "message"),
    [
        (Path.unlink, "rgb/001.png", "001"),
        (_truncate, "rgb/001.png", "001.png"),
        (_truncate, "xyz/001.tiff", "001.tiff"),
        (Path.unlink, "xyz/001.tiff", "001"),
        (_shrink_rgb, "rgb/001.png", "80 x 80"),
        (_blind, "xyz/001.tiff", "001"),
    ],
    ids=["missing rgb", "cut rgb", "cut xyz", "missing xyz", "other size", "all invalid"],
)
def test_bad_training_files_end_in_one_sentence(root, tmp_path, capsys, harm, file, message) -> None:
    copy = _copy(root, tmp_path)
    harm(copy / "cookie" / "train" / "good" / file)
    assert main(_train(copy, tmp_path, "--shots", "4")) == 2
    _one_sentence(capsys, message)
    assert not (tmp_path / "out").exists()


def _one_sentence(capsys: pytest.CaptureFixture, message: str) -> None:
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.err.startswith("pirn: ")
    assert message in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--shots", "20"], "asked for 20 shots, found 4"),
        (["--category", "bagel"], "has no category 'bagel'; found: cookie, tile"),
        (["--root", "nowhere"], "nowhere"),
        (["--encoder", "resnet"], "resnet"),
        (["--encoder", "timm:mobilenetv2_100", "--weights", "none.safetensors"], "none.safetensors"),
        (["--image-size", "100"], "100"),
        (["--num-prototypes", "0"], "num_prototypes: expected at least 1, got 0"),
        (["--num-prototypes", "100000"], "prototypes"),
        (["--out", "/proc/nowhere"], "cannot be written"),
        (["--gat-heads", "3"], "gat_heads: expected a divisor"),
        (["--seed", "-1"], "seed: expected 0 or more"),
        (["--lr", "1e30"], "loss is nan"),
    ],
    ids=[
        "shots",
        "category",
        "root",
        "encoder",
        "weights",
        "size",
        "prototypes",
        "too many prototypes",
        "out",
        "heads",
        "seed",
        "divergence",
    ],
)
def test_bad_arguments_end_in_one_sentence(root, tmp_path, capsys, extra, message) -> None:
    assert main(_train(root, tmp_path, *extra)) == 2
    _one_sentence(capsys, message)
    assert not (tmp_path / "out").exists()


def test_bad_detect_calls_end_in_one_sentence(trained, root, tmp_path, capsys) -> None:
    good = root / "cookie" / "test" / "good"
    rgb, xyz = str(good / "rgb" / "000.png"), str(good / "xyz" / "000.tiff")
    small = tmp_path / "small.png"
    write_rgb(small, read_rgb(rgb)[:50])
    for checkpoint, extra, message in (
        (trained, ["--rgb", rgb, "--folder", str(good)], "give either --rgb FILE, --xyz FILE or both"),
        (trained, [], "give either --rgb FILE, --xyz FILE or both"),
        (trained, ["--rgb", "gone.png", "--xyz", xyz], "gone.png"),
        (trained, ["--rgb", str(small), "--xyz", xyz], "small.png"),
        (trained, ["--rgb", xyz, "--xyz", xyz], "000.tiff"),
        (trained, ["--folder", str(tmp_path)], "has neither rgb/ nor xyz/"),
        (trained, ["--rgb", rgb, "--xyz", xyz, "--category", "tile"], "has no 'tile'; found: cookie"),
        (tmp_path, ["--rgb", rgb, "--xyz", xyz], "no checkpoint.safetensors"),
    ):
        assert main(["detect", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), *extra]) == 2
        _one_sentence(capsys, message)
        assert not (tmp_path / "out").exists()


def test_out_in_the_way_of_a_file_ends_in_one_sentence(trained, root, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    good = root / "cookie" / "test" / "good"
    for argv in (["detect", "--folder", str(good)], ["evaluate", "--root", str(root)]):
        assert main([*argv, "--checkpoint", str(trained), "--out", str(tmp_path / "file")]) == 2
        _one_sentence(capsys, "cannot be written")


def test_one_broken_file_in_a_folder_leaves_nothing_behind(trained, root, tmp_path, capsys) -> None:
    copy = _copy(root, tmp_path) / "cookie" / "test" / "good"
    _truncate(copy / "xyz" / "001.tiff")
    assert main(["detect", "--checkpoint", str(trained), "--folder", str(copy), "--out", str(tmp_path / "out")]) == 2
    _one_sentence(capsys, "001.tiff")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_config_is_refused(trained: Path, root: Path, tmp_path: Path, capsys) -> None:
    from protoad.checkpoint import load_checkpoint, save_checkpoint

    tensors, header = load_checkpoint(trained / "cookie" / "checkpoint.safetensors")
    for change, message in (
        ({"num_prototypes": 7}, "does not fit"),
        ({"num_layers": 3}, "does not fit"),
        ({"hue": 1}, "hue"),
    ):
        config = {**header["config"], **change}
        save_checkpoint(tmp_path / "checkpoint.safetensors", tensors, {**header, "config": config})
        assert main(["evaluate", "--checkpoint", str(tmp_path), "--root", str(root)]) == 2
        _one_sentence(capsys, message)


def test_evaluate_without_the_shots_says_so(trained: Path, root: Path, tmp_path: Path, capsys) -> None:
    copy = _copy(root, tmp_path)
    for path in (copy / "cookie" / "train" / "good").rglob("*.*"):
        path.rename(path.with_stem(f"9{path.stem}"))
    assert main(["evaluate", "--checkpoint", str(trained), "--root", str(copy)]) == 2
    _one_sentence(capsys, "which the detector was trained on")


def test_quick_demo_runs_twice_and_spares_what_it_did_not_make(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["demo", "--quick", "--seed", "3", "--out", str(tmp_path)]
    found = []
    for _ in range(2):
        assert main(argv) == 0
        assert "nearest_neighbour" in capsys.readouterr().out
        found.append((tmp_path / "metrics.json").read_bytes())
    assert found[0] == found[1]
    results = json.loads(found[0])
    assert results.keys() == {"pirn", "nearest_neighbour", "gaussian"}
    assert results["pirn"]["pixel_auroc"] > 0.9
    assert {path.stem for path in tmp_path.glob("*.png")} == {"cookie", "tile", "overview"}
    (tmp_path / "data" / "made-by-pirn-demo").unlink()
    assert main(argv) == 2
    _one_sentence(capsys, "no demo made it")
    assert (tmp_path / "data" / "cookie").is_dir()


def test_a_training_cut_short_ends_in_the_same_bytes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def argv(out: str) -> list[str]:
        where = ["--root", str(root), "--out", str(tmp_path / out)]
        return ["train", *where, "--category", "cookie", "--shots", "3", *FAST[:2], "--epochs", "4", *FAST[4:]]

    assert main(argv("whole")) == 0
    save, saves = Snapshot.save, []

    def interrupted(self: Snapshot, state: object) -> None:
        save(self, state)
        saves.append(state)
        if len(saves) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Snapshot, "save", interrupted)
        assert main(argv("cut")) == 130
    assert [path.name for path in (tmp_path / "cut" / "cookie").iterdir()] == ["training.safetensors"]
    assert main(argv("cut")) == 0
    (whole,), (cut,) = ((tmp_path / out / "cookie").iterdir() for out in ("whole", "cut"))
    assert cut.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_training_killed_again_and_again_ends_in_the_same_bytes(root: Path, tmp_path: Path) -> None:
    """kill -9 of the command itself at random moments, from its imports to its last write."""
    command = [sys.executable, "-c", "import sys; from pirn.cli import main; sys.exit(main(sys.argv[1:]))", "train"]
    command += ["--root", str(root), "--category", "cookie", "--shots", "3", *FAST[:2], "--epochs", "30", *FAST[4:]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, env=environment)
    seconds, rng, kills = time.monotonic() - start, random.Random(0), 0
    expected = (tmp_path / "whole" / "cookie" / "checkpoint.safetensors").read_bytes()
    while kills < 50:
        out = tmp_path / f"cut{kills}"
        while True:
            child = subprocess.Popen([*command, "--out", str(out)], env=environment)
            try:
                assert child.wait(rng.uniform(0.3, 1) * seconds) == 0
                break
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                kills += 1
        assert (out / "cookie" / "checkpoint.safetensors").read_bytes() == expected


def test_the_guard_is_kept_in_the_checkpoint(root: Path, trained: Path, tmp_path: Path) -> None:
    from pirn import PIRNDetector

    argv = ["train", "--root", str(root), "--category", "cookie", "--shots", "3", "--seed", "1", *FAST]
    assert main([*argv, "--guard", "--out", str(tmp_path)]) == 0
    guarded = PIRNDetector.load(tmp_path / "cookie")
    limits = [guard.limit.item() for layer in guarded.model.layers for guard in layer.guard.values()]
    assert len(limits) == 4
    assert all(0 < limit < 2 for limit in limits)
    assert not PIRNDetector.load(trained / "cookie").model.layers[0].guard
